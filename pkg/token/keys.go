package token

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// keyRefresh is the age at which the set is fetched again although it has the
	// wanted key: a withdrawn key is forgotten after that long.
	keyRefresh = 5 * time.Minute
	// keyRetry is the least time between two fetches, so that tokens with made-up
	// key ids cannot turn us against auth.
	keyRetry = time.Second
	// keyTimeout bounds one fetch.
	keyTimeout = 5 * time.Second
	// maxKeySet bounds the answer, in bytes.
	maxKeySet = 1 << 16
)

// StaticKeys is a KeySource that never changes: key id → key.
type StaticKeys map[string]ed25519.PublicKey

// Key finds a key.
func (k StaticKeys) Key(_ context.Context, kid string) (ed25519.PublicKey, error) {
	if key, ok := k[kid]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("%w: unknown key", ErrInvalid)
}

// MarshalKeySet writes the JWK set (RFC 7517) of public keys by key id, as auth
// serves it.
func MarshalKeySet(keys map[string]ed25519.PublicKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(keys))}
	for kid, key := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{
			Key: key, KeyID: kid, Algorithm: string(jose.EdDSA), Use: "sig",
		})
	}
	out, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode key set: %w", err)
	}
	return out, nil
}

// ParseKeySet reads the Ed25519 signing keys of a JWK set; others are left out.
// A set without a usable key is an error.
func ParseKeySet(data []byte) (map[string]ed25519.PublicKey, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("decode key set: %w", err)
	}
	keys := make(map[string]ed25519.PublicKey, len(set.Keys))
	for _, k := range set.Keys {
		key, ok := k.Key.(ed25519.PublicKey)
		if !ok || k.KeyID == "" || (k.Use != "" && k.Use != "sig") {
			continue
		}
		keys[k.KeyID] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("key set has no usable key")
	}
	return keys, nil
}

// RemoteSet is a KeySource that fetches a JWK set and keeps it. While auth is
// away the keys that are known stay good.
type RemoteSet struct {
	client *http.Client
	url    string
	clock  clock.Clock
	flight singleflight.Group

	mu        sync.RWMutex
	keys      map[string]ed25519.PublicKey // nil: never fetched
	fetched   time.Time                    // when keys were fetched
	tried     time.Time                    // when the last fetch ended; the machine's time, for it paces the network
	failed    error                        // of the last fetch
	withdrawn []func()
}

// RemoteKeys fetches the set at url when it is first needed.
func RemoteKeys(client *http.Client, url string, clk clock.Clock) *RemoteSet {
	return &RemoteSet{client: client, url: url, clock: clk}
}

// Key finds a key. An unknown key id makes it fetch the set again, at most once
// a second. It returns ErrUnavailable if the set was never fetched or cannot be
// fetched while an unknown key id is asked for.
func (r *RemoteSet) Key(ctx context.Context, kid string) (ed25519.PublicKey, error) {
	key, known, fresh := r.lookup(kid)
	if known && fresh {
		return key, nil
	}
	done := r.flight.DoChan("", func() (any, error) { return nil, r.refresh(context.WithoutCancel(ctx)) })
	if known {
		// Old but good: whoever waits for the fetch, it is not this call.
		return key, nil
	}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case res := <-done:
		if key, known, _ = r.lookup(kid); known {
			return key, nil
		}
		if res.Err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, res.Err)
		}
		return nil, fmt.Errorf("%w: unknown key", ErrInvalid)
	}
}

// Fetch gets the set now, for a readiness check. It fails if no set is known and
// none can be had.
func (r *RemoteSet) Fetch(ctx context.Context) error {
	r.mu.RLock()
	known := r.keys != nil
	r.mu.RUnlock()
	if known {
		return nil
	}
	return r.refresh(ctx)
}

func (r *RemoteSet) lookup(kid string) (key ed25519.PublicKey, known, fresh bool) {
	now := r.clock.Now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	key, known = r.keys[kid]
	return key, known, now.Sub(r.fetched) < keyRefresh
}

func (r *RemoteSet) refresh(ctx context.Context) error {
	r.mu.RLock()
	tried, failed := r.tried, r.failed
	r.mu.RUnlock()
	if !tried.IsZero() && time.Since(tried) < keyRetry {
		return failed
	}
	keys, err := r.fetch(ctx)

	r.mu.Lock()
	r.tried, r.failed = time.Now(), err
	var tell []func()
	if err == nil {
		for kid, old := range r.keys {
			if !old.Equal(keys[kid]) {
				tell = r.withdrawn
				break
			}
		}
		r.keys, r.fetched = keys, r.clock.Now()
	}
	r.mu.Unlock()
	for _, fn := range tell {
		fn()
	}
	return err
}

func (r *RemoteSet) fetch(ctx context.Context) (map[string]ed25519.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch key set: status %d", res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxKeySet))
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	return ParseKeySet(data)
}

func (r *RemoteSet) onWithdrawn(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withdrawn = append(r.withdrawn, fn)
}
