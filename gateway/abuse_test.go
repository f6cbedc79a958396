package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
)

// What follows are people who mean harm: each takes what an attacker has plenty of
// (connections, time, bytes that grow) and must not get what we have little of.

const sendPath = messagingv1connect.MessagingServiceSendMessageProcedure

// raw opens a connection and writes a request's beginning.
func (w *world) raw(t *testing.T, beginning string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = conn.Write([]byte(beginning))
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	return conn
}

// requireLetGo reads until the server has closed, and gives the status of its
// answer, 0 without one.
func requireLetGo(t *testing.T, conn net.Conn) int {
	t.Helper()
	data, err := io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server holds on to the connection; it said %q", data)
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
	if err != nil {
		return 0
	}
	require.NoError(t, response.Body.Close())
	return response.StatusCode
}

// TestSlowBodies holds that a request whose body never comes lets go of its
// connection: at once where nobody has authenticated, after the time of a call
// otherwise.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.HTTP.HeaderTimeout = 300 * time.Millisecond
		s.cfg.HTTP.CallTimeout = 600 * time.Millisecond
	})
	good := "Authorization: Bearer " + w.token(newPerson(), time.Hour) + "\r\n"
	for name, c := range map[string]struct {
		path, header string
		status       int
	}{
		"a stranger":           {sendPath, "", http.StatusUnauthorized},
		"a bad token":          {sendPath, "Authorization: Bearer x\r\n", http.StatusUnauthorized},
		"no such method":       {"/parley.messaging.v1.MessagingService/Nothing", "", http.StatusNotImplemented},
		"no such page":         {"/elsewhere", "", http.StatusNotFound},
		"the key set":          {JWKSPath, "", http.StatusNotFound},
		"a socket":             {SocketPath, "", http.StatusBadRequest},
		"a preflight":          {sendPath, "Origin: https://elsewhere.example\r\nAccess-Control-Request-Method: POST\r\n", http.StatusUnauthorized},
		"somebody with a call": {sendPath, good, 0},
	} {
		for _, framing := range []string{"Content-Length: 900", "Transfer-Encoding: chunked"} {
			t.Run(name+"/"+framing[:7], func(t *testing.T) {
				t.Parallel()
				conn := w.raw(t, "POST "+c.path+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+c.header+framing+"\r\n\r\n")
				if status := requireLetGo(t, conn); c.status != 0 {
					require.Equal(t, c.status, status)
				}
			})
		}
	}
}

// TestHeaderFloods holds that headers are bounded in bytes, however they are cut.
func TestHeaderFloods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, header := range map[string]string{
		"one long":    "X-Long: " + strings.Repeat("x", 128<<10) + "\r\n",
		"many short":  strings.Repeat("A: b\r\n", 30_000),
		"a long path": "",
	} {
		path := "/" + strings.Repeat("p", map[string]int{"a long path": 128 << 10}[name])
		conn := w.raw(t, "GET "+path+" HTTP/1.1\r\nHost: x\r\n")
		go func() { _, _ = conn.Write([]byte(header + "\r\n")) }() // it is cut off while it writes
		data, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil { // else the rest of the flood met a closed connection
			require.Contains(t, data, "431", name)
		}
	}
	// Over HTTP/2 the client is told the limit; one that does not care is cut.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.address+"/elsewhere", http.NoBody)
	require.NoError(t, err)
	for i := range 2000 {
		request.Header.Set(fmt.Sprintf("X-%d", i), strings.Repeat("y", 100))
	}
	response, err := httpClient(t, true).Do(request)
	if err == nil {
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
		require.NoError(t, response.Body.Close())
	}
	require.Equal(t, http.StatusNotFound, get(t, w, "/elsewhere", nil).StatusCode, "the gateway goes on")
}

// bomb is gzip that grows a thousandfold.
func bomb(t *testing.T, size int64) []byte {
	t.Helper()
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	_, err := io.CopyN(writer, zeros{}, size)
	require.NoError(t, err)
	require.NoError(t, writer.Close())
	require.Less(t, int64(packed.Len()), size/500)
	return packed.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestZipBombs holds that a compressed request is bounded by what it unpacks to,
// and not unpacked beyond that.
func TestZipBombs(t *testing.T) { //nolint:paralleltest // measures what the process allocates
	const size = 128 << 20
	w := newWorld(t)
	packed := bomb(t, size)
	authorization := []string{"Bearer " + w.token(newPerson(), time.Hour)}
	enveloped := append([]byte{1, 0, 0, 0, 0}, packed...)
	for i := range 4 {
		enveloped[1+i] = byte(len(packed) >> (24 - 8*i))
	}
	for _, kind := range []string{"application/proto", "application/json"} {
		header := http.Header{"Content-Type": {kind}, "Content-Encoding": {"gzip"}, "Authorization": authorization}
		testkit.Bounded(t, size/4, func() {
			response := do(t, w, http.MethodPost, sendPath, header, bytes.NewReader(packed))
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			err = rpc.ParseError(response.StatusCode, body)
			requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_TOO_LARGE)
		})
	}
	testkit.Bounded(t, size/4, func() {
		response := do(t, w, http.MethodPost, sendPath, http.Header{
			"Content-Type": {"application/grpc-web+proto"}, "Grpc-Encoding": {"gzip"}, "Authorization": authorization,
		}, bytes.NewReader(enveloped))
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Contains(t, response.Header.Get("Grpc-Status")+strings.ToLower(string(body)), "8", "resource_exhausted")
		require.Less(t, len(body), 4096)
	})
}

// TestSocketsAgreeOnNoCompression holds that there is nothing to unpack on sockets.
func TestSocketsAgreeOnNoCompression(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dialer := w.dialer(SubprotocolProto)
	dialer.EnableCompression = true
	ws, response, err := dialer.DialContext(t.Context(), w.socketURL(), nil)
	require.NoError(t, err)
	require.NoError(t, ws.Close())
	require.Empty(t, response.Header.Values("Sec-WebSocket-Extensions"))
}

// TestTwistedRequests holds that what no service can read is the caller's fault,
// at once, whichever way it comes.
func TestTwistedRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	authorization := []string{"Bearer " + w.token(newPerson(), time.Hour)}
	id := uuid.NewString()
	for name, c := range map[string]struct{ kind, body string }{
		"deep arrays":          {"json", strings.Repeat("[", 1<<20-1)},
		"deep objects":         {"json", strings.Repeat(`{"a":`, 200_000)},
		"deep unknown field":   {"json", `{"conversationId":"` + id + `","x":` + strings.Repeat("[", 500_000) + strings.Repeat("]", 500_000) + "}"},
		"groups in groups":     {"proto", strings.Repeat("\x0b", 1<<20-1)},
		"text is not UTF-8":    {"json", `{"conversationId":"` + id + `","clientMessageId":"` + id + "\",\"text\":\"\xff\"}"},
		"field is not UTF-8":   {"proto", "\x0a\x24" + id + "\x12\x24" + id + "\x1a\x01\xff"},
		"a length of its own":  {"proto", "\x0a\xff\xff\xff\xff\x07"},
		"nothing but a number": {"json", "7"},
		"an endless number":    {"json", `{"text":` + strings.Repeat("9", 1<<19) + "}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			response := do(t, w, http.MethodPost, sendPath, http.Header{
				"Content-Type": {"application/" + c.kind}, "Authorization": authorization,
			}, strings.NewReader(c.body))
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			err = rpc.ParseError(response.StatusCode, body)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
			require.Less(t, len(body), 4096, "the answer does not repeat the question")
			require.Less(t, time.Since(began), patience/2)
		})
	}
}

// TestTwistedFrames holds the same of sockets, where the request stands in a frame.
func TestTwistedFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	deep := w.connect(newPerson(), SubprotocolJSON)
	nested := `{"id":2,"call":{"procedure":"` + sendPath + `","request":{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}}}`
	require.NoError(t, deep.ws.WriteMessage(websocket.TextMessage, []byte(nested)))
	require.Equal(t, errorv1.Reason_REASON_INVALID_ARGUMENT, deep.receive().GetReply().GetError().GetInfo().GetReason())
	require.NoError(t, deep.ws.WriteMessage(websocket.TextMessage, []byte(strings.Repeat("[", 60_000))))
	require.Equal(t, closeBadFrame, deep.closed().Code)

	binary := w.connect(newPerson(), SubprotocolProto)
	call := "\x0a" + string(rune(len(sendPath))) + sendPath + "\x1a\x03\x1a\x01\xff"
	require.NoError(t, binary.ws.WriteMessage(websocket.BinaryMessage, []byte("\x08\x02\x1a"+string(rune(len(call)))+call)))
	require.Equal(t, errorv1.Reason_REASON_INVALID_ARGUMENT, binary.receive().GetReply().GetError().GetInfo().GetReason())
	require.NoError(t, binary.ws.WriteMessage(websocket.BinaryMessage, []byte("\x08\x03\x12\x03\x0a\x01\xff")), "a token that is not UTF-8")
	require.Equal(t, closeBadFrame, binary.closed().Code)
}

// TestSlowFirstFrames holds that time before authentication is bounded whatever a
// client sends: a frame by the byte, or fragments without end.
func TestSlowFirstFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Socket.AuthTimeout = 500 * time.Millisecond })
	for name, chunk := range map[string][]byte{
		"a byte at a time": {0},
		"empty fragments":  {0x00, 0x80, 1, 2, 3, 4},
		"pongs":            {0x8a, 0x80, 1, 2, 3, 4},
		"pings":            {0x89, 0x80, 1, 2, 3, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := w.dial(SubprotocolProto)
			conn := c.ws.NetConn()
			if first := map[string][]byte{
				"a byte at a time": {0x82, 0xfe, 0x0f, 0xff, 1, 2, 3, 4}, // 4095 bytes are announced
				"empty fragments":  {0x02, 0x80, 1, 2, 3, 4},
			}[name]; first != nil {
				_, err := conn.Write(first)
				require.NoError(t, err)
			}
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						return
					case <-tick.C:
						if _, err := conn.Write(chunk); err != nil {
							return
						}
					}
				}
			}()
			_, _, err := c.ws.ReadMessage()
			var closed *websocket.CloseError
			require.ErrorAs(t, err, &closed)
			require.Equal(t, closeAuthTimeout, closed.Code)
		})
	}
}

// TestFragmentsAreOneFrame holds that a message cut into pieces is bounded as a whole.
func TestFragmentsAreOneFrame(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Socket.FrameBytes = 4096 })
	c := w.connect(newPerson(), SubprotocolProto)
	writer, err := c.ws.NextWriter(websocket.BinaryMessage)
	require.NoError(t, err)
	go func() {
		for range 100 { // it is cut off while it writes
			if _, err := writer.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	require.Equal(t, closeTooBig, c.closed().Code)
}
