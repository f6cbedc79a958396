package messaging

import (
	"context"
	"fmt"
	"time"

	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	// sendKeyLife is for how long SendMessage recognises a retry; the proto says so.
	sendKeyLife = 7 * 24 * time.Hour
	// pruneChunk keys are deleted by one statement, so that none is long.
	pruneChunk = 5000
)

// entryPartitions are those of the log: by month, never dropped.
func entryPartitions() postgres.Partitions {
	return postgres.Partitions{Table: "entry", Span: postgres.Monthly}
}

// pruneSendKeys forgets the client message ids that are too old to be retried.
func (s *Service) pruneSendKeys(ctx context.Context) error {
	before := s.clock.Now().Add(-sendKeyLife)
	for {
		n, err := s.queries.SendKeyPrune(ctx, db.SendKeyPruneParams{Before: before, BatchSize: pruneChunk})
		if err != nil {
			return fmt.Errorf("delete old send keys: %w", err)
		}
		if n < pruneChunk {
			return nil
		}
	}
}
