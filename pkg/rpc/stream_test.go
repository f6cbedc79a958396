package rpc_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// The contract has no stream of its own, so these borrow the names of two
// methods; access is that of the names.
const (
	serverStream = "/parley.auth.v1.AuthService/LogIn"
	bidiStream   = "/parley.auth.v1.AuthService/Register"
)

// streams answers over and over, or echoes.
type streams struct{ left chan error }

func (s *streams) many(ctx context.Context, req *connect.Request[userv1.User], out *connect.ServerStream[userv1.User]) error {
	out.ResponseHeader().Set("X-Head", "h")
	out.ResponseTrailer().Set("X-Tail", "t")
	for i := range req.Msg.GetVersion() {
		if err := out.Send(&userv1.User{Version: i, DisplayName: strings.Repeat("x", 1000)}); err != nil {
			return err
		}
	}
	switch req.Msg.GetId() {
	case "fail":
		return rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND, "no such person")
	case "panic":
		panic("stream is on fire") //nolint:forbidigo // what is tested
	case "hang":
		<-ctx.Done()
		s.left <- context.Cause(ctx)
		return ctx.Err()
	}
	return nil
}

func (s *streams) echo(_ context.Context, stream *connect.BidiStream[userv1.User, userv1.User]) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(msg); err != nil {
			return err
		}
	}
}

// addStreams serves the two streams.
func (w *world) addStreams(t *testing.T) *streams {
	t.Helper()
	s := &streams{left: make(chan error, 1)}
	require.NoError(t, w.server.Handle(serverStream, connect.NewServerStreamHandler(serverStream, s.many, w.server.Options()...)))
	require.NoError(t, w.server.Handle(bidiStream, connect.NewBidiStreamHandler(bidiStream, s.echo, w.server.Options()...)))
	return s
}

func openMany(ctx context.Context, t *testing.T, tr transport, req *userv1.User) *connect.ServerStreamForClient[userv1.User] {
	t.Helper()
	client := connect.NewClient[userv1.User, userv1.User](tr.http, tr.url+serverStream, tr.opts...)
	stream, err := client.CallServerStream(ctx, connect.NewRequest(req))
	require.NoError(t, err)
	return stream
}

func TestServerStream(t *testing.T) {
	t.Parallel()
	overEveryTransport(t, func(t *testing.T, w *world, tr transport) {
		s := w.addStreams(t)
		testStreamEndsWell(t, tr)
		testStreamFails(t, tr)

		stream := openMany(t.Context(), t, tr, &userv1.User{Version: 1, Id: "panic"})
		require.True(t, stream.Receive())
		require.False(t, stream.Receive())
		require.Equal(t, errorv1.Reason_REASON_INTERNAL, rpc.ReasonOf(stream.Err()))
		require.Len(t, w.logs.take(), 1)
		require.NoError(t, stream.Close())

		// The caller leaves.
		ctx, cancel := context.WithCancel(t.Context())
		stream = openMany(ctx, t, tr, &userv1.User{Version: 1, Id: "hang"})
		require.True(t, stream.Receive())
		cancel()
		require.False(t, stream.Receive())
		require.Equal(t, connect.CodeCanceled, rpc.CodeOf(stream.Err()), "%v", stream.Err())
		require.ErrorIs(t, <-s.left, context.Canceled)
		_ = stream.Close() // says that it was canceled

		// The caller closes a stream that is full.
		stream = openMany(t.Context(), t, tr, &userv1.User{Version: 1 << 20})
		require.True(t, stream.Receive())
		_ = stream.Close()
	})
}

func testStreamEndsWell(t *testing.T, tr transport) {
	t.Helper()
	// More than the window of the in-process pipe.
	stream := openMany(t.Context(), t, tr, &userv1.User{Version: 1000})
	var n int64
	for stream.Receive() {
		require.Equal(t, n, stream.Msg().GetVersion())
		n++
	}
	require.NoError(t, stream.Err())
	require.EqualValues(t, 1000, n)
	require.Equal(t, "h", stream.ResponseHeader().Get("X-Head"))
	require.Equal(t, "t", stream.ResponseTrailer().Get("X-Tail"))
	require.NoError(t, stream.Close())
}

// testStreamFails has a stream fail after some messages.
func testStreamFails(t *testing.T, tr transport) {
	t.Helper()
	stream := openMany(t.Context(), t, tr, &userv1.User{Version: 3, Id: "fail"})
	n := 0
	for stream.Receive() {
		n++
	}
	require.Equal(t, 3, n)
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(stream.Err()))
	require.Equal(t, errorv1.Reason_REASON_USER_NOT_FOUND, rpc.ReasonOf(stream.Err()))
	require.NoError(t, stream.Close())
}

func TestBidiStream(t *testing.T) {
	t.Parallel()
	overEveryTransport(t, func(t *testing.T, w *world, tr transport) {
		w.addStreams(t)
		client := connect.NewClient[userv1.User, userv1.User](tr.http, tr.url+bidiStream, tr.opts...)
		stream := client.CallBidiStream(t.Context())
		if strings.HasSuffix(tr.name, "h1") || tr.name == "grpc-web" {
			// HTTP/1.1 has no full duplex: a clean error, not a hang.
			_ = stream.Send(&userv1.User{})
			_, err := stream.Receive()
			require.Error(t, err)
			_ = stream.CloseRequest()
			_ = stream.CloseResponse()
			return
		}
		for i := range int64(20) {
			require.NoError(t, stream.Send(&userv1.User{Version: i}))
			msg, err := stream.Receive()
			require.NoError(t, err)
			require.Equal(t, i, msg.GetVersion())
		}
		require.NoError(t, stream.CloseRequest())
		_, err := stream.Receive()
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, stream.CloseResponse())
	})
}

// A gateway proxies what it does not read through the same transports.
func TestReverseProxyPassesEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.addStreams(t)
	remote, err := rpc.Remote(map[string]string{"auth": w.url}, rpc.RemoteConfig{})
	require.NoError(t, err)
	t.Cleanup(remote.Close)
	for name, dialer := range map[string]rpc.Dialer{"remote": remote, "in process": w.dialer} {
		backend := dialer.Backend("auth")
		target, err := url.Parse(backend.URL)
		require.NoError(t, err)
		front := httptest.NewUnstartedServer(&httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: backend.Transport,
		})
		front.Config.Protocols = new(http.Protocols)
		front.Config.Protocols.SetHTTP1(true)
		front.Config.Protocols.SetUnencryptedHTTP2(true)
		front.Start()
		t.Cleanup(front.Close)
		for _, tr := range w.transports(t) {
			if strings.HasPrefix(tr.name, "in process") || tr.name == "balanced" {
				continue
			}
			tr.url = front.URL
			t.Run(name+"/"+tr.name, func(t *testing.T) {
				t.Parallel()
				require.NoError(t, asUser("")(t, w, tr))
				err := asUser(idLimited)(t, w, tr)
				require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err), "%v", err)
				testStreamEndsWell(t, tr)
				testStreamFails(t, tr)
			})
		}
	}
}

func TestAStreamOutlivesTheDefaultTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *rpc.Config) { c.DefaultTimeout = time.Millisecond })
	past := make(chan struct{})
	require.NoError(t, w.server.Handle(serverStream, connect.NewServerStreamHandler(serverStream,
		func(ctx context.Context, _ *connect.Request[userv1.User], out *connect.ServerStream[userv1.User]) error {
			_, bounded := ctx.Deadline()
			if bounded {
				return errors.New("has a deadline")
			}
			close(past)
			return out.Send(&userv1.User{})
		}, w.server.Options()...)))
	stream := openMany(t.Context(), t, w.transports(t)[0], &userv1.User{})
	require.True(t, stream.Receive(), "%v", stream.Err())
	<-past
	require.NoError(t, stream.Close())
}
