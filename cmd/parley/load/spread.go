package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/parleychat/parley/cmd/parley/crowd"
)

// workerCommand is the hidden subcommand that client processes run as.
const workerCommand = "load-worker"

// child is one client process as the parent sees it.
type child struct {
	in      io.WriteCloser
	orders  *json.Encoder
	answers *json.Decoder
	done    chan *outcome
	ended   chan struct{} // closed when its answers end
	why     error         // set before
	wait    func() error
}

// fleet is all client processes. One alone is not forked: it runs in this process.
type fleet struct {
	children []*child
	board    *board
}

// startFleet starts the processes and gives each its share of the people.
func startFleet(ctx context.Context, o Options, people []crowd.Person, mint crowd.Mint, tag uint16, b *board, plant plant) (*fleet, error) {
	f := &fleet{board: b}
	for i := range o.Procs {
		var c *child
		var err error
		if o.Procs == 1 {
			c = inProcess(ctx, plant)
		} else {
			c, err = fork(ctx)
		}
		if err != nil {
			return f, err
		}
		f.children = append(f.children, c)
		j := job{Options: o, Process: i, Tag: tag, People: people[:o.share(i)], Mint: mint}
		people = people[o.share(i):]
		if err := c.orders.Encode(j); err != nil {
			return f, fmt.Errorf("start client process %d: %w", i, err)
		}
		go c.listen(i, b)
	}
	return f, nil
}

// share is how many people process i gets: whole pairs.
func (o *Options) share(i int) int {
	whole, size := o.people(), 1
	if o.Scenario == scenarioDirect {
		whole, size = o.Pairs, 2
	}
	n := whole / o.Procs
	if i < whole%o.Procs {
		n++
	}
	return n * size
}

func inProcess(ctx context.Context, plant plant) *child {
	orders, in := io.Pipe()
	out, answers := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := serve(ctx, orders, answers, plant)
		_ = answers.CloseWithError(io.EOF) // never fails
		ended <- err
	}()
	return newChild(in, out, func() error { return <-ended })
}

// fork starts this program again as a client process. It ends when its orders do, so it
// does not outlive us.
func fork(ctx context.Context) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, workerCommand)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start a client process: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a client process: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a client process: %w", err)
	}
	return newChild(in, out, cmd.Wait), nil
}

func newChild(in io.WriteCloser, out io.Reader, wait func() error) *child {
	return &child{
		in: in, orders: json.NewEncoder(in), answers: json.NewDecoder(bufio.NewReaderSize(out, 1<<16)),
		done: make(chan *outcome, 1), ended: make(chan struct{}), wait: wait,
	}
}

// listen takes what a client process tells, until it ends.
func (c *child) listen(i int, b *board) {
	defer close(c.ended)
	for {
		var a answer
		if err := c.answers.Decode(&a); err != nil {
			if !errors.Is(err, io.EOF) {
				c.why = err
			}
			return
		}
		if a.Second != nil {
			b.tell(i, a.Second)
		}
		if a.Done != nil {
			c.done <- a.Done
		}
	}
}

// order gives all processes an order and waits for every answer; upTo tells each its own
// number of connections.
func (f *fleet) order(ctx context.Context, o order, upTo func(process int) int) ([]*outcome, error) {
	for i, c := range f.children {
		if upTo != nil {
			o.UpTo = upTo(i)
		}
		if err := c.orders.Encode(o); err != nil {
			return nil, fmt.Errorf("client process %d has ended: %w", i, err)
		}
	}
	all := make([]*outcome, len(f.children))
	for i, c := range f.children {
		select {
		case all[i] = <-c.done:
			if all[i].Error != "" {
				return all, fmt.Errorf("%s: %s", o.Do, all[i].Error)
			}
		case <-c.ended:
			return nil, errors.Join(fmt.Errorf("client process %d has ended", i), c.why)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return all, nil
}

// stop ends all processes.
func (f *fleet) stop() error {
	var ending sync.WaitGroup
	errs := make([]error, len(f.children))
	for i, c := range f.children {
		ending.Go(func() {
			err := c.in.Close() // the end of its orders
			<-c.ended
			errs[i] = errors.Join(err, c.wait())
		})
	}
	ending.Wait()
	return errors.Join(errs...)
}
