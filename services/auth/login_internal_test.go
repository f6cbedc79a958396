package auth

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
)

// An unknown account costs what a wrong password does: one comparison, one look for the account, one entry in the
// record. Times are not measured: they differ by the machine's mood, the work does not.
func TestUnknownAndWrongCostTheSame(t *testing.T) {
	t.Parallel()
	var s *Service
	def := Definition()
	def.Setup = func(ctx context.Context, rt *service.Runtime) (err error) {
		if s, err = newService(ctx, rt); err == nil {
			s.serve(rt)
		}
		return err
	}
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	h := servicetest.Start(t, servicetest.Options{Settings: []string{
		"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + secret, "PARLEY_AUTH_REFRESH_SECRET=" + secret, "PARLEY_AUTH_PASSWORD_PEPPER=" + secret,
		"PARLEY_AUTH_BCRYPT_COST=4", "PARLEY_AUTH_INSECURE_PASSWORD_HASHING=true", "PARLEY_AUTH_REGISTER_AWAIT=none",
	}}, def)
	client := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Anonymous()))
	_, err := client.Register(t.Context(), &authv1.RegisterRequest{Email: "anna@example.org", Username: "anna", Password: "tr0mbone-lantern"})
	require.NoError(t, err)

	type cost struct {
		comparisons int64
		entries     int
	}
	costOf := func(login, password string) cost {
		t.Helper()
		entries := func() (n int) {
			require.NoError(t, s.pool.QueryRow(t.Context(), "SELECT count(*) FROM audit").Scan(&n))
			return n
		}
		before, written := s.passwords.compared.Load(), entries()
		_, err := client.LogIn(t.Context(), &authv1.LogInRequest{Login: login, Password: password})
		require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err))
		return cost{s.passwords.compared.Load() - before, entries() - written}
	}
	wrong := costOf("anna", "not-the-password")
	require.Equal(t, cost{1, 1}, wrong)
	require.Equal(t, wrong, costOf("anna@example.org", "not-the-password"))
	require.Equal(t, wrong, costOf("nobody", "not-the-password"))
	require.Equal(t, wrong, costOf("nobody@example.org", "not-the-password"))
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	require.Equal(t, "Parrot1.0", printable("Parrot\t1.0\u202e\x00\xff", 64))
	require.Equal(t, "né", printable("nééé", 3))
	require.Equal(t, "né", printable("nééé", 4))
}

// The codes of RFC 6238, appendix B (SHA-1, cut to six digits), and one step of skew either way.
func TestMatchStep(t *testing.T) {
	t.Parallel()
	const secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" // "12345678901234567890"
	for unix, code := range map[int64]string{59: "287082", 1111111109: "081804", 1234567890: "005924", 20000000000: "353130"} {
		for skew, want := range map[int64]bool{-60: false, -30: true, 0: true, 30: true, 60: false} {
			if unix+skew < 0 {
				continue
			}
			step, ok, err := matchStep(secret, code, timeAt(unix+skew))
			require.NoError(t, err)
			require.Equal(t, want, ok, "%d%+d", unix, skew)
			if ok {
				require.Equal(t, unix/30, step)
			}
		}
	}
}

func timeAt(unix int64) time.Time { return time.Unix(unix, 0) }
