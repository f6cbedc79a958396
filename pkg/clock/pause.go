package clock

import (
	"context"
	"time"
)

// Pause waits for d, in the runtime's time, and says whether it has: false means
// that ctx has ended first.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
