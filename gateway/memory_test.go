package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// idleBudget is what an idle socket may cost in the gateway, in bytes.
const idleBudget = 10 << 10

// TestIdleSocketsAreSmall holds the price of an idle socket: live heap plus
// stacks. The clients are bare TCP connections, so nearly nothing of the
// difference is theirs; what the kernel holds is not counted.
//
// It is not parallel: other tests would be measured too.
func TestIdleSocketsAreSmall(t *testing.T) { //nolint:paralleltest // measures the process
	const count = 2000
	w := newWorld(t, func(s *setup) {
		s.cfg.Exempt = []string{"127.0.0.0/8"}
		s.cfg.Limits.NodeSocketRate, s.cfg.Limits.NodeSocketBurst = 1e6, 1e6
	})
	openIdle(t, w, 200) // pools and tables
	before := memoryInUse()
	openIdle(t, w, count)
	perSocket := (memoryInUse() - before) / count
	t.Logf("an idle socket holds %d bytes, the client's end included", perSocket)
	if !raceEnabled {
		require.Less(t, perSocket, int64(idleBudget))
	}
}

// watchBudget is what thirty watches may cost, in bytes.
const watchBudget = 2 << 10

// TestWatchesAreSmall holds the price of thirty watches of a socket, in the worst
// case: nobody is watched by two.
//
// It is not parallel: other tests would be measured too.
func TestWatchesAreSmall(t *testing.T) { //nolint:paralleltest // measures the process
	const count, each = 1000, 30
	w, _ := newWatchWorld(t, func(s *setup) {
		s.cfg.Exempt = []string{"127.0.0.0/8"}
		s.cfg.Limits.NodeSocketRate, s.cfg.Limits.NodeSocketBurst = 1e6, 1e6
		s.extra["user"] = everybodyIsOnline()
	})
	conns := make([]net.Conn, count+100)
	for i := range conns {
		conns[i] = openSocket(t, w)
	}
	watchThirty(t, conns[:100], each) // pools, tables, workers
	before := memoryInUse()
	watchThirty(t, conns[100:], each)
	links, people := w.gateway.presence.watches.total()
	require.EqualValues(t, (count+100)*each, links)
	require.Equal(t, links, people)
	var perSocket int64
	require.Eventually(t, func() bool { // workers rest for some seconds
		perSocket = (memoryInUse() - before) / count
		return perSocket < watchBudget
	}, patience, 200*time.Millisecond, "too much")
	t.Logf("thirty watches hold %d bytes", perSocket)
}

func everybodyIsOnline() http.Handler {
	s := &everybody{}
	_, handler := userv1connect.NewPresenceServiceHandler(s)
	return handler
}

type everybody struct {
	userv1connect.UnimplementedPresenceServiceHandler
}

func (*everybody) BatchGetPresence(_ context.Context, r *userv1.BatchGetPresenceRequest) (*userv1.BatchGetPresenceResponse, error) {
	res := &userv1.BatchGetPresenceResponse{}
	for _, id := range r.GetUserIds() {
		res.Presences = append(res.Presences, &realtimev1.Presence{UserId: id, State: realtimev1.PresenceState_PRESENCE_STATE_ONLINE, Version: 1})
	}
	return res, nil
}

func watchThirty(t *testing.T, conns []net.Conn, each int) {
	t.Helper()
	for _, conn := range conns {
		watch := &realtimev1.Watch{}
		for range each {
			watch.UserIds = append(watch.UserIds, uuid.NewString())
		}
		frame, err := proto.Marshal(&realtimev1.ClientFrame{Id: 7, Frame: &realtimev1.ClientFrame_Watch{Watch: watch}})
		require.NoError(t, err)
		_, err = conn.Write(maskedFrame(frame))
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
		reader := bufio.NewReaderSize(conn, 64)
		head := make([]byte, 4) // longer than 125 bytes, so two bytes of length follow
		_, err = readFull(reader, head)
		require.NoError(t, err)
		rest := make([]byte, int(head[2])<<8|int(head[3]))
		_, err = readFull(reader, rest)
		require.NoError(t, err)
	}
}

func readFull(reader *bufio.Reader, into []byte) (int, error) {
	read := 0
	for read < len(into) {
		n, err := reader.Read(into[read:])
		if err != nil {
			return read, err
		}
		read += n
	}
	return read, nil
}

// openSocket opens a socket without a WebSocket library, with the welcome read.
func openSocket(t *testing.T, w *world) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nAuthorization: Bearer %s\r\n\r\n",
		SocketPath, w.address, base64.StdEncoding.EncodeToString(make([]byte, 16)), w.token(newPerson(), time.Hour))
	require.NoError(t, err)
	reader := bufio.NewReaderSize(conn, 1024)
	response, err := http.ReadResponse(reader, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, response.StatusCode)
	_, err = reader.Peek(2)
	require.NoError(t, err)
	head, _ := reader.Peek(4)
	length, skip := int(head[1]), 2
	if length == 126 {
		length, skip = int(head[2])<<8|int(head[3]), 4
	}
	_, err = readFull(reader, make([]byte, skip+length))
	require.NoError(t, err)
	require.Zero(t, reader.Buffered())
	return conn
}

func memoryInUse() int64 {
	// Thrice: the first collection empties the pools only halfway, and it is the
	// collector that shrinks stacks.
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func openIdle(t *testing.T, w *world, count int) {
	t.Helper()
	var group sync.WaitGroup
	jobs := make(chan person)
	for range 16 {
		group.Go(func() {
			for p := range jobs {
				openBare(t, w, w.token(p, time.Hour))
			}
		})
	}
	for range count {
		jobs <- newPerson()
	}
	close(jobs)
	group.Wait()
}

// openBare opens a socket without a WebSocket library and waits for the welcome.
func openBare(t *testing.T, w *world, raw string) {
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.address)
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	t.Cleanup(func() { _ = conn.Close() })
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
		SocketPath, w.address, base64.StdEncoding.EncodeToString(make([]byte, 16)))
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Errorf("upgrade: %v", err)
		return
	}
	reader := bufio.NewReaderSize(conn, 1024)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("upgrade: %v %v", response, err)
		return
	}
	frame, err := proto.Marshal(&realtimev1.ClientFrame{Id: 1, Frame: &realtimev1.ClientFrame_Authenticate{
		Authenticate: &realtimev1.Authenticate{AccessToken: raw},
	}})
	if err != nil {
		t.Errorf("encode: %v", err)
		return
	}
	if _, err := conn.Write(maskedFrame(frame)); err != nil {
		t.Errorf("authenticate: %v", err)
		return
	}
	if _, err := reader.ReadByte(); err != nil { // the welcome begins
		t.Errorf("welcome: %v", err)
	}
}

// maskedFrame is a client's binary message of at most 64 KiB, under a mask of
// zeros.
func maskedFrame(payload []byte) []byte {
	var out bytes.Buffer
	out.Write([]byte{finalFrame | 2, 0x80 | 126, byte(len(payload) >> 8), byte(len(payload))})
	out.WriteString(strings.Repeat("\x00", 4))
	out.Write(payload)
	return out.Bytes()
}

// BenchmarkPushes is the way of pushes from the bus to sockets: one push to
// members who are all connected here, until the last has read it.
func BenchmarkPushes(b *testing.B) {
	const members = 100
	w := newWorld(b, func(s *setup) { s.cfg.Exempt = []string{"127.0.0.0/8"} })
	var users []uuid.UUID
	sockets := make([]*client, members)
	for i := range members {
		p := newPerson()
		users = append(users, p.user)
		sockets[i] = w.connect(p, SubprotocolProto)
		require.NoError(b, sockets[i].ws.SetReadDeadline(time.Time{}))
	}
	for b.Loop() {
		require.NoError(b, w.publisher.Push(b.Context(), users, entryPush(1)))
		for _, c := range sockets {
			_, _, err := c.ws.ReadMessage()
			require.NoError(b, err)
		}
	}
	b.ReportMetric(float64(b.N*members)/b.Elapsed().Seconds(), "deliveries/s")
}
