package rpc

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

var seedErrors = []string{
	`{"code":"not_found","message":"no such user","details":[{"type":"parley.error.v1.ErrorInfo","value":"CMgB"}]}`,
	`{"code":"not_found","details":[{"type":"parley.error.v1.ErrorInfo","value":"CMgB=="}]}`,
	`{"code":"unavailable"}`, `{"code":"code_0"}`, `{"code":"code_99"}`, `{"code":"code_4294967295"}`, `{"code":3}`, `{"code":""}`, `{"code":null}`,
	`{"code":"internal","message":"\ud800\u0000","details":[{"type":"","value":"AA"},{"type":"parley.error.v1.ErrorInfo","value":"_w"}]}`,
	`{"message":"x"}`, `{}`, `[]`, `null`, ``, "{\"code\":\"aborted\",\"message\":\"\xff\"}",
}

// FuzzErrorBody holds that any answer which is no success becomes an error with a
// known code and a reason, however a service or a proxy spells it, and that the
// error is the same after another hop.
func FuzzErrorBody(f *testing.F) {
	for i, body := range seedErrors {
		f.Add(400+i, []byte(body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		var got *connect.Error
		testkit.Bounded(t, 1<<20+512*uint64(len(body)), func() { got = ParseError(status, body) })
		require.GreaterOrEqual(t, got.Code(), connect.CodeCanceled)
		require.LessOrEqual(t, got.Code(), connect.CodeUnauthenticated)
		info := InfoOf(got)
		require.NotNil(t, info)

		rec := httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodPost, "/x", http.NoBody)
		request.Header.Set("Content-Type", "application/json")
		require.NoError(t, connect.NewErrorWriter().Write(rec, request, got))
		again := ParseError(rec.Code, rec.Body.Bytes())
		require.Equal(t, got.Code(), again.Code())
		require.Equal(t, info.GetReason(), InfoOf(again).GetReason())
		require.Equal(t, info.GetRetryAfter().AsDuration(), InfoOf(again).GetRetryAfter().AsDuration())
	})
}

// FuzzAddReason holds that an error without a reason gets exactly one, keeps its
// code, and that nothing else is touched.
func FuzzAddReason(f *testing.F) {
	for _, body := range seedErrors {
		f.Add([]byte(body))
	}
	f.Add([]byte(`{"code":"invalid_argument","message":"` + strings.Repeat("ä", 600) + `"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		out, added := addReason(body)
		if !added {
			require.Nil(t, out)
			return
		}
		require.True(t, json.Valid(out))
		require.True(t, utf8.Valid(out))
		var before, after wireError
		require.NoError(t, json.Unmarshal(body, &before))
		require.NoError(t, json.Unmarshal(out, &after))
		require.Equal(t, before.Code, after.Code)
		if len(before.Message) > maxMessage {
			require.LessOrEqual(t, len(after.Message), maxMessage+len("…"))
		} else {
			require.Equal(t, before.Message, after.Message)
		}
		require.Len(t, after.Details, len(before.Details)+1)
		_, twice := addReason(out)
		require.False(t, twice)
		if reasonOfCode(before.Code) != errorv1.Reason_REASON_UNSPECIFIED {
			require.Equal(t, reasonOfCode(before.Code), InfoOf(ParseError(http.StatusBadRequest, out)).GetReason())
		}
	})
}

// FuzzBearer holds that of an Authorization header either one token is taken, or
// none.
func FuzzBearer(f *testing.F) {
	for _, value := range []string{"Bearer abc", "bearer  abc ", "Bearer ", "Basic abc", "", "BEARER\tabc", "Bearer a b"} {
		f.Add(value, "")
		f.Add(value, value)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		values := []string{one}
		if two != "" {
			values = append(values, two)
		}
		raw, ok := bearer(values)
		if !ok {
			require.Empty(t, raw)
			return
		}
		require.Empty(t, two)
		require.Contains(t, one, raw)
		caller, err := Authenticate(t.Context(), nil, nil, http.Header{"Authorization": values})
		require.Zero(t, caller)
		require.Equal(t, errorv1.Reason_REASON_TOKEN_INVALID, ReasonOf(err), "nobody verifies it here")
	})
}
