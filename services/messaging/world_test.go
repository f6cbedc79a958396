package messaging_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	"github.com/parleychat/parley/services/messaging"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick has receipts stored at once; everything else is as in production.
var quick = []string{"PARLEY_MESSAGING_RECEIPT_INTERVAL=5ms"}

// world is the service under test and the people who use it.
type world struct {
	*servicetest.Harness
	t   testing.TB
	def service.Definition
}

func start(t testing.TB, opts servicetest.Options, permissions messaging.Permissions) *world {
	t.Helper()
	if opts.Settings == nil {
		opts.Settings = quick
	}
	def := messaging.Definition()
	if permissions != nil {
		def = messaging.DefinitionWith(permissions)
	}
	return &world{Harness: servicetest.Start(t, opts, def), t: t, def: def}
}

// in is the same world in a subtest, which its helpers then fail.
func (w *world) in(t testing.TB) *world {
	return &world{Harness: w.Harness, t: t, def: w.def}
}

// by is the same person in a subtest.
func (p *person) by(w *world) *person {
	return &person{p.MessagingServiceClient, w, p.id, p.caller}
}

// person is somebody with an account, and a client of their own.
type person struct {
	messagingv1connect.MessagingServiceClient
	w      *world
	id     uuid.UUID
	caller servicetest.Caller
}

// person registers somebody and waits until messaging has heard of it.
func (w *world) person() *person {
	w.t.Helper()
	p := w.stranger()
	w.Deliver("auth", "messaging", event.New("account.registered", p.id.String(), 1, &authv1.AccountRegistered{AccountId: p.id.String()}))
	return p
}

// stranger is somebody of whom messaging has not heard.
func (w *world) stranger() *person {
	caller := w.User(uuid.New())
	return &person{messagingv1connect.NewMessagingServiceClient(w.Dial("messaging", caller)), w, caller.UserID, caller}
}

// at is the same person, calling one replica only.
func (p *person) at(in *servicetest.Instance) *person {
	return &person{messagingv1connect.NewMessagingServiceClient(p.w.DialInstance(in, p.caller)), p.w, p.id, p.caller}
}

// friends are two people with a conversation.
func (w *world) friends() (a, b *person, conversation string) {
	w.t.Helper()
	a, b = w.person(), w.person()
	conversation = a.talk(b)
	return a, b, conversation
}

func (p *person) talk(other *person) (conversation string) {
	p.w.t.Helper()
	res, err := p.CreateDirectConversation(p.w.t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: other.id.String()})
	require.NoError(p.w.t, err)
	return res.GetConversation().GetId()
}

func message(conversation, text string) *messagingv1.SendMessageRequest {
	return &messagingv1.SendMessageRequest{ConversationId: conversation, ClientMessageId: uuid.NewString(), Text: text}
}

// say sends and returns the seq.
func (p *person) say(conversation, text string) int64 {
	p.w.t.Helper()
	res, err := p.SendMessage(p.w.t.Context(), message(conversation, text))
	require.NoError(p.w.t, err)
	return res.GetSeq()
}

func (p *person) get(conversation string) *messagingv1.Conversation {
	p.w.t.Helper()
	res, err := p.GetConversation(p.w.t.Context(), &messagingv1.GetConversationRequest{ConversationId: conversation})
	require.NoError(p.w.t, err)
	return res.GetConversation()
}

// log reads the whole log, page by page, and checks that it has no hole.
func (p *person) log(conversation string) []*messagingv1.Entry {
	p.w.t.Helper()
	var entries []*messagingv1.Entry
	for {
		res, err := p.ListEvents(p.w.t.Context(), &messagingv1.ListEventsRequest{
			ConversationId: conversation, AfterSeq: int64(len(entries)), Limit: 200,
		})
		require.NoError(p.w.t, err)
		for _, e := range res.GetEntries() {
			entries = append(entries, e)
			require.Equal(p.w.t, int64(len(entries)), e.GetSeq(), "the log has a hole")
		}
		if !res.GetHasMore() {
			require.Equal(p.w.t, res.GetHeadSeq(), int64(len(entries)))
			return entries
		}
	}
}

// texts of the messages of a log, in order.
func texts(entries []*messagingv1.Entry) []string {
	var out []string
	for _, e := range entries {
		if e.GetMessage() != nil {
			out = append(out, e.GetMessage().GetText())
		}
	}
	return out
}

// sync follows the pages from a cursor to the end.
func (p *person) sync(cursor string, size int32) (changed []*messagingv1.Conversation, next string, reset bool) {
	p.w.t.Helper()
	for {
		res, err := p.Sync(p.w.t.Context(), &messagingv1.SyncRequest{Cursor: cursor, PageSize: size})
		require.NoError(p.w.t, err)
		changed = append(changed, res.GetConversations()...)
		cursor, reset = res.GetNextCursor(), reset || res.GetReset_()
		if !res.GetHasMore() {
			return changed, cursor, reset
		}
	}
}

func ids(conversations []*messagingv1.Conversation) []string {
	out := []string{}
	for _, c := range conversations {
		out = append(out, c.GetId())
	}
	return out
}

func me(p *person, c *messagingv1.Conversation) *messagingv1.Member {
	for _, m := range c.GetMembers() {
		if m.GetUserId() == p.id.String() {
			return m
		}
	}
	return nil
}

// requireReason checks the code and the reason of an error.
func requireReason(t testing.TB, err error, code connect.Code, reason errorv1.Reason) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code.String()+" "+reason.String(), connect.CodeOf(err).String()+" "+rpc.ReasonOf(err).String(), "%v", err)
}

// policy is a privacy service that does as it is told.
type policy struct {
	mu     sync.Mutex
	denied map[messaging.PermissionCheck]bool
	err    error
	asked  int           // how many batches
	gate   chan struct{} // when set, an answer waits for it
	enter  chan struct{} // when set, told of every question
}

func (p *policy) CheckBatch(ctx context.Context, checks []messaging.PermissionCheck) ([]bool, error) {
	p.mu.Lock()
	p.asked++
	gate, enter, err := p.gate, p.enter, p.err
	allowed := make([]bool, len(checks))
	for i, c := range checks {
		allowed[i] = !p.denied[c]
	}
	p.mu.Unlock()
	if enter != nil {
		enter <- struct{}{}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return allowed, err
}

func (p *policy) set(change func(*policy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// entered waits until privacy is asked.
func (p *policy) entered(t testing.TB) {
	t.Helper()
	select {
	case <-p.enter:
	case <-time.After(10 * time.Second):
		require.Fail(t, "privacy was not asked")
	}
}

func (p *policy) questions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// together runs n functions at once and waits for all.
func together(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

func text(who, n int) string { return fmt.Sprintf("%d/%d", who, n) }

// anonymous is a client without a token.
func (p *person) anonymous() messagingv1connect.MessagingServiceClient {
	return messagingv1connect.NewMessagingServiceClient(p.w.Dial("messaging", p.w.Anonymous()))
}
