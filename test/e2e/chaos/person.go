package chaos

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/history"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

const (
	// callWithin bounds one call over HTTP.
	callWithin = 10 * time.Second
	// patience bounds what waits for the system to come back: far above the figure
	// that is asserted, so that a late recovery is measured and not cut off.
	patience = 90 * time.Second
	poll     = 20 * time.Millisecond
	// renewBefore is how long before its end a token is refreshed. Auth may be dead
	// for a round and more.
	renewBefore = 4 * time.Minute
	// password is everybody's.
	password = "of no importance"
)

// web is one client for all: they are one browser with many tabs.
var web = &http.Client{Timeout: callWithin}

// person is somebody with an account and one session.
type person struct {
	id, username string
	gateways     []string

	mu     sync.Mutex
	tokens *authv1.Tokens
}

// register makes an account through a gateway, as often as it takes.
func register(ctx context.Context, gateways []string) (*person, error) {
	p := &person{gateways: gateways, username: "u" + strings.ReplaceAll(uuid.NewString(), "-", "")[:20]}
	req := &authv1.RegisterRequest{
		Email: p.username + "@example.org", Username: p.username, Password: password, DeviceName: "phone",
	}
	err := p.insist(ctx, func(ctx context.Context, base string) error {
		res, err := authv1connect.NewAuthServiceClient(web, base).Register(ctx, req)
		if err == nil {
			p.id, p.tokens = res.GetUserId(), res.GetTokens()
		}
		return err
	})
	if connect.CodeOf(err) == connect.CodeAlreadyExists { // by a try of ours whose answer was lost
		err = p.logIn(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	return p, nil
}

// logIn starts another session.
func (p *person) logIn(ctx context.Context) error {
	req := &authv1.LogInRequest{Login: p.username, Password: password, DeviceName: "laptop"}
	err := p.insist(ctx, func(ctx context.Context, base string) error {
		res, err := authv1connect.NewAuthServiceClient(web, base).LogIn(ctx, req)
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.id, p.tokens = res.GetUserId(), res.GetTokens()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	return nil
}

// refresh renews the session, though there is time.
func (p *person) refresh(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.insist(ctx, func(ctx context.Context, base string) error {
		res, err := authv1connect.NewAuthServiceClient(web, base).Refresh(ctx, &authv1.RefreshRequest{RefreshToken: p.tokens.GetRefreshToken()})
		if err == nil {
			p.tokens = res.GetTokens()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	return nil
}

// write sends one message, once however often it is tried.
func (p *person) write(ctx context.Context, conversation, words string) error {
	req := &messagingv1.SendMessageRequest{ConversationId: conversation, ClientMessageId: uuid.NewString(), Text: words}
	err := p.insist(ctx, func(ctx context.Context, base string) error {
		_, err := messagingv1connect.NewMessagingServiceClient(web, base, p.bearer()).SendMessage(ctx, req)
		return err
	})
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// insist calls at one gateway after the other until a call succeeds, or until no
// try can: the error says what is wrong with the request, or ctx or patience ends.
func (p *person) insist(ctx context.Context, call func(ctx context.Context, base string) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for n := 0; ; n++ {
		err := call(ctx, "http://"+p.gateways[n%len(p.gateways)])
		if err == nil || !passes(err) {
			return err
		}
		if !pause(ctx, min(time.Duration(n+1)*50*time.Millisecond, time.Second)) {
			return fmt.Errorf("no success within %s: %w", patience, err)
		}
	}
}

// passes tells errors that another try may mend.
func passes(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeResourceExhausted, connect.CodeAborted, connect.CodeUnknown:
		return true
	default:
		return false
	}
}

// token returns an access token that is good for a while. While auth is away the
// old one has to do.
func (p *person) token(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Until(p.tokens.GetAccessTokenExpiresAt().AsTime()) > renewBefore {
		return p.tokens.GetAccessToken(), nil
	}
	for _, gateway := range p.gateways {
		res, err := authv1connect.NewAuthServiceClient(web, "http://"+gateway).Refresh(ctx,
			&authv1.RefreshRequest{RefreshToken: p.tokens.GetRefreshToken()})
		if err == nil {
			p.tokens = res.GetTokens()
			break
		}
	}
	return p.tokens.GetAccessToken(), nil
}

// bearer adds the person's token to calls over HTTP.
func (p *person) bearer() connect.ClientOption {
	return connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			raw, err := p.token(ctx)
			if err != nil {
				return nil, err
			}
			req.Header().Set("Authorization", "Bearer "+raw)
			return next(ctx, req)
		}
	}))
}

// talkTo returns the direct conversation with another person.
func (p *person) talkTo(ctx context.Context, other *person) (id string, err error) {
	err = p.insist(ctx, func(ctx context.Context, base string) error {
		res, err := messagingv1connect.NewMessagingServiceClient(web, base, p.bearer()).
			CreateDirectConversation(ctx, &messagingv1.CreateDirectConversationRequest{UserId: other.id})
		id = res.GetConversation().GetId()
		if connect.CodeOf(err) == connect.CodeNotFound { // messaging is told of new people by an event
			return connect.NewError(connect.CodeUnavailable, err)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("start a conversation: %w", err)
	}
	return id, nil
}

// sees says whether the person can look up another one's profile.
func (p *person) sees(ctx context.Context, other *person) error {
	err := p.insist(ctx, func(ctx context.Context, base string) error {
		_, err := userv1connect.NewUserServiceClient(web, base, p.bearer()).GetUser(ctx, &userv1.GetUserRequest{UserId: other.id})
		return err
	})
	if err != nil {
		return fmt.Errorf("look up a profile: %w", err)
	}
	return nil
}

// read adds to a log what a conversation holds after it.
func (p *person) read(ctx context.Context, conversation string, known []history.Entry, intern func(string) string) ([]history.Entry, error) {
	for {
		var page []*messagingv1.Entry
		var more bool
		err := p.insist(ctx, func(ctx context.Context, base string) error {
			res, err := messagingv1connect.NewMessagingServiceClient(web, base, p.bearer()).ListEvents(ctx,
				&messagingv1.ListEventsRequest{ConversationId: conversation, AfterSeq: int64(len(known)), Limit: 200})
			page, more = res.GetEntries(), res.GetHasMore()
			return err
		})
		if err != nil {
			return known, fmt.Errorf("read the log: %w", err)
		}
		for _, e := range page {
			known = append(known, entryOf(e, intern))
		}
		if !more || len(page) == 0 {
			return known, nil
		}
	}
}

// entryOf is an entry as the history checker knows it. A long run holds millions:
// equal ids are one string.
func entryOf(e *messagingv1.Entry, intern func(string) string) history.Entry {
	entry := history.Entry{
		Seq: e.GetSeq(), Ordinal: e.GetOrdinal(), Sender: intern(e.GetSenderId()), ClientID: intern(e.GetClientMessageId()),
		At: e.GetCreatedAt().AsTime().UnixNano(), Message: e.GetMessage() != nil,
	}
	if entry.Message {
		entry.Content = history.Hash(e.GetMessage().GetText())
	}
	return entry
}

// pause waits unless ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
