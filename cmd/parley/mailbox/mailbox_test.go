package mailbox_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/mailbox"
	"github.com/parleychat/parley/pkg/mailsink"
)

const hostile = "Subject: <b>hi</b>\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script><p>code 482913</p>\r\n"

func serve(t *testing.T) (url string, sink *mailsink.Sink) {
	t.Helper()
	h, sink := handler(t)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL, sink
}

// handler is the page, with two mails.
func handler(t *testing.T) (http.Handler, *mailsink.Sink) {
	t.Helper()
	sink, err := mailsink.Start(t.Context(), mailsink.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sink.Stop()) })
	h, err := mailbox.New(sink, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for _, to := range []string{"anna@example.org", "ben@example.org"} {
		require.NoError(t, smtp.SendMail(sink.Addr, nil, "parley@example.org", []string{to}, []byte(hostile)))
	}
	return h, sink
}

func ask(t *testing.T, method, url string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	require.NoError(t, err)
	if change != nil {
		change(req)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res, string(body)
}

func TestPageShowsMails(t *testing.T) {
	t.Parallel()
	url, _ := serve(t)
	res, body := ask(t, http.MethodGet, url+"/mails/", nil)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Contains(t, body, "&lt;b&gt;hi&lt;/b&gt;")
	require.Contains(t, body, "ben@example.org")
	require.Contains(t, res.Header.Get("Content-Security-Policy"), "default-src 'none'")
	_, body = ask(t, http.MethodGet, url+"/mails/1", nil)
	require.Contains(t, body, `<iframe sandbox src="/mails/1/html"`)
	require.NotContains(t, body, "<script>")
}

func TestMailIsSandboxed(t *testing.T) {
	t.Parallel()
	url, _ := serve(t)
	res, body := ask(t, http.MethodGet, url+"/mails/1/html", nil)
	require.Contains(t, body, "482913")
	require.True(t, strings.HasPrefix(res.Header.Get("Content-Security-Policy"), "sandbox; default-src 'none'"))
	res, body = ask(t, http.MethodGet, url+"/mails/1/raw", nil)
	require.Equal(t, "text/plain; charset=utf-8", res.Header.Get("Content-Type"))
	require.Contains(t, body, "Subject: <b>hi</b>")
	res, _ = ask(t, http.MethodGet, url+"/mails/99", nil)
	require.Equal(t, http.StatusNotFound, res.StatusCode)
}

func TestProgramsReadJSON(t *testing.T) {
	t.Parallel()
	url, _ := serve(t)
	_, body := ask(t, http.MethodGet, url+"/mails/json?to=ANNA@example.org", nil)
	var got struct {
		Mails []mailsink.Mail `json:"mails"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	require.Len(t, got.Mails, 1)
	require.Equal(t, []string{"anna@example.org"}, got.Mails[0].To)
}

func TestClearAndStrangers(t *testing.T) {
	t.Parallel()
	url, sink := serve(t)
	res, _ := ask(t, http.MethodGet, url+"/mails/", func(r *http.Request) { r.Host = "evil.example:80" })
	require.Equal(t, http.StatusMisdirectedRequest, res.StatusCode)
	res, _ = ask(t, http.MethodPost, url+"/mails/clear", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
	require.Equal(t, http.StatusForbidden, res.StatusCode)
	require.Len(t, sink.Mails(), 2)
	res, _ = ask(t, http.MethodPost, url+"/mails/clear", nil)
	require.Equal(t, http.StatusSeeOther, res.StatusCode)
	require.Empty(t, sink.Mails())
}

// The admin port may be open to a network; the mails in it are not.
func TestOtherMachinesSeeNothing(t *testing.T) {
	t.Parallel()
	h, _ := handler(t)
	for address, want := range map[string]int{
		"192.0.2.7:1234": http.StatusForbidden, "[2001:db8::1]:1234": http.StatusForbidden, "": http.StatusForbidden,
		"127.0.0.1:1234": http.StatusOK, "[::1]:1234": http.StatusOK, "[::ffff:127.0.0.1]:1234": http.StatusOK,
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/mails/json", http.NoBody)
		req.RemoteAddr = address
		res := httptest.NewRecorder()
		h.ServeHTTP(res, req)
		require.Equal(t, want, res.Code, address)
	}
}
