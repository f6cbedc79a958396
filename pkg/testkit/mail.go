package testkit

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleychat/parley/pkg/mailsink"
)

// mailTimeout is how long Next waits: as long as a busy machine may take to run a
// queue, a worker and a mail server.
const mailTimeout = 30 * time.Second

// Inbox is a real mail server of one test, on the loopback interface, with all the
// mails that were sent to it.
type Inbox struct {
	*mailsink.Sink

	t    testing.TB
	mu   sync.Mutex
	read map[string]int // by recipient: the number of the last mail that Next gave
}

// Mail starts a mail server for the test. o may be zero.
func Mail(t testing.TB, o mailsink.Options) *Inbox {
	t.Helper()
	if o.Log == nil {
		o.Log = Logger(t)
	}
	sink, err := mailsink.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sink.Stop(); err != nil {
			t.Errorf("stop the mail server: %v", err)
		}
	})
	return &Inbox{Sink: sink, t: t, read: map[string]int{}}
}

// Settings are the environment variables with which a service sends its mails here.
func (b *Inbox) Settings(service string) []string {
	b.t.Helper()
	host, port, err := net.SplitHostPort(b.Addr)
	if err != nil {
		b.t.Fatalf("split the address of the mail server: %v", err)
	}
	prefix := "PARLEY_" + strings.ToUpper(service) + "_MAIL_"
	return []string{
		prefix + "HOST=" + host, prefix + "PORT=" + port, prefix + "SECURITY=none", prefix + "FROM=Parley <parley@example.org>",
	}
}

// Next returns the oldest mail to that address that it has not returned yet, and
// waits for it. Addresses are compared without regard to case.
func (b *Inbox) Next(to string) mailsink.Mail {
	b.t.Helper()
	deadline := time.NewTimer(mailTimeout)
	defer deadline.Stop()
	for {
		changed := b.Changed()
		if m, ok := b.unread(to); ok {
			return m
		}
		select {
		case <-changed:
		case <-deadline.C:
			b.t.Fatalf("no mail has come to %s; there are %d mails", to, len(b.Mails()))
		}
	}
}

// Waiting tells how many mails to that address Next has not returned yet.
func (b *Inbox) Waiting(to string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, m := range b.Mails() {
		if m.Number > b.read[strings.ToLower(to)] && addressed(m, to) {
			n++
		}
	}
	return n
}

func (b *Inbox) unread(to string) (mailsink.Mail, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range slices.Backward(b.Mails()) {
		if m.Number > b.read[strings.ToLower(to)] && addressed(m, to) {
			b.read[strings.ToLower(to)] = m.Number
			return m, true
		}
	}
	return mailsink.Mail{}, false
}

func addressed(m mailsink.Mail, to string) bool {
	return slices.ContainsFunc(m.To, func(addr string) bool { return strings.EqualFold(addr, to) })
}
