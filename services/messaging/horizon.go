package messaging

import (
	"context"
	"time"
)

// horizonEvery bounds by how much cursors lie behind the present, in time: what
// changed since the horizon was last raised is told once more.
const horizonEvery = time.Second

// keepHorizon raises the horizon of Sync until ctx ends. Every replica does it;
// without any, cursors stand still and Syncs tell more than they need to.
func (s *Service) keepHorizon(ctx context.Context) error {
	tick := time.NewTicker(horizonEvery)
	defer tick.Stop()
	for {
		if err := s.queries.HorizonRaise(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "raise the horizon of Sync", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
