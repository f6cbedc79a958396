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
	workers = 8
	// lookAgain is the time between two looks for people who are not known yet.
	lookAgain = 100 * time.Millisecond
)

// acquaint waits until the services know the people, and starts the conversations, all by the API as the people
// themselves.
func acquaint(ctx context.Context, o options, url string, people []crowd.Person) error {
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	hc := httpClient()
	messaging := messagingv1connect.NewMessagingServiceClient(hc, url)
	users := userv1connect.NewUserServiceClient(hc, url)
	last := people[len(people)-1]
	// Events are taken in their order, give or take the few that are worked on at once; whoever is the last to
	// be known speaks for all, and the first message to anybody else is tried again.
	err := until(ctx, func(ctx context.Context) error {
		_, err := users.GetUser(as(ctx, people[0]), &userv1.GetUserRequest{UserId: last.ID.String()})
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until the people have profiles: %w", err)
	}
	if err := talk(ctx, messaging, people[len(people)-2], last); err != nil {
		return fmt.Errorf("wait until the people can be written to: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for i := range o.pairs {
		group.Go(func() error { return talk(ctx, messaging, people[2*i], people[2*i+1]) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("start conversations: %w", err)
	}
	return nil
}

// talk starts the conversation of two people, or finds it.
func talk(ctx context.Context, messaging messagingv1connect.MessagingServiceClient, a, b crowd.Person) error {
	return until(ctx, func(ctx context.Context) error {
		_, err := messaging.CreateDirectConversation(as(ctx, a), &messagingv1.CreateDirectConversationRequest{UserId: b.ID.String()})
		return err
	})
}

// as makes a call on behalf of a person.
func as(ctx context.Context, p crowd.Person) context.Context {
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("Authorization", "Bearer "+p.Token)
	return ctx
}

// until repeats a call as long as a person is not known yet or the server is busy.
func until(ctx context.Context, call func(context.Context) error) error {
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
