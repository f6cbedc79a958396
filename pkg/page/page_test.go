package page_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/page"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

func TestTokenComesBack(t *testing.T) {
	t.Parallel()
	want := position{At: time.Date(2026, 1, 1, 0, 0, 0, 1000, time.UTC), ID: uuid.New()}
	conversation := uuid.New()

	token, err := page.Encode("messages", want, conversation, 7)
	require.NoError(t, err)
	got, err := page.Decode[position]("messages", token, conversation, 7)
	require.NoError(t, err)
	require.Equal(t, want, *got)
}

func TestNoTokenIsTheFirstPage(t *testing.T) {
	t.Parallel()
	got, err := page.Decode[position]("messages", "")
	require.NoError(t, err)
	require.Nil(t, got)
}

func TestForeignTokenIsRefused(t *testing.T) {
	t.Parallel()
	token, err := page.Encode("messages", position{}, "a", "bc")
	require.NoError(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(token)
	require.NoError(t, err)
	newer := append([]byte{}, raw...)
	newer[0] = 2
	longer := append(append([]byte{}, raw...), "{}"...)

	for name, c := range map[string]struct {
		kind, token string
		query       []any
	}{
		"another list":    {"conversations", token, []any{"a", "bc"}},
		"another query":   {"messages", token, []any{"a", "x"}},
		"parts moved":     {"messages", token, []any{"ab", "c"}},
		"no query":        {"messages", token, nil},
		"not base64":      {"messages", "***", []any{"a", "bc"}},
		"too short":       {"messages", "AQ", []any{"a", "bc"}},
		"too long":        {"messages", strings.Repeat("A", 5000), []any{"a", "bc"}},
		"newer version":   {"messages", base64.RawURLEncoding.EncodeToString(newer), []any{"a", "bc"}},
		"something after": {"messages", base64.RawURLEncoding.EncodeToString(longer), []any{"a", "bc"}},
		"cut":             {"messages", token[:len(token)-4], []any{"a", "bc"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := page.Decode[position](c.kind, c.token, c.query...)
			require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
			var ce *connect.Error
			require.ErrorAs(t, err, &ce)
			require.Len(t, ce.Details(), 1)
			info, err := ce.Details()[0].Value()
			require.NoError(t, err)
			require.Equal(t, errorv1.Reason_REASON_PAGE_TOKEN_INVALID, info.(*errorv1.ErrorInfo).GetReason())
		})
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	require.Equal(t, int32(50), page.Size(0, 50, 200))
	require.Equal(t, int32(50), page.Size(-1, 50, 200))
	require.Equal(t, int32(7), page.Size(7, 50, 200))
	require.Equal(t, int32(200), page.Size(1000, 50, 200))
}
