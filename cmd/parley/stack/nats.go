package stack

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// NATSOptions configures the NATS server with JetStream.
type NATSOptions struct {
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
	// InProcessOnly opens no port at all; clients connect with InProcess.
	InProcessOnly bool
	// MaxStore bounds the JetStream files in bytes; 0 lets the server choose by the free disk.
	MaxStore int64
	// SyncAlways makes an acknowledged message survive a power cut, at the price of one fsync each.
	SyncAlways bool
	// AccountPerUser gives every user name an account of its own, made when it first connects, with
	// JetStream: tests share a server without seeing each other. Any password is accepted.
	AccountPerUser bool
	// Outsider, if set, is called whenever a client comes by the port, before it is let in.
	Outsider func()
}

// NATS is a running server inside this process.
type NATS struct {
	// URL is empty when the server has no port.
	URL string

	server *server.Server
}

// InProcess connects clients of this process without a socket.
func (n *NATS) InProcess() nats.InProcessConnProvider { return n.server }

func startNATS(dir string, o NATSOptions) (*NATS, error) {
	opts := &server.Options{
		ServerName: "parley", Host: "127.0.0.1", Port: o.Port, DontListen: o.InProcessOnly,
		JetStream: true, StoreDir: dir, JetStreamMaxStore: o.MaxStore, SyncAlways: o.SyncAlways,
		NoSigs: true, NoLog: true,
	}
	if o.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	d := &door{outsider: o.Outsider}
	if o.AccountPerUser {
		d.made = map[string]*server.Account{}
	}
	opts.CustomClientAuthentication = d
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("configure NATS: %w", err)
	}
	// No client is accepted before Start, so Check never sees the zero field.
	d.server = ns
	go ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		ns.Shutdown()
		return nil, errors.New("start NATS: it accepts no connection after 10 s; is its port taken?")
	}
	n := &NATS{server: ns}
	if !ns.JetStreamEnabled() {
		n.stop()
		return nil, fmt.Errorf("start NATS: JetStream could not use %s", dir)
	}
	if !o.InProcessOnly {
		n.URL = "nats://" + ns.Addr().String()
	}
	return n, nil
}

func (n *NATS) stop() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
}

// door lets everybody in. It can put each user name into an account of its own, and tells of clients from
// outside of the process.
type door struct {
	server   *server.Server
	outsider func()

	mu   sync.Mutex
	made map[string]*server.Account // nil: all are in the global one
}

// Check is called by the server for each connecting client.
func (d *door) Check(c server.ClientAuthentication) bool {
	if d.outsider != nil && !withinProcess(c.RemoteAddress()) {
		d.outsider()
	}
	name := c.GetOpts().Username
	account := d.server.GlobalAccount()
	if name != "" && d.made != nil {
		var err error
		if account, err = d.account(name); err != nil {
			d.server.Errorf("account of %q: %v", name, err)
			return false
		}
	}
	c.RegisterUser(&server.User{Username: name, Account: account})
	return true
}

// withinProcess is whether a client is at the other end of a pipe.
func withinProcess(addr net.Addr) bool {
	return addr != nil && addr.Network() == "pipe"
}

// account makes the account under the lock: a second client of the same name must not get it before its
// JetStream is on.
func (d *door) account(name string) (*server.Account, error) {
	if strings.HasPrefix(name, "$") {
		return nil, errors.New("names of system accounts are not given out")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if account := d.made[name]; account != nil {
		return account, nil
	}
	account, _ := d.server.LookupOrRegisterAccount(name)
	if err := account.EnableJetStream(nil, nil); err != nil {
		return nil, fmt.Errorf("enable JetStream: %w", err)
	}
	d.made[name] = account
	return account, nil
}
