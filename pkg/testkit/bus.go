package testkit

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bus is a NATS account of one test on the shared server: no subject, stream or consumer of another test is
// visible in it.
type Bus struct {
	// URL carries the account's name; every client that uses it is in the account.
	URL string
}

// NATS gives the test an account of its own on the shared NATS server, with JetStream. Its streams are
// deleted after the test.
func NATS(t testing.TB) *Bus {
	t.Helper()
	u, err := url.Parse(servers(t).NATS)
	if err != nil {
		t.Fatalf("read the URL of the NATS test server: %v", err)
	}
	u.User = url.UserPassword(randomName("test_"), "test")
	b := &Bus{URL: u.String()}
	t.Cleanup(func() { b.empty(t) })
	return b
}

// Connect returns a client that is closed after the test.
func (b *Bus) Connect(t testing.TB, options ...nats.Option) *nats.Conn {
	t.Helper()
	return connectNATS(t, b.URL, options...)
}

func connectNATS(t testing.TB, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.Name(t.Name())}, options...)...)
	if err != nil {
		t.Fatalf("connect to NATS: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// empty deletes the account's streams, so that a long run does not carry the data and consumers of all
// tests that have ended.
func (b *Bus) empty(t testing.TB) {
	nc, err := nats.Connect(b.URL)
	if err != nil {
		t.Errorf("connect to NATS to clean up: %v", err)
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Errorf("clean up NATS: %v", err)
		return
	}
	ctx := cleanupContext(t)
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		if err := js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("delete stream %s: %v", name, err)
		}
	}
	if err := names.Err(); err != nil && !strings.Contains(err.Error(), "no streams") {
		t.Errorf("list the streams to delete: %v", err)
	}
}
