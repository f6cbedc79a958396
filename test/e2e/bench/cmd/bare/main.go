// Command bare is the yardstick of `make bench`: the least that a Go program must do to carry a message,
// written straight on gorilla/websocket and pgx. It speaks as much of docs/protocol.md as `parley load` needs:
// one INSERT per message, committed before the acknowledgement, then the two pushes.
//
// It checks no token, numbers messages in memory, knows no permissions, no receipts, no retries, no second
// process, and forgets everything. So it is a lower bound for this stack, and no server.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	start = "/parley.messaging.v1.MessagingService/CreateDirectConversation"
	send  = "/parley.messaging.v1.MessagingService/SendMessage"
)

const schema = `
CREATE TABLE message (
    id bigserial PRIMARY KEY, conversation text NOT NULL, sender text NOT NULL, body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON message (conversation, id)`

const insert = `INSERT INTO message (conversation, sender, body) VALUES ($1, $2, $3) RETURNING created_at`

func main() {
	listen := flag.String("listen", "", "host:port")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *listen, os.Getenv("BARE_POSTGRES"))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, database string) error {
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, schema); err != nil {
		return fmt.Errorf("make the table: %w", err)
	}
	b := &bare{pool: pool, people: map[string]*person{}, talks: map[string]*talk{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/ws", b.serve)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = server.Close() }) // it is over in any case
	if err := server.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

type bare struct {
	pool *pgxpool.Pool

	mu     sync.Mutex
	people map[string]*person
	talks  map[string]*talk
}

// person is a connection; the last one of each counts.
type person struct {
	id string
	ws *websocket.Conn
	mu sync.Mutex // of writing
}

type talk struct {
	id    string
	among [2]string

	mu  sync.Mutex
	seq int64
}

var upgrader = websocket.Upgrader{
	ReadBufferSize: 1024, WriteBufferSize: 1024, WriteBufferPool: &sync.Pool{},
	Subprotocols: []string{"parley.v1.proto"}, CheckOrigin: func(*http.Request) bool { return true },
}

func (b *bare) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // answered
	}
	defer func() { _ = ws.Close() }()
	p := &person{ws: ws}
	for {
		_, data, err := ws.ReadMessage()
		if err != nil {
			return
		}
		var frame realtimev1.ClientFrame
		if proto.Unmarshal(data, &frame) != nil {
			return
		}
		switch f := frame.GetFrame().(type) {
		case *realtimev1.ClientFrame_Authenticate:
			p.id = subject(f.Authenticate.GetAccessToken())
			b.mu.Lock()
			b.people[p.id] = p
			b.mu.Unlock()
			p.write(&realtimev1.ServerFrame{Id: frame.GetId(), Frame: &realtimev1.ServerFrame_Welcome{Welcome: &realtimev1.Welcome{
				UserId: p.id, TokenExpiresAt: timestamppb.New(time.Now().Add(time.Hour)), IdleInterval: durationpb.New(time.Hour),
			}}})
		case *realtimev1.ClientFrame_Call:
			go b.call(r.Context(), p, frame.GetId(), f.Call)
		}
	}
}

// subject reads who the token is for, and believes it.
func subject(token string) string {
	parts := strings.Split(token, ".")
	var claims struct {
		Subject string `json:"sub"`
	}
	if len(parts) == 3 {
		if raw, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			_ = json.Unmarshal(raw, &claims) // nobody, then
		}
	}
	return claims.Subject
}

func (p *person) write(m proto.Message) {
	if data, err := proto.Marshal(m); err == nil {
		p.writeRaw(data)
	}
}

func (p *person) writeRaw(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.ws.WriteMessage(websocket.BinaryMessage, data) // the reader sees the end
}

func (b *bare) call(ctx context.Context, p *person, id uint32, call *realtimev1.Call) {
	switch call.GetProcedure() {
	case start:
		var request messagingv1.CreateDirectConversationRequest
		if proto.Unmarshal(call.GetRequest(), &request) != nil {
			return
		}
		t := &talk{id: uuid.NewString(), among: [2]string{p.id, request.GetUserId()}}
		b.mu.Lock()
		b.talks[t.id] = t
		b.mu.Unlock()
		p.reply(id, &messagingv1.CreateDirectConversationResponse{Conversation: &messagingv1.Conversation{Id: t.id}})
	case send:
		var request messagingv1.SendMessageRequest
		if proto.Unmarshal(call.GetRequest(), &request) == nil {
			b.send(ctx, p, id, &request)
		}
	}
}

func (p *person) reply(id uint32, m proto.Message) {
	data, err := proto.Marshal(m)
	if err != nil {
		return
	}
	p.write(&realtimev1.ServerFrame{Id: id, Frame: &realtimev1.ServerFrame_Reply{
		Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: data}},
	}})
}

func (b *bare) send(ctx context.Context, p *person, id uint32, request *messagingv1.SendMessageRequest) {
	b.mu.Lock()
	t := b.talks[request.GetConversationId()]
	b.mu.Unlock()
	if t == nil {
		return
	}
	var at time.Time
	if err := b.pool.QueryRow(ctx, insert, t.id, p.id, request.GetText()).Scan(&at); err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock() // pushes leave in the order of their numbers
	t.seq++
	p.reply(id, &messagingv1.SendMessageResponse{Seq: t.seq, Ordinal: t.seq, CreatedAt: timestamppb.New(at)})
	data, err := proto.Marshal(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{
		Event: &realtimev1.Push_Entry{Entry: &messagingv1.Entry{
			ConversationId: t.id, Seq: t.seq, Ordinal: t.seq, SenderId: p.id, CreatedAt: timestamppb.New(at),
			ClientMessageId: request.GetClientMessageId(),
			Body:            &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: request.GetText()}},
		}},
	}}})
	if err != nil {
		return
	}
	for _, one := range t.among {
		b.mu.Lock()
		to := b.people[one]
		b.mu.Unlock()
		if to != nil {
			to.writeRaw(data)
		}
	}
}
