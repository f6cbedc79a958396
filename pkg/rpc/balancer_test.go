package rpc

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A burst may fill whatever is up while each of its calls looks for a place: none of
// them goes to what is put aside.
func TestABurstGoesToWhatIsUp(t *testing.T) {
	t.Parallel()
	const callers = 64
	for range 500 {
		down, up := &endpoint{backoff: mostBackoff, downUntil: time.Now().Add(time.Hour)}, &endpoint{}
		b := &balancer{endpoints: []*endpoint{down, up}}
		var got sync.WaitGroup
		start := make(chan struct{})
		for range callers {
			got.Go(func() {
				<-start
				b.pick(nil).waiting.Add(1)
			})
		}
		close(start)
		got.Wait()
		require.Zero(t, down.waiting.Load())
		require.EqualValues(t, callers, up.waiting.Load())
	}
}
