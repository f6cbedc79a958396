package auth

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/token"
	"github.com/parleychat/parley/services/auth/internal/db"
)

const (
	// keyReload is how old a replica's copy of the keys may be. It must stay well below keyAnnounce: every
	// replica then knows a key before any replica signs with it.
	keyReload = time.Minute
	// keyAnnounce is how long a key is in the JWK set before it signs. Verifiers keep the set for jwksMaxAge
	// and ask again for a kid that they do not know, so this is generous.
	keyAnnounce = time.Hour
	// keyLinger is how long a key stays in the set after the last token that it signed has expired, for
	// clocks that differ.
	keyLinger = time.Hour
)

// signingKey is an opened row of signing_key.
type signingKey struct {
	kid        string
	generation int64
	public     ed25519.PublicKey
	private    ed25519.PrivateKey
	activeFrom time.Time
}

// keyPolicy is how long a key signs, and how long its tokens live.
type keyPolicy struct {
	rotateEvery time.Duration
	tokenLife   time.Duration
}

// keyPlan is what is to be done about a set of keys.
type keyPlan struct {
	// create asks for a key of the next generation that signs from activeFrom.
	create     bool
	generation int64
	activeFrom time.Time
	// expired lists keys whose last token has been dead for keyLinger.
	expired []string
}

// plan decides about keys, ordered by generation, at an instant. The first key signs at once; each
// later one is announced before the one before it is due.
func (p keyPolicy) plan(keys []signingKey, now time.Time) keyPlan {
	if len(keys) == 0 {
		return keyPlan{create: true, generation: 1, activeFrom: now}
	}
	var plan keyPlan
	newest := keys[len(keys)-1]
	if due := newest.activeFrom.Add(p.rotateEvery); !now.Before(due.Add(-keyAnnounce)) {
		plan.create, plan.generation = true, newest.generation+1
		plan.activeFrom = due
		// Nobody looked in time (all replicas were down): the announcement is kept, not the date.
		if earliest := now.Add(keyAnnounce); due.Before(earliest) {
			plan.activeFrom = earliest
		}
	}
	for i, k := range keys[:len(keys)-1] {
		if stopped := keys[i+1].activeFrom; now.After(stopped.Add(p.tokenLife + keyLinger)) {
			plan.expired = append(plan.expired, k.kid)
		}
	}
	return plan
}

// signer is the newest key that may sign, nil when there is none.
func signer(keys []signingKey, now time.Time) *signingKey {
	for _, k := range slices.Backward(keys) {
		if !now.Before(k.activeFrom) {
			return &k
		}
	}
	return nil
}

// keyring holds this replica's copy of the keys. Private keys lie in the database only sealed: AES-256-GCM
// under PARLEY_AUTH_KEY_ENCRYPTION_KEY, bound to their kid, so rows cannot be exchanged for one another.
type keyring struct {
	pool   *pgxpool.Pool
	seal   cipher.AEAD
	policy keyPolicy
	clock  clock.Clock
	log    *slog.Logger

	mu     sync.Mutex
	keys   []signingKey
	loaded time.Time
}

func newKeyring(pool *pgxpool.Pool, encryptionKey []byte, policy keyPolicy, clk clock.Clock, log *slog.Logger) (*keyring, error) {
	block, err := aes.NewCipher(encryptionKey)
	if err != nil {
		return nil, fmt.Errorf("key encryption key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key encryption key: %w", err)
	}
	return &keyring{pool: pool, seal: aead, policy: policy, clock: clk, log: log}, nil
}

// rotate brings the keys in the database in line with the policy. Any number of replicas may run it at
// once: they compute the same generation, of which the database takes one. Dying between its statements is safe,
// each of them is one step of the plan that the next run would make again.
func (r *keyring) rotate(ctx context.Context) error {
	keys, err := r.read(ctx)
	if err != nil {
		return err
	}
	queries := db.New(r.pool)
	plan := r.policy.plan(keys, r.clock.Now())
	if plan.create {
		if err := r.create(ctx, queries, plan); err != nil {
			return err
		}
	}
	if len(plan.expired) > 0 {
		if err := queries.SigningKeyDelete(ctx, plan.expired); err != nil {
			return fmt.Errorf("delete expired signing keys: %w", err)
		}
		r.log.InfoContext(ctx, "signing keys deleted", "kids", plan.expired)
	}
	return nil
}

func (r *keyring) create(ctx context.Context, queries *db.Queries, plan keyPlan) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("generate a signing key: %w", err)
	}
	kid := token.KeyID(public)
	made, err := queries.SigningKeyCreate(ctx, db.SigningKeyCreateParams{
		Kid: kid, Generation: plan.generation, PublicKey: public,
		SealedSeed: r.seal.Seal(nil, nil, private.Seed(), []byte(kid)), //nolint:gosec // this AEAD makes its own random nonce
		CreatedAt:  r.clock.Now(), ActiveFrom: plan.activeFrom,
	})
	if err != nil {
		return fmt.Errorf("store a signing key: %w", err)
	}
	if made > 0 {
		r.log.InfoContext(ctx, "signing key announced", "kid", kid, "active_from", plan.activeFrom)
	}
	return nil
}

func (r *keyring) read(ctx context.Context) ([]signingKey, error) {
	rows, err := db.New(r.pool).SigningKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	keys := make([]signingKey, 0, len(rows))
	for _, row := range rows {
		seed, err := r.seal.Open(nil, nil, row.SealedSeed, []byte(row.Kid))
		if err != nil {
			return nil, fmt.Errorf("open signing key %s: PARLEY_AUTH_KEY_ENCRYPTION_KEY is not the one that it was sealed with: %w", row.Kid, err)
		}
		keys = append(keys, signingKey{
			kid: row.Kid, generation: row.Generation, public: row.PublicKey,
			private: ed25519.NewKeyFromSeed(seed), activeFrom: row.ActiveFrom,
		})
	}
	slices.SortFunc(keys, func(a, b signingKey) int { return cmp.Compare(a.generation, b.generation) })
	return keys, nil
}

// current returns the keys, read anew when the copy is older than keyReload. While the database is away the
// copy goes on serving: tokens are still signed and verified.
func (r *keyring) current(ctx context.Context) ([]signingKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	if r.keys != nil && now.Sub(r.loaded) < keyReload {
		return r.keys, nil
	}
	keys, err := r.read(ctx)
	switch {
	case err == nil:
		r.keys, r.loaded = keys, now
	case r.keys == nil:
		return nil, err
	default:
		r.log.WarnContext(ctx, "the signing keys of before are used on", "error", err)
		r.loaded = now
	}
	return r.keys, nil
}

// signing returns the key to sign with now.
func (r *keyring) signing(ctx context.Context) (token.SigningKey, error) {
	keys, err := r.current(ctx)
	if err != nil {
		return token.SigningKey{}, err
	}
	k := signer(keys, r.clock.Now())
	if k == nil {
		return token.SigningKey{}, errors.New("no signing key is active")
	}
	return token.SigningKey{ID: k.kid, Private: k.private}, nil
}

// publicSet is the JWK set.
func (r *keyring) publicSet(ctx context.Context) ([]byte, error) {
	keys, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	public := make(map[string]ed25519.PublicKey, len(keys))
	for _, k := range keys {
		public[k.kid] = k.public
	}
	return token.MarshalKeySet(public)
}
