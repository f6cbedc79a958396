package user

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/limit"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// pace bounds what one person may do to others: what is told to many, and what is
// read about many. Services are not people: what they ask for is not counted.
type pace struct {
	// updates counts over all replicas: each change goes to every gateway and every
	// service.
	updates *limit.Limiter
	// looks and strangers count people, in this process alone. They are asked for
	// with every screen that is opened, and a round trip to Redis would cost more than
	// the answer; with n replicas the limit is n times as high, which is still one.
	looks, strangers *limit.Limiter
}

func newPace(rt *service.Runtime, cfg settings) (*pace, error) {
	perMinute := func(name string, n int) limit.Options {
		return limit.Options{Name: name, Burst: n, Every: time.Minute / time.Duration(n), Away: limit.Local}
	}
	p := &pace{}
	var err error
	if p.updates, err = limit.New(rt.Redis, rt.Clock, rt.Log, perMinute("user.update", cfg.UpdateLimit)); err != nil {
		return nil, err
	}
	if p.looks, err = limit.New(nil, rt.Clock, rt.Log, perMinute("user.look", cfg.LookLimit)); err != nil {
		return nil, err
	}
	p.strangers, err = limit.New(nil, rt.Clock, rt.Log, perMinute("user.stranger", cfg.StrangerLimit))
	return p, err
}

// update refuses one change too many of what is told to others.
func (p *pace) update(ctx context.Context) error {
	return p.updates.Check(ctx, identity.From(ctx).UserID.String())
}

// look refuses to show one person too many.
func (p *pace) look(ctx context.Context, people int) error { return check(ctx, p.looks, people) }

// stranger refuses to ask for too many ids that nobody may have.
func (p *pace) stranger(ctx context.Context, ids int) error { return check(ctx, p.strangers, ids) }

func check(ctx context.Context, l *limit.Limiter, n int) error {
	caller := identity.From(ctx).UserID
	if caller == uuid.Nil || n == 0 {
		return nil
	}
	decision, err := l.Take(ctx, caller.String(), n)
	if err != nil || decision.Allowed {
		return err
	}
	return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED,
		"too many people at once, try again later"), decision.RetryAfter)
}
