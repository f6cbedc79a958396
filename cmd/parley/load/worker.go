package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/parleychat/parley/cmd/parley/crowd"
)

// A client process is told what to do by lines of JSON on its standard input, and answers
// each by one line; once a second in between it tells what it counted.

// job is the first line.
type job struct {
	Options Options        `json:"options"`
	Process int            `json:"process"`
	Tag     uint16         `json:"tag"`
	People  []crowd.Person `json:"people"`
	Mint    crowd.Mint     `json:"mint"`
}

// order is every line after it.
type order struct {
	Do string `json:"do"`
	// UpTo is the number of connections after connect.
	UpTo int `json:"up_to"`
	// At is when run begins.
	At time.Time `json:"at"`
}

// answer is a line of the client process: to an order, or a second's counts.
type answer struct {
	Second *second  `json:"second,omitempty"`
	Done   *outcome `json:"done,omitempty"`
}

// second is what is shown while the load runs.
type second struct {
	Alive     int    `json:"alive"`
	Sent      int64  `json:"sent"`
	Acked     int64  `json:"acked"`
	Delivered int64  `json:"delivered"`
	Errors    int64  `json:"errors"`
	Ack       coarse `json:"ack"`
	Delivery  coarse `json:"delivery"`
}

// secondOf is what is shown of counts that the meter tells, and valid for as long.
func secondOf(c *Counts, alive int) *second {
	s := &second{
		Alive: alive, Sent: c.Sent, Acked: c.AckedIn, Delivered: c.DeliveredIn, Ack: coarse{c.Ack}, Delivery: coarse{c.Delivery},
	}
	for _, n := range c.Errors {
		s.Errors += n
	}
	return s
}

// outcome answers an order.
type outcome struct {
	Error     string     `json:"error"`
	Connected *Connected `json:"connected,omitempty"`
	// Counts are those of the measured window, Verdict what the judge found.
	Counts  *Counts  `json:"counts,omitempty"`
	Verdict *Verdict `json:"verdict,omitempty"`
	// CPU is what this process used in the measured window, in seconds.
	CPU float64 `json:"cpu"`
	// Seconds is how long the window was: shorter than wished if the record was full.
	Seconds float64 `json:"seconds"`
	Alive   int     `json:"alive"`
	// Watching are the people whose presence the connections watch, Unseen those of them of whom the server told nothing.
	Watching int64 `json:"watching"`
	Unseen   int64 `json:"unseen"`
	// Full: the record was, and the load ended early.
	Full bool `json:"full"`
}

// worker serves one client process.
type worker struct {
	run *run
	out *json.Encoder
	mu  sync.Mutex // of out
}

// serve obeys orders until their end or that of ctx.
func serve(ctx context.Context, in io.Reader, out io.Writer, plant plant) error {
	lines := json.NewDecoder(bufio.NewReaderSize(in, 1<<16))
	var j job
	if err := lines.Decode(&j); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	w := &worker{run: newRun(ctx, j, plant), out: json.NewEncoder(out)}
	var background sync.WaitGroup
	background.Go(func() { w.run.keeper(ctx) })
	background.Go(func() { w.seconds(ctx) })
	defer background.Wait()
	defer stop()
	for {
		var o order
		if err := lines.Decode(&o); err != nil {
			w.run.end()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read an order: %w", err)
		}
		if err := w.tell(answer{Done: w.obey(ctx, o)}); err != nil {
			w.run.end()
			return err
		}
	}
}

func (w *worker) tell(a answer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.out.Encode(a); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

func (w *worker) obey(ctx context.Context, o order) *outcome {
	r := w.run
	var done outcome
	var err error
	switch o.Do {
	case "connect":
		c := r.connect(ctx, o.UpTo)
		done.Connected = &c
	case "prepare":
		err = r.prepare(ctx)
		runtime.GC() // of what came before, or it would be in the measured time
	case "watch":
		err = r.watchAll(ctx)
	case "run":
		err = r.direct(ctx, o.At)
	case "judge":
		done.Verdict = r.judge(ctx)
	case "look":
	case "end":
		r.end()
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	if err != nil {
		done.Error = err.Error()
	}
	done.Counts, done.CPU, done.Alive, done.Full = r.meter.takeWindow(), r.cpu, r.alive(), r.full.Load()
	for _, s := range r.connected() {
		done.Watching += int64(s.watching.Load())
		done.Unseen += int64(s.unseen.Load())
	}
	done.Seconds = min(r.seconds, r.opts.Duration.Seconds())
	return &done
}

// seconds tells every second what was counted in it.
func (w *worker) seconds(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := w.run.meter.tellSecond(func(c *Counts) error {
				return w.tell(answer{Second: secondOf(c, w.run.alive())})
			})
			if err != nil {
				return // the parent has gone; the end of its orders tells the rest
			}
		}
	}
}

// ownCPU is what this process used so far, in seconds.
func ownCPU() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}
