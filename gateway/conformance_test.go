package gateway

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const protocolPage = "../docs/protocol.md"

// conformanceRow is a row of the table in the protocol's page.
type conformanceRow struct {
	name, given, in string
	sends, answers  []string
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// readConformance takes the rows from the table whose first column is "Case".
func readConformance(t *testing.T) []conformanceRow {
	t.Helper()
	page, err := os.ReadFile(protocolPage)
	require.NoError(t, err)
	var rows []conformanceRow
	inTable := false
	for line := range strings.SplitSeq(string(page), "\n") {
		switch {
		case strings.HasPrefix(line, "| Case |"):
			inTable = true
			continue
		case !strings.HasPrefix(line, "|"):
			inTable = false
			continue
		case !inTable || strings.HasPrefix(line, "|---"):
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		require.Len(t, cells, 5, line)
		row := conformanceRow{
			name: strings.TrimSpace(cells[0]), given: strings.TrimSpace(cells[1]), in: strings.TrimSpace(cells[2]),
		}
		for _, span := range codeSpan.FindAllStringSubmatch(cells[3], -1) {
			row.sends = append(row.sends, span[1])
		}
		for _, span := range codeSpan.FindAllStringSubmatch(cells[4], -1) {
			row.answers = append(row.answers, span[1])
		}
		require.NotEmpty(t, row.answers, line)
		rows = append(rows, row)
	}
	require.Greater(t, len(rows), 50, "the table was not found")
	return rows
}

func TestConformance(t *testing.T) {
	t.Parallel()
	rows := readConformance(t)
	w := newWorld(t, func(s *setup) {
		s.cfg.Origins = []string{"https://chat.example.org"}
		s.cfg.Socket.AuthTimeout = 3 * time.Second // one row waits for it
		s.cfg.Limits.AddressStrangers = 1000
		s.backend.send = func(ctx context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			if r.GetText() == "hang" {
				<-ctx.Done()
			}
			return &messagingv1.SendMessageResponse{Seq: 1}, nil
		}
	})
	for _, row := range rows {
		for _, subprotocol := range []string{SubprotocolProto, SubprotocolJSON} {
			if row.in == "json" && subprotocol != SubprotocolJSON {
				continue
			}
			t.Run(row.name+"/"+subprotocol, func(t *testing.T) {
				t.Parallel()
				(&conformance{world: w, t: t, subprotocol: subprotocol, row: row}).run()
			})
		}
	}
}

// conformance is the run of one row.
type conformance struct {
	*world
	t           *testing.T
	subprotocol string
	row         conformanceRow
	values      map[string]string
	client      *client
	pongs       chan struct{}
}

func (c *conformance) run() {
	c.fill()
	sends, answers := c.row.sends, c.row.answers
	if c.row.given == "upgrade" {
		answered := c.upgrade(sends[0], answers[0])
		if answered {
			return
		}
		sends = sends[1:]
	} else {
		c.open(nil)
	}
	if c.row.given == "welcomed" {
		c.client.authenticate(1, c.values["$TOKEN"])
		c.expect("welcome 1")
	}
	for _, what := range sends {
		c.send(what)
	}
	for _, answer := range answers {
		c.expect(answer)
	}
}

// fill makes what the placeholders stand for.
func (c *conformance) fill() {
	p, revoked := newPerson(), newPerson()
	forger := world{t: c.t, clock: c.clock}
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(c.t, err)
	forger.key = token.SigningKey{ID: keyID, Private: private}
	c.values = map[string]string{
		"$TOKEN":    c.token(p, 30*time.Minute),
		"$NEWER":    c.token(p, time.Hour),
		"$EXPIRED":  c.token(p, -time.Minute),
		"$OTHER":    c.token(person{p.user, uuid.New()}, time.Hour),
		"$STRANGER": c.token(newPerson(), time.Hour),
		"$REVOKED":  c.token(revoked, time.Hour),
		"$FORGED":   forger.token(p, time.Hour),
		"$UUID":     uuid.NewString(),
		"$LANE65":   strings.Repeat("l", maxLane+1),
		"$CROWD":    crowd(c.gateway.cfg.Socket.Watches + 1),
	}
	c.revocations.Add(revoked.session, c.clock.Now())
}

// crowd is so many ids as a JSON array.
func crowd(count int) string {
	ids := make([]string, count)
	for i := range ids {
		ids[i] = `"` + uuid.NewString() + `"`
	}
	return "[" + strings.Join(ids, ",") + "]"
}

func (c *conformance) replace(text string) string {
	for name, value := range c.values {
		text = strings.ReplaceAll(text, name, value)
	}
	return text
}

func (c *conformance) open(header http.Header) *http.Response {
	dialer := c.dialer(c.subprotocol)
	if header.Get("Sec-WebSocket-Protocol") != "" {
		dialer.Subprotocols = nil
	}
	ws, response, err := dialer.DialContext(c.t.Context(), c.socketURL(), header)
	if err != nil {
		require.ErrorIs(c.t, err, websocket.ErrBadHandshake)
		return response
	}
	require.NoError(c.t, ws.SetReadDeadline(time.Now().Add(patience)))
	c.t.Cleanup(func() { _ = ws.Close() })
	c.client = &client{t: c.t, ws: ws, json: c.subprotocol == SubprotocolJSON}
	c.pongs = make(chan struct{}, 1)
	ws.SetPongHandler(func(string) error {
		c.pongs <- struct{}{}
		return errPong
	})
	return response
}

// errPong ends the client's reading when a pong has come.
var errPong = fmt.Errorf("pong")

// upgrade opens the socket with a header, or expects that it is refused.
func (c *conformance) upgrade(line, answer string) (answered bool) {
	name, value, found := strings.Cut(c.replace(line), ": ")
	require.True(c.t, found, line)
	response := c.open(http.Header{http.CanonicalHeaderKey(name): {value}})
	if !strings.HasPrefix(answer, "http ") {
		require.Equal(c.t, http.StatusSwitchingProtocols, response.StatusCode)
		return false
	}
	body, err := io.ReadAll(response.Body)
	require.NoError(c.t, err)
	var wire struct {
		Code    connect.Code `json:"code"`
		Details []struct {
			Debug struct {
				Reason string `json:"reason"`
			} `json:"debug"`
		} `json:"details"`
	}
	require.NoError(c.t, json.Unmarshal(body, &wire), string(body))
	require.NotEmpty(c.t, wire.Details)
	require.Equal(c.t, answer, fmt.Sprintf("http %d %s", response.StatusCode,
		strings.TrimPrefix(wire.Details[0].Debug.Reason, "REASON_")))
	return true
}

func (c *conformance) send(what string) {
	own, other, garbage := websocket.BinaryMessage, websocket.TextMessage, []byte{0xff, 0xff}
	limit := c.gateway.cfg.Socket.FrameBytes
	if c.client.json {
		own, other, garbage = other, own, []byte("{")
	}
	if c.row.given == "connected" {
		limit = c.gateway.cfg.Socket.AuthFrameBytes
	}
	ws := c.client.ws
	var err error
	switch what {
	case "garbage":
		err = ws.WriteMessage(own, garbage)
	case "other type":
		err = ws.WriteMessage(other, []byte("{}"))
	case "not UTF-8":
		err = ws.WriteMessage(own, []byte("{\"id\":2,\"ping\":{},\"x\":\"\xff\"}"))
	case "big frame":
		err = ws.WriteMessage(own, make([]byte, limit+1))
	case "ws ping":
		err = ws.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(patience))
	case "ws close 1000":
		err = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(patience))
	case "unmasked":
		_, err = ws.NetConn().Write([]byte{finalFrame | websocket.BinaryMessage, 1, 'x'})
	default:
		err = ws.WriteMessage(own, c.encode(c.replace(what)))
	}
	require.NoError(c.t, err)
}

// encode makes the bytes of a frame that the page shows as JSON.
func (c *conformance) encode(text string) []byte {
	if c.client.json {
		return []byte(text)
	}
	frame, err := jsonFormat{}.decode([]byte(text))
	require.NoError(c.t, err, text)
	if call := frame.GetCall(); call != nil {
		request := []byte(nil)
		if method, ok := rpc.Methods()[call.GetProcedure()]; ok {
			message := dynamicpb.NewMessage(method.Input)
			require.NoError(c.t, protojson.Unmarshal(call.GetRequest(), message))
			request, err = proto.Marshal(message)
			require.NoError(c.t, err)
		}
		call.Request = request
	}
	data, err := proto.Marshal(frame)
	require.NoError(c.t, err)
	return data
}

func (c *conformance) expect(answer string) {
	switch kind, _, _ := strings.Cut(answer, " "); kind {
	case "close":
		_, _, err := c.client.ws.ReadMessage()
		var closed *websocket.CloseError
		require.ErrorAs(c.t, err, &closed, answer)
		require.Equal(c.t, answer, strings.TrimSpace(fmt.Sprintf("close %d %s", closed.Code, closed.Text)))
	case "ws":
		_, _, err := c.client.ws.ReadMessage()
		require.ErrorIs(c.t, err, errPong)
		<-c.pongs
	default:
		require.Equal(c.t, answer, describeFrame(c.client.receive()))
	}
}

// describeFrame writes a frame as the page does.
func describeFrame(frame *realtimev1.ServerFrame) string {
	switch kind := frame.GetFrame().(type) {
	case *realtimev1.ServerFrame_Welcome:
		return fmt.Sprintf("welcome %d", frame.GetId())
	case *realtimev1.ServerFrame_Pong:
		return fmt.Sprintf("pong %d", frame.GetId())
	case *realtimev1.ServerFrame_Reply:
		if failure := kind.Reply.GetError(); failure != nil {
			return fmt.Sprintf("reply %d %s %s", frame.GetId(), failure.GetCode(), reasonName(failure.GetInfo().GetReason()))
		}
		return fmt.Sprintf("reply %d ok", frame.GetId())
	default:
		return fmt.Sprintf("%T", kind)
	}
}

// TestProtocolPageExample holds the page's bytes.
func TestProtocolPageExample(t *testing.T) {
	t.Parallel()
	data, err := proto.Marshal(&realtimev1.ClientFrame{Id: 1, Frame: &realtimev1.ClientFrame_Authenticate{
		Authenticate: &realtimev1.Authenticate{AccessToken: "t"},
	}})
	require.NoError(t, err)
	page, err := os.ReadFile(protocolPage)
	require.NoError(t, err)
	require.Contains(t, string(page), "`"+strings.TrimSpace(fmt.Sprintf("% x", data))+"`")
}
