package messaging_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/servicetest"
)

func TestSendKeysAreForgottenAfterSevenDays(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	old := message(id, "old")
	_, err := a.SendMessage(ctx, old)
	require.NoError(t, err)
	w.Clock.Advance(6 * 24 * time.Hour)
	young := message(id, "young")
	first, err := a.SendMessage(ctx, young)
	require.NoError(t, err)
	w.Clock.Advance(25 * time.Hour)

	keys := func() (n int) {
		require.NoError(t, w.DB("messaging").QueryRow(ctx, "SELECT count(*) FROM send_key").Scan(&n))
		return n
	}
	require.Eventually(t, func() bool { return keys() == 1 }, 30*time.Second, 20*time.Millisecond, "the job has not run")
	again, err := a.SendMessage(ctx, young)
	require.NoError(t, err)
	require.True(t, proto.Equal(first, again))
	require.Len(t, texts(b.log(id)), 2)
}
