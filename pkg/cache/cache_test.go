package cache_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testkit.OfClusterClients()...) }

func TestOpen(t *testing.T) {
	t.Parallel()
	c, err := cache.Open(testkit.Redis(t)+"?protocol=2&client_cache=0", "test")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Do(t.Context(), c.B().Set().Key("a").Value("1").Ex(time.Minute).Build()).Error())
	got, err := c.Do(t.Context(), c.B().Get().Key("a").Build()).ToString()
	require.NoError(t, err)
	require.Equal(t, "1", got)
}

func TestAwayAndBack(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateRedis(t)
	server.Stop()
	c, err := cache.Open(server.URL, "test")
	require.ErrorIs(t, err, cache.ErrAway)
	require.NotNil(t, c)
	defer c.Close()

	ping := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return c.Do(ctx, c.B().Ping().Build()).Error()
	}
	require.Error(t, ping())
	server.Restart()
	require.Eventually(t, func() bool { return ping() == nil }, 15*time.Second, 10*time.Millisecond, "the client has to connect again")
}

func TestAWrongURLIsNotShown(t *testing.T) {
	t.Parallel()
	c, err := cache.Open("redis://:hunter2@host:x/", "test")
	require.Error(t, err)
	require.Nil(t, c)
	require.NotContains(t, err.Error(), "hunter2")
}
