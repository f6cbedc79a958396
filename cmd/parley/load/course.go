package load

import (
	"context"
	"fmt"
	"time"
)

const (
	// startIn is how far ahead the processes are told the beginning, so that they begin together.
	startIn = 300 * time.Millisecond
)

// course is one run as the parent drives it.
type course struct {
	o       Options
	fleet   *fleet
	watched *watched
	board   *board
	report  *Report
	// connecting are the seconds of all connecting so far, connecting99 those until 99 of 100 of each step were there.
	connecting, connecting99 float64
}

// connect opens connections up to a number over all processes.
func (c *course) connect(ctx context.Context, upTo int) error {
	c.board.enter("connect")
	began := time.Now()
	o := c.o
	outcomes, err := c.fleet.order(ctx, order{Do: "connect"}, func(process int) int {
		part := o
		part.Conns, part.Pairs = upTo, upTo/2
		return part.share(process)
	})
	if err != nil {
		return err
	}
	c.connecting += time.Since(began).Seconds()
	most := 0.0
	c.report.Errors = map[string]int64{}
	for _, one := range outcomes {
		c.report.Connections += one.Connected.Opened
		c.report.ConnectFailures += one.Connected.Failed
		most = max(most, one.Connected.Seconds99)
		for what, n := range one.Counts.Errors {
			c.report.Errors[what] += n
		}
	}
	c.connecting99 += most
	c.report.connected(c.connecting, c.connecting99, c.o.Scenario == scenarioIdle && c.o.Sync)
	return nil
}

// direct lets pairs talk.
func (c *course) direct(ctx context.Context) error {
	if err := c.connect(ctx, 2*c.o.Pairs); err != nil {
		return err
	}
	if c.report.ConnectFailures > 0 {
		return fmt.Errorf("%d of %d people could not connect: %v", c.report.ConnectFailures, 2*c.o.Pairs, c.report.Errors)
	}
	c.report.Mode = c.o.Mode
	c.board.enter("prepare")
	if _, err := c.fleet.order(ctx, order{Do: "prepare"}, nil); err != nil {
		return err
	}
	c.board.enter("load")
	at := time.Now().Add(startIn)
	sampling, end := context.WithCancel(ctx)
	defer end()
	samples := c.sampleBetween(ctx, sampling, at)
	outcomes, err := c.fleet.order(ctx, order{Do: "run", At: at}, nil)
	if err != nil {
		return err
	}
	end()
	c.report.Ended = at.Add(c.o.Warmup + c.o.Duration)
	used := <-samples
	if used.err != nil {
		return used.err
	}
	c.gather(outcomes)
	c.report.used(used.before.usage, used.after.usage, used.part(at.Add(c.o.Warmup), c.report.Seconds))
	for name, p := range c.report.Processes {
		p.RSSPeak = used.peak[name]
	}
	c.report.cached(used.before.caches, used.after.caches)
	c.report.ClientCPUSeconds = round(c.report.ClientCPUSeconds, 3)
	if c.report.AckedIn > 0 {
		c.report.ClientMicros = round(c.report.ClientCPUSeconds/float64(c.report.AckedIn)*1e6, 1)
	}
	c.board.enter("judge")
	return c.judge(ctx)
}

// gather adds up what the processes counted in the window.
func (c *course) gather(outcomes []*outcome) {
	all := newCounts()
	measured := 0.0
	for _, one := range outcomes {
		all.add(one.Counts)
		measured = max(measured, one.Seconds)
		c.report.ClientCPUSeconds += one.CPU
		c.report.AliveAtEnd += one.Alive
		c.report.Watching += one.Watching
		c.report.Unseen += one.Unseen
		c.report.Full = c.report.Full || one.Full
	}
	c.report.counted(all, measured)
}

func (c *course) judge(ctx context.Context) error {
	outcomes, err := c.fleet.order(ctx, order{Do: "judge"}, nil)
	if err != nil {
		return err
	}
	all := newCounts()
	verdict := &Verdict{Checked: true, Violations: map[string]int64{}}
	for _, one := range outcomes {
		verdict.add(one.Verdict)
		all.add(one.Counts)
	}
	c.report.PushesMissed = all.Missed // the judge's own repair found some
	c.report.judged(verdict)
	return nil
}

// used is two samples of the server processes.
type used struct {
	before, after sample
	// peak is the most resident memory that was seen from the first sample to the last answer.
	peak map[string]int64
	err  error
}

// part is which part of what was used between the samples counts for the measured time: all but what was used before it. Who
// waits for the last answers after it uses next to nothing, however long that takes.
func (u *used) part(begin time.Time, seconds float64) float64 {
	ahead := begin.Sub(u.before.at).Seconds()
	if ahead <= 0 {
		return 1
	}
	return seconds / (seconds + ahead)
}

const (
	// samplePeak is how often the memory of the processes themselves is looked at while they work.
	samplePeak = 100 * time.Millisecond
	// sampleAhead is how long before the measured time the processes are asked, so that what the asking itself delays is
	// not in it: on one CPU the metrics of everything in one process take ten milliseconds.
	sampleAhead = 200 * time.Millisecond
)

// sampleBetween samples the server processes shortly before the measured time, if there is a warm-up to do it in, and at the
// end of it, or earlier if the load ends. Memory is walked after the last answer, when it delays nobody.
func (c *course) sampleBetween(ctx, loading context.Context, at time.Time) <-chan used {
	done := make(chan used, 1)
	from := at.Add(c.o.Warmup - min(c.o.Warmup, sampleAhead))
	until := at.Add(c.o.Warmup + c.o.Duration)
	go func() {
		u := used{peak: map[string]int64{}}
		_ = sleepUntil(loading, from)
		if u.before, u.err = c.watched.sample(ctx, false); u.err == nil {
			c.watched.peaks(loading, until, u.peak)
			u.after, u.err = c.watched.sample(ctx, false)
		}
		c.watched.peaks(loading, time.Now().Add(time.Hour), u.peak)
		if u.err == nil {
			u.err = c.watched.memory(u.after.usage)
		}
		done <- u
	}()
	return done
}

// idle connects everybody, step by step, and measures what silence costs.
func (c *course) idle(ctx context.Context) error {
	steps := c.o.Steps
	if len(steps) == 0 || steps[len(steps)-1] != c.o.Conns {
		steps = append(append([]int(nil), steps...), c.o.Conns)
	}
	first, err := c.watched.sample(ctx, true)
	if err != nil {
		return err
	}
	if len(steps) == 1 { // what one number costs is told by the difference to none
		c.report.Steps = append(c.report.Steps, Step{Usage: first.usage})
	}
	for _, step := range steps {
		if err := c.connect(ctx, step); err != nil {
			return err
		}
		if err := c.step(ctx); err != nil {
			return err
		}
	}
	outcomes, err := c.fleet.order(ctx, order{Do: "look"}, nil)
	if err != nil {
		return err
	}
	c.gather(outcomes)
	c.report.Seconds = round(c.connecting, 3)
	c.report.used(first.usage, c.report.Steps[len(c.report.Steps)-1].Usage, 1)
	c.report.sloped()
	return nil
}

// step settles at one number of connections and measures.
func (c *course) step(ctx context.Context) error {
	if c.o.Watch > 0 {
		c.board.enter("watch")
		if _, err := c.fleet.order(ctx, order{Do: "watch"}, nil); err != nil {
			return err
		}
	}
	c.board.enter("settle")
	if err := sleepUntil(ctx, time.Now().Add(c.o.Settle)); err != nil {
		return err
	}
	if err := c.watched.release(ctx); err != nil {
		return err
	}
	now, err := c.watched.sample(ctx, true)
	if err != nil {
		return err
	}
	c.report.Steps = append(c.report.Steps, Step{Connections: c.report.Connections, Usage: now.usage})
	return nil
}
