// Package stack runs the servers that Parley needs: PostgreSQL as a child process, NATS with JetStream and a mail
// server that delivers nothing inside this process, Redis as a child where it is installed, else inside too.
//
// It owns one folder on disk and everything below it, and holds a lock on that folder while it runs, so
// that two stacks never share data. Invariants: every server listens on 127.0.0.1 only; PostgreSQL never
// runs as root; a kill -9 of this process ends its children too (Linux); a second start on the same folder
// finds the data of the first, also after a crash.
//
// It never runs in production, never creates tables, and knows no domain. It is the only place that links
// the embedded servers: tests of other modules get them as a child process through pkg/testkit.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/parleychat/parley/pkg/mailsink"
)

// Options says which servers to start. A nil section is not started.
type Options struct {
	// Dir holds all data. It is created when missing and kept when the stack stops.
	Dir      string
	Postgres *PostgresOptions
	NATS     *NATSOptions
	Redis    *RedisOptions
	Mail     *MailOptions
	// Logger gets what the owner should know, such as a moved data folder. Nil discards it.
	Logger *slog.Logger
}

// MailOptions configures the mail server: it listens on a free port of 127.0.0.1 and keeps the last 200 mails, in memory.
type MailOptions struct{}

// Stack is a set of running servers. Fields of servers that were not asked for are nil.
type Stack struct {
	Postgres *Postgres
	NATS     *NATS
	Redis    *Redis
	Mail     *mailsink.Sink

	lock *os.File
}

// Endpoints tells other processes where the servers are. Its JSON is the value of PARLEY_TEST_STACK.
type Endpoints struct {
	// Postgres is the superuser's URL of the maintenance database.
	Postgres string `json:"postgres,omitempty"`
	NATS     string `json:"nats,omitempty"`
	// Redis is host:port.
	Redis string `json:"redis,omitempty"`
	// Mail is host:port of the SMTP server that delivers nothing.
	Mail string `json:"mail,omitempty"`
	// PIDs holds the process ids: "stack" of the process with the embedded servers, "postgres" of the postmaster, "redis" of a
	// redis-server.
	PIDs map[string]int `json:"pids"`
}

// Start starts the servers that o asks for and returns when all of them accept connections. ctx bounds the
// start only. When one of them fails, the others are stopped again.
//
// Errors: ErrInUse when another process runs a stack on the folder, ErrNoBinaries when PostgreSQL is not installed.
func Start(ctx context.Context, o Options) (*Stack, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolve the data folder: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Stack{lock: lock}
	if err := s.start(ctx, dir, o); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context, dir string, o Options) (err error) {
	if o.NATS != nil {
		if s.NATS, err = startNATS(filepath.Join(dir, "nats"), *o.NATS); err != nil {
			return err
		}
	}
	if o.Redis != nil {
		if s.Redis, err = startRedis(ctx, dir, *o.Redis, o.Logger); err != nil {
			return err
		}
	}
	if o.Mail != nil {
		if s.Mail, err = mailsink.Start(ctx, mailsink.Options{Log: o.Logger}); err != nil {
			return err
		}
	}
	if o.Postgres != nil {
		if s.Postgres, err = startPostgres(ctx, dir, *o.Postgres, o.Logger); err != nil {
			return err
		}
	}
	return nil
}

// Endpoints returns the addresses of the running servers.
func (s *Stack) Endpoints() Endpoints {
	e := Endpoints{PIDs: map[string]int{"stack": os.Getpid()}}
	if s.Postgres != nil {
		e.Postgres = s.Postgres.URL
		e.PIDs["postgres"] = s.Postgres.PID()
	}
	if s.NATS != nil {
		e.NATS = s.NATS.URL
	}
	if s.Redis != nil {
		e.Redis = s.Redis.Addr
		if pid := s.Redis.PID(); pid != 0 {
			e.PIDs["redis"] = pid
		}
	}
	if s.Mail != nil {
		e.Mail = s.Mail.Addr
	}
	return e
}

// Stop stops the servers, NATS before PostgreSQL so that no consumer is handed work whose database is gone,
// and releases the folder. It is safe to call twice.
func (s *Stack) Stop() error {
	if s.NATS != nil {
		s.NATS.stop()
	}
	var err error
	if s.Redis != nil {
		err = s.Redis.stop()
	}
	if s.Mail != nil {
		err = errors.Join(err, s.Mail.Stop())
	}
	if s.Postgres != nil {
		err = errors.Join(err, s.Postgres.Stop())
	}
	if s.lock != nil {
		// Only now may another stack open the folder.
		err = errors.Join(err, unlockDir(s.lock))
		s.lock = nil
	}
	return err
}
