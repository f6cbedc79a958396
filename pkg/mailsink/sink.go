// Package mailsink is a mail server that delivers nothing: it keeps the last mails
// that it was given, for tests to read and for developers to look at.
//
// Invariants: it speaks real SMTP; it keeps at most as many mails as it was told
// to, none of them larger than a megabyte; nothing outlives Stop. It never sends
// anything and no program of production links it.
package mailsink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// MaxBytes is the most that one mail may have.
	MaxBytes = 1 << 20
	// defaultKeep is how many mails are kept.
	defaultKeep   = 200
	maxRecipients = 16
	idleTimeout   = time.Minute
)

// Options say how a sink behaves. The zero value takes everything, on a free port
// of the loopback interface.
type Options struct {
	// Listen is host:port; 127.0.0.1:0 when empty.
	Listen string
	// Keep is how many mails are kept; 200 when 0.
	Keep int
	// TLS has the sink offer STARTTLS; with ImplicitTLS it speaks nothing else.
	TLS         *tls.Config
	ImplicitTLS bool
	// Logins, if not nil, are the passwords of those who may send.
	Logins map[string]string
	// Refuse, if not nil, is asked for each recipient. What it returns is the
	// answer; a Refusal sets the code.
	Refuse func(to string) error
	Clock  clock.Clock
	Log    *slog.Logger
}

// Refusal is an answer with a code of the caller's choice, 4xx or 5xx.
func Refusal(code int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 0, 0}, Message: text}
}

// Mail is one that was received.
type Mail struct {
	// Number counts from 1 in the order of arrival.
	Number     int       `json:"number"`
	ReceivedAt time.Time `json:"received_at"`
	// From and To are those of the envelope.
	From      string   `json:"from"`
	To        []string `json:"to"`
	Subject   string   `json:"subject"`
	MessageID string   `json:"message_id"`
	Text      string   `json:"text"`
	HTML      string   `json:"html"`
	// Raw is the whole mail with its headers.
	Raw []byte `json:"-"`
}

// Sink is a running server.
type Sink struct {
	// Addr is host:port.
	Addr string

	opts    Options
	server  *smtp.Server
	stopped chan struct{}

	mu      sync.Mutex
	count   int
	mails   []Mail        // oldest first
	changed chan struct{} // closed and replaced with every mail
}

// Start starts a sink; it accepts connections when Start returns.
func Start(ctx context.Context, o Options) (*Sink, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Keep <= 0 {
		o.Keep = defaultKeep
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for mails: %w", err)
	}
	s := &Sink{Addr: l.Addr().String(), opts: o, stopped: make(chan struct{}), changed: make(chan struct{})}
	s.server = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &session{sink: s}, nil }))
	s.server.Domain = "localhost"
	s.server.MaxMessageBytes, s.server.MaxRecipients = MaxBytes, maxRecipients
	s.server.ReadTimeout, s.server.WriteTimeout = idleTimeout, idleTimeout
	s.server.AllowInsecureAuth = o.TLS == nil
	s.server.EnableSMTPUTF8 = true
	s.server.ErrorLog = slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)
	if o.ImplicitTLS {
		l = tls.NewListener(l, o.TLS)
	} else {
		s.server.TLSConfig = o.TLS
	}
	go func() {
		defer close(s.stopped)
		if err := s.server.Serve(l); err != nil {
			o.Log.ErrorContext(ctx, "the mail sink has ended", "error", err)
		}
	}()
	return s, nil
}

// Stop ends the server and its connections. It is safe to call twice.
func (s *Sink) Stop() error {
	err := s.server.Close()
	<-s.stopped
	if err != nil && !errors.Is(err, smtp.ErrServerClosed) {
		return fmt.Errorf("stop the mail sink: %w", err)
	}
	return nil
}

// Mails returns what is kept, the newest first.
func (s *Sink) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	mails := slices.Clone(s.mails)
	slices.Reverse(mails)
	return mails
}

// Mail returns the mail of that number, if it is still kept.
func (s *Sink) Mail(number int) (Mail, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.mails, func(m Mail) bool { return m.Number == number })
	if i < 0 {
		return Mail{}, false
	}
	return s.mails[i], true
}

// Changed returns a channel that is closed when the next mail arrives. Take it
// before looking at Mails.
func (s *Sink) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Clear forgets all mails.
func (s *Sink) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails = nil
}

// keep adds a mail and drops the oldest beyond the limit.
func (s *Sink) keep(m Mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	m.Number, m.ReceivedAt = s.count, s.opts.Clock.Now()
	s.mails = append(s.mails, m)
	if len(s.mails) > s.opts.Keep {
		s.mails = slices.Delete(s.mails, 0, len(s.mails)-s.opts.Keep)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}
