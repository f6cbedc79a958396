package page_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// place has everything that positions are made of.
type place struct {
	At   time.Time `json:"at"`
	ID   uuid.UUID `json:"id"`
	Name string    `json:"name"`
	Seq  int64     `json:"seq"`
	XID  uint64    `json:"xid,omitempty"`
}

// FuzzToken holds that a token comes back as the place that it was made of, for
// its own list and query and for no other.
func FuzzToken(f *testing.F) {
	f.Add("users", "ada", "a", "bc", int64(0), int64(7), uint64(1))
	f.Add("users", strings.Repeat("long", 200), "a", "b", int64(1), int64(2), uint64(3))
	f.Add("users", "\x00", "ab", "c", int64(1)<<61, int64(-1), ^uint64(0))
	f.Add("", "<\u2028&>", "", "", int64(-1)<<62, int64(0), uint64(0))
	f.Fuzz(func(t *testing.T, kind, name, one, two string, at, seq int64, xid uint64) {
		if !utf8.ValidString(name) {
			return // what a position holds was stored, and PostgreSQL stores UTF-8
		}
		want := place{At: time.Unix(at, 0).UTC(), ID: uuid.NewSHA1(uuid.Nil, []byte(one)), Name: name, Seq: seq, XID: xid}
		token, err := page.Encode(kind, want, one, two)
		if err != nil {
			require.True(t, len(name) > 100 || want.At.Year() < 0 || want.At.Year() > 9999, "%v", err)
			return
		}
		got, err := page.Decode[place](kind, token, one, two)
		require.NoError(t, err)
		if token == "" {
			require.Fail(t, "the empty token is the first page")
		}
		require.Equal(t, want, *got)
		for _, query := range [][]any{{one + two}, {one, two, ""}, {two + "x", one}, {one + "1:", two}, nil} {
			_, err := page.Decode[place](kind, token, query...)
			requireInvalid(t, err)
		}
		_, err = page.Decode[place](kind+".", token, one, two)
		requireInvalid(t, err)
	})
}

// FuzzDecode holds that whatever a client brings is answered by the one error, or
// is a place that could have been told.
func FuzzDecode(f *testing.F) {
	good, err := page.Encode("users", place{Name: "ada", Seq: 3}, "q")
	require.NoError(f, err)
	raw, err := base64.RawURLEncoding.DecodeString(good)
	require.NoError(f, err)
	f.Add(good)
	f.Add(good + "\n")
	f.Add(good[:len(good)-1])
	for _, body := range []string{`{"seq":1e9}`, `{"seq":9223372036854775808}`, `{"id":"x"}`, `null`, `[]`, `{"at":"2026-01-01T00:00:00Z","more":1}`, `{}{}`} {
		f.Add(base64.RawURLEncoding.EncodeToString(append(raw[:9:9], body...)))
	}
	f.Fuzz(func(t *testing.T, token string) {
		var got *place
		var err error
		testkit.Bounded(t, 1<<20, func() { got, err = page.Decode[place]("users", token, "q") })
		switch {
		case err != nil:
			require.Nil(t, got)
			requireInvalid(t, err)
		case token == "":
			require.Nil(t, got)
		default:
			again, err := page.Encode("users", *got, "q")
			require.NoError(t, err)
			back, err := page.Decode[place]("users", again, "q")
			require.NoError(t, err)
			require.True(t, got.At.Equal(back.At))
			got.At, back.At = time.Time{}, time.Time{}
			require.Equal(t, got, back)
		}
	})
}

func requireInvalid(t *testing.T, err error) {
	t.Helper()
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	require.Equal(t, errorv1.Reason_REASON_PAGE_TOKEN_INVALID, rpc.ReasonOf(err))
}
