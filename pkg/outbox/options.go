package outbox

import (
	"context"
	"time"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

type options struct {
	queueRows   int
	queueBytes  int
	grace       time.Duration
	poll        time.Duration
	relayBatch  int
	relayRate   int
	streamCheck time.Duration
	countEvery  time.Duration
	keep        time.Duration
	recovered   func(ctx context.Context, events []*eventv1.Event)
}

func defaults() options {
	return options{
		queueRows: 8192, queueBytes: 64 << 20,
		grace: 3 * time.Second, poll: time.Second,
		relayBatch: 200, relayRate: 5000,
		streamCheck: 10 * time.Second,
		countEvery:  15 * time.Second,
		keep:        3 * 24 * time.Hour,
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

// WithRelayRate caps the relay, in rows per second; 5000 by default. After an
// outage it shares NATS and listeners with the present.
func WithRelayRate(rows int) Option { return func(o *options) { o.relayRate = rows } }

// WithRelayBatch is how many rows the relay claims at once; 200 by default.
func WithRelayBatch(rows int) Option { return func(o *options) { o.relayBatch = rows } }

// WithKeep is for how long published rows are kept; three days by default.
func WithKeep(d time.Duration) Option { return func(o *options) { o.keep = d } }

// OnRecovered sets what WithRecovered sets, on an outbox that does not run yet.
func (o *Outbox) OnRecovered(fn func(ctx context.Context, events []*eventv1.Event)) {
	o.opts.recovered = fn
}
