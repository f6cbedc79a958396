package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/realtime"
	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// wall is the question: a server's configuration, and who listens to whom.
type wall struct {
	// Permissions is the text of permissions.conf.
	Permissions string
	// Sources are the domains that each service listens to.
	Sources map[string][]string
	// Mailers are the services with a queue of mails.
	Mailers []string
}

// trial is one run against a server with those permissions.
type trial struct {
	wall

	url   string
	buses map[string]*event.Bus
}

// logins returns what went wrong, nothing if all is well.
func logins(ctx context.Context) (faults []string, err error) {
	t := &trial{buses: map[string]*event.Bus{}}
	if err := json.NewDecoder(os.Stdin).Decode(&t.wall); err != nil {
		return nil, fmt.Errorf("read the permissions: %w", err)
	}
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stop, err := t.serve(dir)
	if err != nil {
		return nil, err
	}
	defer stop()
	for name := range t.Sources {
		bus, err := event.Connect(ctx, event.Config{URL: t.url, Name: name, User: name, Password: name, PublishTimeout: 2 * time.Second},
			slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, fmt.Errorf("connect as %s: %w", name, err)
		}
		defer bus.Close()
		t.buses[name] = bus
	}
	note := func(err error) {
		if err != nil {
			faults = append(faults, err.Error())
		}
	}
	// Owners make their streams first, as they do at their start.
	for name := range t.Sources {
		if name != "gateway" {
			note(t.publishes(ctx, name))
		}
	}
	for _, name := range t.Mailers {
		note(t.mails(ctx, name))
	}
	for name := range t.Sources {
		note(t.reads(ctx, name))
		note(t.stays(name))
	}
	note(t.pushes(ctx))
	note(t.operates(ctx))
	return faults, nil
}

// serve starts a server with the permissions, whose passwords are the names.
func (t *trial) serve(dir string) (stop func(), err error) {
	var passwords strings.Builder
	for name := range t.Sources {
		fmt.Fprintf(&passwords, "%s_PASSWORD: %q\n", strings.ToUpper(name), name)
	}
	passwords.WriteString("OPERATOR_PASSWORD: \"operator\"\n")
	main := "listen: \"127.0.0.1:-1\"\njetstream { store_dir: " + `"` + dir + `/data"` + " }\ninclude permissions.conf\n"
	for name, text := range map[string]string{"nats.conf": main, "permissions.conf": t.Permissions, "logins.conf": passwords.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("write the configuration: %w", err)
		}
	}
	opts, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		return nil, fmt.Errorf("the server refuses its configuration: %w", err)
	}
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("make the server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("the server does not start")
	}
	t.url = s.ClientURL()
	return func() {
		s.Shutdown()
		s.WaitForShutdown()
	}, nil
}

// publishes is what the outbox and the parking of events do.
func (t *trial) publishes(ctx context.Context, name string) error {
	bus := t.buses[name]
	if err := bus.Ready(ctx); err != nil {
		return fmt.Errorf("%s is not ready: %w", name, err)
	}
	if _, err := bus.EnsureStream(ctx, name); err != nil {
		return fmt.Errorf("%s cannot make its stream: %w", name, err)
	}
	ev := event.New("probe.made", uuid.NewString(), 1, &emptypb.Empty{})
	if err := bus.Publish(ctx, name, time.Now(), ev); err != nil {
		return fmt.Errorf("%s cannot publish: %w", name, err)
	}
	_, err := bus.JetStream().CreateStream(ctx, jetstream.StreamConfig{Name: "dead-letters", Subjects: []string{"dead.>"}})
	if err != nil {
		return fmt.Errorf("%s cannot make the stream of dead letters: %w", name, err)
	}
	if _, err := bus.JetStream().Publish(ctx, "dead."+name+".probe", nil); err != nil {
		return fmt.Errorf("%s cannot park an event: %w", name, err)
	}
	return nil
}

// operates is what `parley dead-letters` does: the letter of a service is listed, its
// event published again, and all that is left dropped.
func (t *trial) operates(ctx context.Context) error {
	bus, err := event.Connect(ctx, event.Config{URL: t.url, Name: "operator", User: "operator", Password: "operator", PublishTimeout: 2 * time.Second},
		slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("connect as operator: %w", err)
	}
	defer bus.Close()
	ev := event.New("probe.made", uuid.NewString(), 1, &emptypb.Empty{})
	if err := event.Complete(ctx, ev, time.Now()); err != nil {
		return fmt.Errorf("make an event: %w", err)
	}
	data, err := proto.Marshal(&eventv1.DeadLetter{Event: ev, Service: "auth", Listener: "operated"})
	if err != nil {
		return fmt.Errorf("make a dead letter: %w", err)
	}
	letter := nats.NewMsg("dead.auth.operated")
	letter.Data = data
	letter.Header.Set("Parley-Subject", event.Subject("auth", "probe.made"))
	if _, err := t.buses["auth"].JetStream().PublishMsg(ctx, letter); err != nil {
		return fmt.Errorf("park an event: %w", err)
	}
	if n, err := bus.Replay(ctx, event.DeadFilter{Service: "auth", Listener: "operated"}); err != nil || n != 1 {
		return fmt.Errorf("operator replays %d of 1 dead letters: %w", n, err)
	}
	if _, err := bus.Drop(ctx, event.DeadFilter{}); err != nil {
		return fmt.Errorf("operator cannot drop dead letters: %w", err)
	}
	if bus.Conn().Publish("dead.auth.forged", nil) == nil {
		if left, err := bus.ListDead(ctx, event.DeadFilter{}); err != nil || len(left) > 0 {
			return fmt.Errorf("operator has written %d dead letters: %w", len(left), err)
		}
	}
	return nil
}

// reads is what listeners and followers do.
func (t *trial) reads(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	caught := make(chan struct{})
	follow, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_ = t.buses[name].Follow(follow, "auth", "probe.made", time.Hour, func(*eventv1.Event) {}, func() { close(caught) }) // it only ends with ctx
	}()
	select {
	case <-caught:
	case <-ctx.Done():
		return fmt.Errorf("%s cannot follow the ended sessions", name)
	}
	for _, source := range t.Sources[name] {
		if err := t.listens(ctx, name, source); err != nil {
			return fmt.Errorf("%s cannot listen to %s: %w", name, source, err)
		}
	}
	return nil
}

func (t *trial) listens(ctx context.Context, name, source string) error {
	cons, err := t.buses[name].JetStream().CreateOrUpdateConsumer(ctx, event.StreamName(source), jetstream.ConsumerConfig{
		Durable: name + "--probe-made", FilterSubject: event.Subject(source, "probe.made"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return err
	}
	iter, err := cons.Messages(jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(3*time.Second))
	if err != nil {
		return err
	}
	defer iter.Stop()
	msg, err := iter.Next(jetstream.NextContext(ctx))
	if err != nil {
		return err
	}
	if _, err := cons.Info(ctx); err != nil {
		return err
	}
	return msg.DoubleAck(ctx)
}

// mails is what a queue of mails does, over its real code: the stream is made, a mail is
// stored, fetched, tried in vain at a port where nobody is, and given back.
func (t *trial) mails(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tried := make(chan struct{}, 1)
	queue, err := mail.New(mail.Config{
		Service: name, Bus: t.buses[name], Key: make([]byte, 32), Clock: clock.System(), Log: slog.New(slog.DiscardHandler),
		Settings: mail.Settings{Host: "127.0.0.1", Port: 1, Security: "none", From: "probe@example.org", Timeout: time.Second},
		Backoff: func(int) time.Duration {
			select {
			case tried <- struct{}{}:
			default:
			}
			return time.Minute
		},
	})
	if err != nil {
		return fmt.Errorf("%s has no queue of mails: %w", name, err)
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- queue.Run(running) }()
	defer func() { stop(); <-done }()
	err = queue.Send(ctx, mail.Message{
		ID: uuid.New(), To: "probe@example.org", Template: mail.PasswordChanged, Data: map[string]string{"username": "probe"},
	})
	if err != nil {
		return fmt.Errorf("%s cannot queue a mail: %w", name, err)
	}
	select {
	case <-tried:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s cannot work on its queue of mails", name)
	}
}

// stays is what nobody may: to speak for others, or to hear them.
func (t *trial) stays(name string) error {
	forbidden := []string{"$JS.API.STREAM.DELETE.events-auth", "$JS.API.STREAM.PURGE.events-" + name, "$JS.API.STREAM.UPDATE.events-auth"}
	for other := range t.Sources {
		if other != name || name == "gateway" {
			forbidden = append(forbidden, event.Subject(other, "probe.made"), "dead."+other+".probe")
		}
		if other != name && other != "auth" && other != "gateway" && !contains(t.Sources[name], other) {
			forbidden = append(forbidden, "$JS.API.CONSUMER.CREATE."+event.StreamName(other)+".probe")
		}
	}
	for _, mailer := range t.Mailers {
		if mailer != name {
			stream := "mail-" + mailer
			forbidden = append(forbidden, "mail."+mailer, "$JS.API.STREAM.CREATE."+stream, "$JS.API.CONSUMER.CREATE."+stream+".probe",
				"$JS.API.CONSUMER.MSG.NEXT."+stream+".auth--mail")
		}
		forbidden = append(forbidden, "$JS.API.STREAM.MSG.GET.mail-"+mailer, "$JS.API.STREAM.DELETE.mail-"+mailer)
	}
	if name != "messaging" {
		forbidden = append(forbidden, realtime.Subject(uuid.New()))
	}
	conn := t.buses[name].Conn()
	for _, subject := range forbidden {
		if !denied(conn, subject, func() error { return conn.Publish(subject, nil) }) {
			return fmt.Errorf("%s may publish %s", name, subject)
		}
	}
	for _, subject := range []string{"event.>", "dead.>", "mail.>", "$JS.>"} {
		if !denied(conn, subject, func() error { return subscribed(conn, subject) }) {
			return fmt.Errorf("%s may subscribe to %s", name, subject)
		}
	}
	if subject := realtime.SubjectWildcard; name != "gateway" && !denied(conn, subject, func() error { return subscribed(conn, subject) }) {
		return fmt.Errorf("%s may hear the frames of people", name)
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func subscribed(conn *nats.Conn, subject string) error {
	_, err := conn.Subscribe(subject, func(*nats.Msg) {})
	return err
}

// denied tells whether the server refuses: its error comes before the answer to
// the ping of Flush.
func denied(conn *nats.Conn, subject string, do func() error) bool {
	if do() != nil || conn.Flush() != nil {
		return false
	}
	last := conn.LastError()
	return last != nil && strings.Contains(strings.ToLower(last.Error()), strings.ToLower(`"`+subject+`"`))
}

// pushes is a frame from messaging to the gateway, and a barrier of auth that the
// other services answer.
func (t *trial) pushes(ctx context.Context) error {
	subject := realtime.Subject(uuid.New())
	sub, err := t.buses["gateway"].Conn().SubscribeSync(subject)
	if err != nil {
		return fmt.Errorf("the gateway cannot subscribe: %w", err)
	}
	if err := t.buses["gateway"].Conn().Flush(); err != nil {
		return fmt.Errorf("the gateway cannot subscribe: %w", err)
	}
	if err := t.buses["messaging"].Conn().Publish(subject, nil); err != nil {
		return fmt.Errorf("messaging cannot push: %w", err)
	}
	if _, err := sub.NextMsg(3 * time.Second); err != nil {
		return fmt.Errorf("the gateway hears no push: %w", err)
	}
	for name, bus := range t.buses {
		if name == "gateway" {
			continue
		}
		barrier := t.buses["auth"].NewBarrier(name)
		if err := bus.Conn().Publish(barrier.ReplySubject(), []byte(name)); err != nil {
			return fmt.Errorf("%s cannot answer a barrier: %w", name, err)
		}
		if barrier.Wait(ctx, event.BarrierTimeout) != barrierv1.Propagation_PROPAGATION_COMPLETE {
			return fmt.Errorf("%s cannot answer a barrier", name)
		}
	}
	return nil
}
