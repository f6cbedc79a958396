package outbox

import (
	"context"
	"time"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// relayRate caps the relay, in rows per second: after an outage it shares NATS
	// and listeners with the present.
	relayRate = 5000
	// keep is for how long published rows stay.
	keep = 3 * 24 * time.Hour
)

type options struct {
	queueRows   int
	queueBytes  int
	grace       time.Duration
	poll        time.Duration
	relayBatch  int
	streamCheck time.Duration
	countEvery  time.Duration
	recovered   func(ctx context.Context, events []*eventv1.Event)
}

func defaults() options {
	return options{
		queueRows: 8192, queueBytes: 64 << 20,
		grace: 3 * time.Second, poll: time.Second,
		relayBatch:  200,
		streamCheck: 10 * time.Second,
		countEvery:  15 * time.Second,
	}
}

// Option changes how an Outbox works.
type Option func(*options)

// WithRecovered sets what the relay calls with the events of rows that a dead
// process left, if they are younger than a minute: clients wait for their push.
func WithRecovered(fn func(ctx context.Context, events []*eventv1.Event)) Option {
	return func(o *options) { o.recovered = fn }
}

// WithQueue bounds the rows between commit and mark that the process holds, in
// rows and in bytes of their events; 8192 and 64 MiB by default.
func WithQueue(rows, bytes int) Option {
	return func(o *options) { o.queueRows, o.queueBytes = rows, bytes }
}

// WithGrace is how old a row must be before a relay claims it; 3 s by default.
// Until then it is likely that the process which committed it publishes it.
func WithGrace(d time.Duration) Option { return func(o *options) { o.grace = d } }

// WithPoll is how often the relay looks; 1 s by default.
func WithPoll(d time.Duration) Option { return func(o *options) { o.poll = d } }

// WithStreamCheck is how often the outbox looks whether its stream is still the
// one that it filled; 10 s by default.
func WithStreamCheck(d time.Duration) Option { return func(o *options) { o.streamCheck = d } }

// WithCountEvery is how often the backlog is counted for the metrics; 15 s by
// default.
func WithCountEvery(d time.Duration) Option { return func(o *options) { o.countEvery = d } }

// WithRelayBatch is how many rows the relay claims at once; 200 by default.
func WithRelayBatch(rows int) Option { return func(o *options) { o.relayBatch = rows } }
