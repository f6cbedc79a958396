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
	mu    sync.Mutex
	alive map[int]int
	all   second
	phase string
	out   io.Writer
	began time.Time
}

func newBoard(out io.Writer) *board {
	b := &board{alive: map[int]int{}, out: out, began: time.Now()}
	b.all.Ack.latencies, b.all.Delivery.latencies = newLatencies(displayDigits), newLatencies(displayDigits)
	return b
}

func (b *board) tell(process int, s *second) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alive[process] = s.Alive
	b.all.Sent += s.Sent
	b.all.Acked += s.Acked
	b.all.Delivered += s.Delivered
	b.all.Errors += s.Errors
	b.all.Ack.Merge(s.Ack.Histogram)
	b.all.Delivery.Merge(s.Delivery.Histogram)
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
	all := &b.all
	line := fmt.Sprintf("%4.0fs %-8s conns %6d  sent/s %6d  acked/s %6d  delivered/s %6d  ack p50 %s p99 %s  delivery p50 %s p99 %s  errors %d\n",
		time.Since(b.began).Seconds(), b.phase, alive, all.Sent, all.Acked, all.Delivered,
		ms(all.Ack, 50), ms(all.Ack, 99), ms(all.Delivery, 50), ms(all.Delivery, 99), all.Errors)
	all.Sent, all.Acked, all.Delivered, all.Errors = 0, 0, 0, 0
	all.Ack.Reset()
	all.Delivery.Reset()
	return line
}

// ms is a percentile for people.
func ms(l coarse, percentile float64) string {
	if l.TotalCount() == 0 {
		return "     -"
	}
	return fmt.Sprintf("%6.1fms", float64(l.ValueAtPercentile(percentile))/1000)
}
