package load

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parleychat/parley/cmd/parley/dev"
)

// The scenarios and modes.
const (
	scenarioDirect = "direct"
	scenarioIdle   = "idle"
	modeClosed     = "closed"
	modeOpen       = "open"

	waitForAck      = "ack"
	waitForDelivery = "delivery"
	waitForBoth     = "both"
)

const (
	// mostProcs and mostTalks fit into a client id (talk.clientID).
	mostProcs = 64
	mostTalks = 1 << 24
	// mostText is what the API allows, in characters; ours have a byte each.
	mostText = 4000
	// mostWatches is what a gateway allows a connection.
	mostWatches = 200
	// defaultURL is where `parley dev` listens.
	defaultURL = "ws://127.0.0.1:8080/v1/ws"
)

// Options are the flags of `parley load`; client processes get them whole.
type Options struct {
	// Data is the folder of a `parley dev` that URL, PIDs and Metrics are taken from, if set.
	Data      string `json:"data"`
	Scenario  string `json:"scenario"`
	URL       string `json:"url"`
	UsersFile string `json:"users_file"`
	// Skip leaves out the first people of the file, for several loads at once.
	Skip int `json:"skip"`
	// Conns is the number of connections of idle, Steps the numbers at which it stops and measures.
	Conns  int           `json:"conns"`
	Steps  []int         `json:"steps"`
	Settle time.Duration `json:"settle"`
	Sync   bool          `json:"sync"`
	// Watch is how many people's presence each connection of idle watches.
	Watch int `json:"watch"`

	Pairs int    `json:"pairs"`
	Mode  string `json:"mode"`
	// Wait is what a closed loop waits for before the next message: ack, delivery or both.
	Wait string `json:"wait"`
	// Rate is messages a second of the open loop, over all processes.
	Rate float64 `json:"rate"`
	// Starts is how often a second somebody opens the app, over all processes.
	Starts   float64       `json:"starts"`
	Warmup   time.Duration `json:"warmup"`
	Duration time.Duration `json:"duration"`
	// Size of a message's text, in bytes.
	Size int `json:"size"`

	Procs int `json:"procs"`
	// Dials is how many connections each process opens at once.
	Dials   int      `json:"dials"`
	SrcIPs  string   `json:"src_ips"`
	PIDs    string   `json:"pids"`
	Metrics []string `json:"metrics"`

	JSON  bool `json:"json"`
	Quiet bool `json:"quiet"`
	// Check records everything and judges it at the end.
	Check bool `json:"check"`
	// RecordLimit is how many messages are recorded at most.
	RecordLimit int64  `json:"record_limit"`
	Seed        uint64 `json:"seed"`
	CPUProfile  string `json:"cpu_profile"`
}

// check refuses what cannot be run.
func (o *Options) check() error { //nolint:cyclop // a list of rules, one a line
	for _, one := range []struct {
		good bool
		what string
	}{
		{o.URL != "", "--url: where is the gateway? (ws://…/v1/ws)"},
		{o.Scenario == scenarioDirect || o.Scenario == scenarioIdle, "--scenario: direct or idle"},
		{o.Mode == modeClosed || o.Mode == modeOpen, "--mode: closed or open"},
		{o.Wait == waitForAck || o.Wait == waitForDelivery || o.Wait == waitForBoth, "--wait: ack, delivery or both"},
		{o.Mode != modeOpen || o.Rate > 0, "--rate: above 0"},
		{o.Starts >= 0, "--starts: 0 or above"},
		{o.Procs >= 1 && o.Procs <= mostProcs, "--procs: 1 to 64"},
		{o.Dials >= 1, "--dials: 1 or more"},
		{o.Watch >= 0 && o.Watch <= mostWatches, "--watch: 0 to 200"},
		{o.Size >= 1 && o.Size <= mostText, "--size: 1 to 4000"},
		{o.Scenario != scenarioDirect || o.Pairs >= o.Procs && o.Pairs < mostTalks, "--pairs: one per process or more"},
		{o.Scenario != scenarioIdle || o.Conns >= o.Procs, "--conns: one per process or more"},
		{o.RecordLimit > 0, "--record-limit: above 0"},
		{slices.IsSorted(o.Steps) && (len(o.Steps) == 0 || o.Steps[len(o.Steps)-1] <= o.Conns), "--steps: rising, up to --conns"},
	} {
		if !one.good {
			return errors.New(one.what)
		}
	}
	for _, ip := range o.sources() {
		if ip != "" && net.ParseIP(ip) == nil {
			return fmt.Errorf("--src-ips: %q is no address", ip)
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

// gatewayOf is the socket's URL for a person: neighbours are on different gateways, so that pairs talk
// from one to another.
func (o *Options) gatewayOf(person int) string {
	list := strings.Split(o.URL, ",")
	return list[person%len(list)]
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

// find takes from a running `parley dev` what was asked for and not given.
func (o *Options) find() error {
	if o.Data == "" {
		o.URL = cmp.Or(o.URL, defaultURL)
		return nil
	}
	operator, err := dev.ReadOperator(o.Data)
	if err != nil {
		return err
	}
	at := operator.Ready
	o.URL = cmp.Or(o.URL, at.Socket)
	if len(o.Metrics) == 0 {
		o.Metrics = []string{at.Admin}
	}
	if o.PIDs == "" {
		o.PIDs = fmt.Sprintf("server=%d,postgres=%d", at.PIDs["stack"], at.PIDs["postgres"])
		if redis := at.PIDs["redis"]; redis != 0 {
			o.PIDs += fmt.Sprintf(",redis=%d", redis)
		}
	}
	return nil
}
