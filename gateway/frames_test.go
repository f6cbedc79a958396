package gateway

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// TestAppendMessage reads our frames with the library, at every kind of length.
func TestAppendMessage(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 125, 126, 127, 0xffff, 0x10000, 100_000} {
		payload := bytes.Repeat([]byte("x"), size)
		stream := appendMessage(nil, websocket.BinaryMessage, payload)
		conn := websocketOver(t, stream)
		opcode, got, err := conn.ReadMessage()
		require.NoError(t, err)
		require.Equal(t, websocket.BinaryMessage, opcode)
		require.Len(t, got, len(payload))
	}
}

// Proto3 JSON writes a number in either way.
func TestJSONNumbers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint32{
		`7`: 7, `"7"`: 7, `"4294967295"`: 4294967295, `null`: 0,
	} {
		frame, err := jsonFormat{}.decode([]byte(`{"id":` + text + `,"call":{"timeoutMs":` + text + `}}`))
		require.NoError(t, err, text)
		require.Equal(t, want, frame.GetId(), text)
		require.Equal(t, want, frame.GetCall().GetTimeoutMs(), text)
	}
	for _, text := range []string{`-1`, `"-1"`, `4294967296`, `"4294967296"`, `""`, `"x"`, `true`, `{}`} {
		_, err := jsonFormat{}.decode([]byte(`{"id":` + text + `}`))
		require.ErrorIs(t, err, errBadFrame, text)
	}
}

// websocketOver is a client that reads a prepared stream.
func websocketOver(t *testing.T, stream []byte) *websocket.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			request, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return err
			}
			sum := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
				"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:])); err != nil {
				return err
			}
			if _, err := conn.Write(stream); err != nil {
				return err
			}
			return conn.Close()
		}()
	}()
	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+listener.Addr().String(), nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, <-served)
		require.NoError(t, ws.Close())
		require.NoError(t, listener.Close())
	})
	return ws
}
