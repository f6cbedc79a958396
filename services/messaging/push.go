package messaging

import (
	"context"
	"log/slog"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/realtime"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// pusher tells people's devices what was committed. A push is a hint: one that
// fails is counted and forgotten, the receivers repair by seq and Sync.
type pusher struct {
	realtime *realtime.Publisher
	metrics  *metrics
	log      *slog.Logger
}

func (p *pusher) entry(ctx context.Context, users []uuid.UUID, e *messagingv1.Entry) {
	p.push(ctx, users, &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: e}})
}

func (p *pusher) receipt(ctx context.Context, users []uuid.UUID, r *messagingv1.Receipt) {
	p.push(ctx, users, &realtimev1.Push{Event: &realtimev1.Push_Receipt{Receipt: r}})
}

// conversation tells one person: everybody sees a conversation differently.
func (p *pusher) conversation(ctx context.Context, user uuid.UUID, c *messagingv1.Conversation) {
	p.push(ctx, []uuid.UUID{user}, &realtimev1.Push{Event: &realtimev1.Push_Conversation{Conversation: c}})
}

func (p *pusher) push(ctx context.Context, users []uuid.UUID, push *realtimev1.Push) {
	if err := p.realtime.Push(ctx, users, push); err != nil {
		p.metrics.pushFailures.Add(ctx, 1)
		p.log.DebugContext(ctx, "push failed", "error", err)
	}
}

// pair lists the people of a direct conversation.
func pair(low, high *uuid.UUID) []uuid.UUID {
	if low == nil || high == nil {
		return nil
	}
	return []uuid.UUID{*low, *high}
}
