package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// ErrTooLarge is returned for a push that does not fit into one NATS message.
var ErrTooLarge = errors.New("push is larger than a message of the bus may be")

// Publisher sends pushes. It is safe for concurrent use.
type Publisher struct {
	conn     *nats.Conn
	loopback *Loopback
	log      *slog.Logger
}

// New makes a publisher on a connection that the caller owns and closes. The loopback
// is nil unless NATS runs in the same process.
func New(conn *nats.Conn, loopback *Loopback, log *slog.Logger) *Publisher {
	return &Publisher{conn: conn, loopback: loopback, log: log}
}

// Push encodes the push once and publishes it to each of the users. It returns
// when the messages are in the connection's buffer: it does not wait for the
// server. While NATS is away it fails at once. By the loopback, the gateway of this
// process has them when it returns.
//
// An error means that some or all of the users will not get this push. Callers
// log it and go on: the receivers repair by themselves. ErrTooLarge and encoding
// errors concern all users.
func (p *Publisher) Push(ctx context.Context, users []uuid.UUID, push *realtimev1.Push) error {
	if len(users) == 0 {
		return nil
	}
	frame, err := Encode(push)
	if err != nil {
		return err
	}
	if limit := p.conn.MaxPayload(); limit > 0 && int64(len(frame)) > limit {
		return fmt.Errorf("push of %d bytes: %w", len(frame), ErrTooLarge)
	}
	traced, end := header(ctx, len(users))
	defer end()
	if p.loopback.carry(func(s *Subscriber) { s.handAll(ctx, users, frame, traced) }) {
		return nil
	}
	var failed int
	var cause error
	for _, user := range users {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("push: %w", err)
		}
		if err := p.publish(Subject(user), frame, traced); err != nil {
			failed++
			cause = err
		}
	}
	if cause != nil {
		p.log.DebugContext(ctx, "push not published", "failed", failed, "users", len(users), "error", cause)
		return fmt.Errorf("push to %d of %d users: %w", failed, len(users), cause)
	}
	return nil
}

func (p *Publisher) publish(subject string, frame []byte, traced nats.Header) error {
	if traced == nil {
		return p.conn.Publish(subject, frame)
	}
	return p.conn.PublishMsg(&nats.Msg{Subject: subject, Header: traced, Data: frame})
}

// Encode gives the bytes that Push publishes.
func Encode(push *realtimev1.Push) ([]byte, error) {
	frame, err := proto.Marshal(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: push}})
	if err != nil {
		return nil, fmt.Errorf("encode push: %w", err)
	}
	return frame, nil
}
