package load

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// The scenarios and modes.
const (
	scenarioDirect = "direct"
	scenarioIdle   = "idle"
	modeClosed     = "closed"
	modeOpen       = "open"
)

// Options are the flags of `parley load`; client processes get them whole.
type Options struct {
	Scenario  string
	URL       string
	UsersFile string
	// Skip leaves out the first people of the file, for several loads at once.
	Skip int
	// Conns is the number of connections of idle, Steps the numbers at which it stops and measures.
	Conns  int
	Steps  []int
	Settle time.Duration
	Sync   bool

	Pairs int
	Mode  string
	// Wait is what a closed loop waits for before the next message: ack, delivery or both.
	Wait string
	// Rate is messages a second of the open loop, over all processes.
	Rate             float64
	Warmup, Duration time.Duration
	// Size of a message's text, in bytes.
	Size int

	Procs int
	// Dials is how many connections each process opens at once.
	Dials   int
	SrcIPs  string
	PIDs    string
	Metrics []string

	JSON  bool
	Quiet bool
	// Check records everything and judges it at the end.
	Check bool
	// RecordLimit is how many messages are recorded at most.
	RecordLimit int64
	Seed        uint64
	CPUProfile  string
}

// check refuses what cannot be run.
func (o *Options) check() error {
	switch {
	case o.URL == "":
		return errors.New("--url: where is the gateway? (ws://…/v1/ws)")
	case o.Scenario != scenarioDirect && o.Scenario != scenarioIdle:
		return fmt.Errorf("unknown scenario %q: %s or %s", o.Scenario, scenarioDirect, scenarioIdle)
	case o.Mode != modeClosed && o.Mode != modeOpen:
		return fmt.Errorf("--mode %q: closed or open", o.Mode)
	case o.Wait != "ack" && o.Wait != "delivery" && o.Wait != "both":
		return fmt.Errorf("--wait %q: ack, delivery or both", o.Wait)
	case o.Mode == modeOpen && o.Rate <= 0:
		return errors.New("--rate must be above 0")
	case o.Procs < 1 || o.Procs > 64:
		return errors.New("--procs must be 1 to 64")
	case o.Dials < 1:
		return errors.New("--dials must be 1 or more")
	case o.Size < 1 || o.Size > 4000:
		return errors.New("--size must be 1 to 4000")
	case o.Scenario == scenarioDirect && (o.Pairs < o.Procs || o.Pairs/o.Procs >= 1<<24):
		return errors.New("--pairs must be one per process or more")
	case o.Scenario == scenarioIdle && o.Conns < o.Procs:
		return errors.New("--conns must be one per process or more")
	}
	for _, ip := range o.sources() {
		if ip != "" && net.ParseIP(ip) == nil {
			return fmt.Errorf("--src-ips: %q is no address", ip)
		}
	}
	for i, step := range o.Steps {
		if step > o.Conns || i > 0 && step <= o.Steps[i-1] {
			return errors.New("--steps must rise, up to --conns")
		}
	}
	return nil
}

// people is how many the run needs.
func (o *Options) people() int {
	if o.Scenario == scenarioIdle {
		return o.Conns
	}
	return 2 * o.Pairs
}

// sources are the addresses to connect from; a number n stands for 127.0.0.2 and the n-1
// after it, for one address has 28,000 ports or so.
func (o *Options) sources() []string {
	if o.SrcIPs == "" {
		return []string{""}
	}
	n, err := strconv.Atoi(o.SrcIPs)
	if err != nil {
		return strings.Split(o.SrcIPs, ",")
	}
	var list []string
	for i := range min(max(n, 1), 250) {
		list = append(list, "127.0.0."+strconv.Itoa(i+2))
	}
	return list
}
