package seed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/cmd/parley/crowd"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

const (
	// workers is how many calls are made at once.
	workers = 32
	// lookAgain is the time between two looks for people who are not known yet.
	lookAgain = 100 * time.Millisecond
)

// acquaint waits until the services know the people, and starts the conversations, all by the API as the people
// themselves. It returns how many conversations were asked for.
func acquaint(ctx context.Context, o options, url string, people []crowd.Person, mint crowd.Mint) (int, error) {
	hc := httpClient()
	messaging := messagingv1connect.NewMessagingServiceClient(hc, url)
	users := userv1connect.NewUserServiceClient(hc, url)
	last := people[len(people)-1]
	// Events are taken in their order, give or take the few that are worked on at once; whoever is the last to
	// be known speaks for all, and the first message to anybody else is tried again.
	err := until(ctx, o.wait, func(ctx context.Context) error {
		_, err := users.GetUser(as(ctx, people[0].Token), &userv1.GetUserRequest{UserId: last.ID.String()})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("wait until the people have profiles: %w", err)
	}
	pairs := acquaintances(o, len(people))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, pair := range pairs {
		group.Go(func() error { return talk(ctx, o.wait, messaging, people[pair[0]], people[pair[1]], mint) })
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("start conversations: %w", err)
	}
	return len(pairs), nil
}

// acquaintances lists who talks to whom. The last two always do: it shows that messaging knows them.
func acquaintances(o options, people int) [][2]int {
	pairs := [][2]int{{people - 2, people - 1}}
	for i := range o.pairs {
		pairs = append(pairs, [2]int{2 * i, 2*i + 1})
	}
	for i := range people {
		for step := 1; step <= o.circle/2; step++ {
			pairs = append(pairs, [2]int{i, (i + step) % people})
		}
	}
	return pairs
}

// talk starts the conversation of two people, or finds it. Many conversations may take longer than a token lives.
func talk(ctx context.Context, wait time.Duration, messaging messagingv1connect.MessagingServiceClient, a, b crowd.Person, mint crowd.Mint) error {
	return until(ctx, wait, func(ctx context.Context) error {
		if time.Until(a.Expires) < time.Minute {
			if err := mint.Renew(&a, time.Now()); err != nil {
				return err
			}
		}
		_, err := messaging.CreateDirectConversation(as(ctx, a.Token), &messagingv1.CreateDirectConversationRequest{UserId: b.ID.String()})
		return err
	})
}

// as makes a call on behalf of the person whose token it is.
func as(ctx context.Context, token string) context.Context {
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("Authorization", "Bearer "+token)
	return ctx
}

// until repeats a call as long as a person is not known yet or the server is busy.
func until(ctx context.Context, patience time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := call(ctx)
		if err == nil {
			return nil
		}
		wait := lookAgain
		switch reason := rpc.ReasonOf(err); {
		case reason == errorv1.Reason_REASON_USER_NOT_FOUND, reason == errorv1.Reason_REASON_RATE_LIMITED,
			reason == errorv1.Reason_REASON_OVERLOADED, connect.CodeOf(err) == connect.CodeUnavailable:
			if after := rpc.InfoOf(err).GetRetryAfter(); after != nil {
				wait = max(wait, after.AsDuration())
			}
		default:
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		}
	}
}
