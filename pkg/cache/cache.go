// Package cache opens the connection to Redis.
//
// Redis holds nothing that cannot be lost: every key has a TTL and can be read
// again from PostgreSQL or be made anew. A process therefore starts and runs
// without it; a command that cannot reach Redis returns an error at once and its
// caller goes to the tables.
package cache

import (
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

const (
	dialTimeout = 2 * time.Second
	// A write that Redis has not taken after this long counts as lost. Callers
	// have a deadline of their own; this one frees the connection.
	writeTimeout = 5 * time.Second
)

// Open returns a client for url ("redis://:password@host:6379/0", rediss for
// TLS). Servers without RESP3 and client-side caching are reached with
// "?protocol=2&client_cache=0".
//
// When Redis is away, Open returns a client that connects as soon as it can,
// together with an error that wraps ErrAway. Any other error comes without a
// client: the URL is wrong.
func Open(url, name string) (rueidis.Client, error) {
	opt, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the URL of Redis does not parse") // the cause may quote the password
	}
	if opt.DisableCache = opt.DisableCache || opt.AlwaysRESP2; opt.ClientName == "" {
		opt.ClientName = name
	}
	opt.Dialer.Timeout = dialTimeout
	opt.ConnWriteTimeout = writeTimeout
	// One address, one client: it is what makes NewClient return a client that
	// reconnects even when the first dial fails.
	opt.ForceSingleClient = true
	client, err := rueidis.NewClient(opt)
	switch {
	case err != nil && client != nil:
		return client, fmt.Errorf("%w: %w", ErrAway, err)
	case err != nil:
		return nil, fmt.Errorf("open Redis: %w", err)
	}
	return client, nil
}

// ErrAway tells that Redis could not be reached when it was opened.
var ErrAway = errors.New("redis is away")
