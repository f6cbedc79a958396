package mail_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/mailsink"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is where the clock stands.
var noon = time.Date(2026, time.March, 16, 12, 0, 0, 0, time.UTC)

const (
	wait = 20 * time.Second
	tick = 10 * time.Millisecond
)

// post is a queue with its worker, a mail server and a clock.
type post struct {
	*mail.Queue

	t     *testing.T
	inbox *testkit.Inbox
	bus   *event.Bus
	clock *clock.Fake
	cfg   mail.Config
	stop  func()
}

// open makes the queue of a service and runs its worker.
func open(t *testing.T, o mailsink.Options, change func(*mail.Config)) *post {
	t.Helper()
	p := prepare(t, o, change)
	p.run()
	return p
}

func prepare(t *testing.T, o mailsink.Options, change func(*mail.Config)) *post {
	t.Helper()
	p := &post{t: t, inbox: testkit.Mail(t, o), clock: clock.NewFake(noon)}
	p.bus = connectBus(t, testkit.NATS(t).URL)
	host, port := split(t, p.inbox.Addr)
	p.cfg = mail.Config{
		Service: "auth", Bus: p.bus, Key: []byte(strings.Repeat("k", 32)), Clock: p.clock, Log: testkit.Logger(t),
		Settings: mail.Settings{
			Host: host, Port: port, Security: "none", From: "Parley <parley@example.org>", Product: "Parley", Timeout: 10 * time.Second,
		},
		Backoff: func(int) time.Duration { return 20 * time.Millisecond },
	}
	if change != nil {
		change(&p.cfg)
	}
	var err error
	p.Queue, err = mail.New(p.cfg)
	require.NoError(t, err)
	return p
}

func connectBus(t *testing.T, url string) *event.Bus {
	t.Helper()
	bus, err := event.Connect(t.Context(), event.Config{URL: url, Name: "auth"}, testkit.Logger(t))
	require.NoError(t, err)
	t.Cleanup(bus.Close)
	return bus
}

// run starts a worker that ends with the test, or when stop is called.
func (p *post) run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	var once sync.Once
	p.stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(p.t, <-done)
		})
	}
	p.t.Cleanup(p.stop)
}

func (p *post) send(m mail.Message) {
	p.t.Helper()
	require.NoError(p.t, p.Send(p.t.Context(), m))
}

// stream is the work queue as the server has it.
func (p *post) stream() *jetstream.StreamInfo {
	p.t.Helper()
	stream, err := p.bus.JetStream().Stream(p.t.Context(), "mail-auth")
	require.NoError(p.t, err)
	info, err := stream.Info(p.t.Context())
	require.NoError(p.t, err)
	return info
}

// emptied waits until nothing is in the queue.
func (p *post) emptied() {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.stream().State.Msgs == 0 }, wait, tick, "the queue is worked off")
}

func code(to string) mail.Message {
	return mail.Message{
		ID: uuid.Must(uuid.NewV7()), To: to, Template: mail.ResetPassword,
		Data: map[string]string{"username": "anna", "code": "482913", "minutes": "10"},
	}
}

func notice(to string) mail.Message {
	return mail.Message{ID: uuid.Must(uuid.NewV7()), To: to, Template: mail.PasswordChanged, Data: map[string]string{"username": "anna"}}
}

func TestSendDelivers(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	m := code("anna@example.org")
	p.send(m)
	got := p.inbox.Next("anna@example.org")
	require.Equal(t, "parley@example.org", got.From)
	require.Equal(t, "Reset your Parley password", got.Subject)
	require.Equal(t, m.ID.String()+"@example.org", got.MessageID)
	require.Contains(t, got.Text, "482913")
	require.Contains(t, got.HTML, "482913")
	require.Contains(t, string(got.Raw), "Auto-Submitted: auto-generated")
	require.Contains(t, string(got.Raw), "Date: Mon, 16 Mar 2026 12:00:00")
	p.emptied()
}

func TestSameIDIsOneMail(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	m := code("anna@example.org")
	p.send(m)
	p.inbox.Next(m.To)
	p.send(m)
	other := code("anna@example.org")
	p.send(other)
	require.Equal(t, other.ID.String()+"@example.org", p.inbox.Next(m.To).MessageID)
	p.emptied()
	require.Len(t, p.inbox.Mails(), 2)
}

func TestQueueShowsNothing(t *testing.T) {
	t.Parallel()
	p := prepare(t, mailsink.Options{}, nil)
	p.send(code("anna@example.org"))
	stream, err := p.bus.JetStream().Stream(t.Context(), "mail-auth")
	require.NoError(t, err)
	info := p.stream()
	require.Equal(t, jetstream.WorkQueuePolicy, info.Config.Retention)
	raw, err := stream.GetMsg(t.Context(), info.State.FirstSeq)
	require.NoError(t, err)
	for _, secret := range []string{"482913", "anna", "example.org", "reset"} {
		require.NotContains(t, string(raw.Data), secret)
	}
	require.Equal(t, "10m0s", raw.Header.Get("Nats-TTL"), "a code leaves the queue when it has expired")
	// Whoever has another key reads nothing, and does not block the queue either.
	p.cfg.Key = []byte(strings.Repeat("x", 32))
	p.Queue, err = mail.New(p.cfg)
	require.NoError(t, err)
	p.run()
	p.emptied()
	require.Empty(t, p.inbox.Mails())
}

func TestTemporaryRefusalIsRetried(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	tries := 0
	p := open(t, mailsink.Options{Refuse: func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries < 3 {
			return mailsink.Refusal(451, "greylisted")
		}
		return nil
	}}, nil)
	p.send(code("anna@example.org"))
	p.inbox.Next("anna@example.org")
	p.emptied()
	require.Len(t, p.inbox.Mails(), 1)
}

func TestPermanentRefusalIsDroppedWithoutTheAddress(t *testing.T) {
	t.Parallel()
	log := &lines{}
	p := open(t, mailsink.Options{Refuse: func(to string) error {
		if strings.HasPrefix(to, "gone") {
			return mailsink.Refusal(550, "no such user "+to)
		}
		return nil
	}}, func(c *mail.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	p.send(code("gone@example.org"))
	p.send(code("anna@example.org"))
	p.inbox.Next("anna@example.org")
	p.emptied()
	require.Len(t, p.inbox.Mails(), 1)
	require.Contains(t, log.String(), "code=550")
	require.NotContains(t, log.String(), "gone@")
	require.NotContains(t, log.String(), "482913")
}

func TestMailServerThatIsAway(t *testing.T) {
	t.Parallel()
	p := prepare(t, mailsink.Options{}, nil)
	addr := p.inbox.Addr
	require.NoError(t, p.inbox.Stop())
	p.run()
	p.send(code("anna@example.org"))
	require.Eventually(t, func() bool {
		cons, err := p.bus.JetStream().Consumer(t.Context(), "mail-auth", "auth--mail")
		return err == nil && cons.CachedInfo().NumRedelivered > 0
	}, wait, tick, "it was tried")
	inbox := testkit.Mail(t, mailsink.Options{Listen: addr})
	require.Contains(t, inbox.Next("anna@example.org").Text, "482913")
}

func TestExpiredMailIsNotSent(t *testing.T) {
	t.Parallel()
	p := prepare(t, mailsink.Options{}, nil)
	p.send(code("anna@example.org"))
	p.send(notice("anna@example.org"))
	p.clock.Advance(11 * time.Minute)
	p.run()
	require.Equal(t, "Your Parley password has changed", p.inbox.Next("anna@example.org").Subject)
	p.emptied()
	require.Len(t, p.inbox.Mails(), 1)
}

func TestRetriesEndWithTheCode(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	tries := 0
	var p *post
	p = prepare(t, mailsink.Options{Refuse: func(string) error {
		mu.Lock()
		defer mu.Unlock()
		tries++
		p.clock.Advance(4 * time.Minute)
		return mailsink.Refusal(451, "later")
	}}, nil)
	p.run()
	p.send(code("anna@example.org"))
	p.emptied()
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 3, tries, "after 0, 4 and 8 of its ten minutes")
}

func TestMailSurvivesTheWorker(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	p.send(code("anna@example.org"))
	p.inbox.Next("anna@example.org")
	p.stop()
	p.send(code("ben@example.org"))
	p.run()
	p.inbox.Next("ben@example.org")
	p.emptied()
}

func TestStreamThatWasLostIsMadeAnew(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	p.send(code("anna@example.org"))
	p.inbox.Next("anna@example.org")
	require.NoError(t, p.bus.JetStream().DeleteStream(t.Context(), "mail-auth"))
	p.send(code("ben@example.org"))
	p.inbox.Next("ben@example.org")
}

func TestReplicasShareTheWork(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	p.run() // a second worker on the same queue
	for range 20 {
		p.send(code("anna@example.org"))
	}
	ids := map[string]bool{}
	for range 20 {
		ids[p.inbox.Next("anna@example.org").MessageID] = true
	}
	p.emptied()
	require.Len(t, ids, 20)
	require.Len(t, p.inbox.Mails(), 20)
}

func TestSendRefuses(t *testing.T) {
	t.Parallel()
	p := prepare(t, mailsink.Options{}, nil)
	for name, change := range map[string]func(*mail.Message){
		"an unknown template":    func(m *mail.Message) { m.Template = "spam" },
		"no id":                  func(m *mail.Message) { m.ID = uuid.Nil },
		"no code":                func(m *mail.Message) { delete(m.Data, "code") },
		"endless minutes":        func(m *mail.Message) { m.Data["minutes"] = "100000" },
		"minutes in words":       func(m *mail.Message) { m.Data["minutes"] = "ten" },
		"a long value":           func(m *mail.Message) { m.Data["username"] = strings.Repeat("x", 513) },
		"two addresses":          func(m *mail.Message) { m.To = "a@example.org, b@example.org" },
		"an address with a line": func(m *mail.Message) { m.To = "a@example.org\r\nBcc: b@example.org" },
		"a name with an address": func(m *mail.Message) { m.To = "Anna <a@example.org>" },
		"no address":             func(m *mail.Message) { m.To = "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := code("anna@example.org")
			change(&m)
			err := p.Send(t.Context(), m)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "example.org", "addresses stay out of logs")
			require.NotEqual(t, errorv1.Reason_REASON_MAIL_UNAVAILABLE, rpc.ReasonOf(err))
		})
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()

	t.Run("WithoutAMailServer", func(t *testing.T) {
		t.Parallel()
		p := prepare(t, mailsink.Options{}, func(c *mail.Config) { c.Settings = mail.Settings{} })
		p.run()
		require.False(t, p.Enabled())
		err := p.Send(t.Context(), code("anna@example.org"))
		require.ErrorIs(t, err, mail.ErrUnavailable)
		requireUnavailable(t, err)
	})

	t.Run("WithoutNATS", func(t *testing.T) {
		t.Parallel()
		p := prepare(t, mailsink.Options{}, nil)
		p.bus.Close()
		err := p.Send(t.Context(), code("anna@example.org"))
		requireUnavailable(t, err)
		require.NotNil(t, rpc.InfoOf(err).GetRetryAfter())
	})
}

func requireUnavailable(t *testing.T, err error) {
	t.Helper()
	coded, ok := errors.AsType[*connect.Error](err)
	require.True(t, ok)
	require.Equal(t, connect.CodeUnavailable, coded.Code())
	require.Equal(t, errorv1.Reason_REASON_MAIL_UNAVAILABLE, rpc.ReasonOf(err))
}

// lines is a log that can be read.
type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, line...)
	return len(line), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(slices.Clone(l.text))
}

// A mail server that hangs does not hold a process that ends: the mail goes back to the queue, for the next.
func TestTheEndCutsWhatHangs(t *testing.T) {
	t.Parallel()
	hanging, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = hanging.Close() })
	called := make(chan net.Conn, 1)
	go func() {
		if conn, err := hanging.Accept(); err == nil {
			called <- conn
		}
	}()
	host, port := split(t, hanging.Addr().String())
	p := open(t, mailsink.Options{}, func(c *mail.Config) {
		c.Drain, c.Settings.Timeout, c.Settings.Host, c.Settings.Port = 20*time.Millisecond, time.Minute, host, port
	})
	p.send(notice("anna@example.org"))
	conn := <-called
	defer conn.Close()
	ended := make(chan struct{})
	go func() { p.stop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(wait):
		require.FailNow(t, "the worker waits for a server that hangs")
	}
	require.EqualValues(t, 1, p.stream().State.Msgs, "the mail is still in the queue")
}
