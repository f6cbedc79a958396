package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/token"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

const (
	// seededHash is the stored form of every seeded account, by which they are found again
	// (password_hash = 'seeded:'). No password matches it: nobody logs in to one.
	seededHash = "seeded:"
	// seedDevice is the device name of seeded sessions.
	seedDevice = "parley seed"
	// seedBatch is how many accounts one transaction makes; their events are one row of the outbox, which
	// stays far below the largest message of the bus.
	seedBatch = 250
	// seedSessionLife is how long the sessions of seeded accounts last.
	seedSessionLife = 90 * 24 * time.Hour
)

// Seeder is the operator's tool that makes accounts for load tests past the API: without a hash, a limit or
// a log in each. It needs what only the operator has, auth's role in the database and the key that seals the
// signing keys, and it is no part of the running service.
//
// What it makes is whole: accounts, sessions and account.registered commit together, so every other service
// gets to know the people as it does any others. The running service's relay publishes the events.
type Seeder struct {
	pool   *pgxpool.Pool
	outbox *outbox.Outbox
	keys   *keyring
	clock  clock.Clock
}

// Seeded is one account with a session for it.
type Seeded struct {
	UserID, SessionID uuid.UUID
}

// NewSeeder takes a pool as auth's role and PARLEY_AUTH_KEY_ENCRYPTION_KEY (32 bytes).
func NewSeeder(pool *pgxpool.Pool, keyEncryptionKey []byte, clk clock.Clock, log *slog.Logger) (*Seeder, error) {
	keys, err := newKeyring(pool, keyEncryptionKey, keyPolicy{}, clk, log)
	if err != nil {
		return nil, err
	}
	// Without a bus: rows are only appended, never published from here.
	return &Seeder{pool: pool, outbox: outbox.New(pool, nil, "auth", clk, log), keys: keys, clock: clk}, nil
}

// SigningKey is the key with which the deployment signs access tokens now. Whoever holds it can be
// anybody: it belongs into a file that nobody else reads, and into no log.
func (s *Seeder) SigningKey(ctx context.Context) (token.SigningKey, error) {
	return s.keys.signing(ctx)
}

// Accounts makes n accounts named prefix-1, prefix-2 and so on. Dying half-way leaves whole batches;
// another prefix begins anew. It fails if a name is taken.
func (s *Seeder) Accounts(ctx context.Context, prefix string, n int) ([]Seeded, error) {
	all := make([]Seeded, 0, n)
	for len(all) < n {
		batch, err := s.batch(ctx, strings.ToLower(prefix), len(all)+1, min(seedBatch, n-len(all)))
		if err != nil {
			return all, fmt.Errorf("seed accounts from %s-%d: %w", prefix, len(all)+1, err)
		}
		all = append(all, batch...)
	}
	return all, nil
}

func (s *Seeder) batch(ctx context.Context, prefix string, first, n int) ([]Seeded, error) {
	now := s.clock.Now()
	made := make([]Seeded, 0, n)
	accounts := db.AccountsSeedParams{PasswordHash: seededHash, Version: firstVersion, CreatedAt: now}
	sessions := db.SessionsSeedParams{DeviceName: seedDevice, CreatedAt: now, ExpiresAt: now.Add(seedSessionLife)}
	people := make([]account, 0, n)
	for i := range n {
		ids, err := newIDs()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%s-%d", prefix, first+i)
		accounts.Ids = append(accounts.Ids, ids.UserID)
		accounts.Usernames = append(accounts.Usernames, name)
		accounts.Emails = append(accounts.Emails, name+"@seed.invalid") // RFC 2606: mail to it goes nowhere
		sessions.Ids = append(sessions.Ids, ids.SessionID)
		sessions.AccountIds = append(sessions.AccountIds, ids.UserID)
		// The hash of no token: such a session is never refreshed.
		hash := make([]byte, 32)
		_, _ = rand.Read(hash) // does not fail
		sessions.TokenHashes = append(sessions.TokenHashes, hash)
		people = append(people, account{id: ids.UserID, username: name, displayName: name, role: identity.RoleUser, createdAt: now})
		made = append(made, ids)
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		queries := db.New(tx)
		if err := queries.AccountsSeed(ctx, accounts); err != nil {
			return fmt.Errorf("insert accounts: %w", err)
		}
		if err := queries.SessionsSeed(ctx, sessions); err != nil {
			return fmt.Errorf("insert sessions: %w", err)
		}
		events := make([]*eventv1.Event, 0, n)
		for _, person := range people {
			events = append(events, accountRegistered(person))
		}
		return s.outbox.Append(ctx, tx, events...)
	})
	return made, err
}

func newIDs() (Seeded, error) {
	user, err := uuid.NewV7()
	if err != nil {
		return Seeded{}, fmt.Errorf("make an account's id: %w", err)
	}
	session, err := uuid.NewV7()
	if err != nil {
		return Seeded{}, fmt.Errorf("make a session's id: %w", err)
	}
	return Seeded{UserID: user, SessionID: session}, nil
}
