package load

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// board gathers the seconds of all client processes and shows them.
type board struct {
	mu     sync.Mutex
	alive  map[int]int
	counts *Counts
	phase  string
	out    io.Writer
	began  time.Time
}

func newBoard(out io.Writer) *board {
	return &board{alive: map[int]int{}, counts: newCounts(), out: out, began: time.Now()}
}

func (b *board) tell(process int, s *second) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alive[process] = s.Alive
	b.counts.add(s.Counts)
}

// enter names what is going on now.
func (b *board) enter(phase string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phase = phase
}

// show prints a line a second until ctx ends.
func (b *board) show(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = io.WriteString(b.out, b.line()) // a display that is gone is no reason to end
		}
	}
}

func (b *board) line() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	alive := 0
	for _, n := range b.alive {
		alive += n
	}
	c := b.counts
	var errors int64
	for _, n := range c.Errors {
		errors += n
	}
	line := fmt.Sprintf("%4.0fs %-8s conns %6d  sent/s %6d  acked/s %6d  delivered/s %6d  ack p50 %s p99 %s  delivery p50 %s p99 %s  errors %d\n",
		time.Since(b.began).Seconds(), b.phase, alive, c.Sent, c.AckedIn, c.DeliveredIn,
		ms(c.Ack, 50), ms(c.Ack, 99), ms(c.Delivery, 50), ms(c.Delivery, 99), errors)
	c.reset()
	return line
}

// ms is a percentile for people.
func ms(l latencies, percentile float64) string {
	if l.TotalCount() == 0 {
		return "     -"
	}
	return fmt.Sprintf("%6.1fms", float64(l.ValueAtPercentile(percentile))/1000)
}
