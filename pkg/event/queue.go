package event

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
)

// EnsureQueue makes a stream that is no stream of events, such as a work queue, if
// it is missing, and returns it: on disk, with the replicas of this bus. Settings
// of one that exists are the operator's.
func (b *Bus) EnsureQueue(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg.Storage, cfg.Replicas = jetstream.FileStorage, b.cfg.Replicas
	return b.ensure(ctx, cfg)
}
