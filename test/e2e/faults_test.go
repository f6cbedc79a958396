package e2e_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/test/e2e/system"
)

// During each fault the crowd talks steadily, and it must be able to go on
// afterwards. In the end the history says whether a promise was broken.

// steady is how many acknowledgements count as a steady load.
const steady = 150

// messagingIsKilled: one replica dies in the middle of its transactions; the other
// goes on, and the dead one comes back. What the dead one had committed and not
// told is told by the other: the idle interval is the product's, two minutes, so
// nothing else repairs it in time.
func messagingIsKilled(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	for _, name := range []string{"messaging-1", "messaging-2"} {
		l.await(t, steady)
		sys.Process(name).Kill9()
		l.await(t, steady) // by the other replica
		sys.Process(name).Start()
	}
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// gatewayIsKilled: the devices of a dead gateway go to the other one, and come
// to both again later.
func gatewayIsKilled(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	for _, name := range []string{"gateway-1", "gateway-2"} {
		l.await(t, steady)
		sys.Process(name).Kill9()
		l.await(t, steady)
		sys.Process(name).Start()
	}
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// allInOneIsKilled: everything dies at once and starts on the same data.
func allInOneIsKilled(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, steady)
	sys.Process("parley").Kill9()
	sys.Process("parley").Start()
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// outsiderComesToTheBus: pushes within one process take no bus, until somebody from
// outside comes to it. The outsider then sees what is pushed, and whatever the sockets
// missed at the change they repair: the idle interval is the product's.
func outsiderComesToTheBus(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, steady)
	outsider, err := nats.Connect(sys.BusURL())
	require.NoError(t, err)
	defer outsider.Close()
	pushes, err := outsider.SubscribeSync(realtime.SubjectWildcard)
	require.NoError(t, err)
	require.NoError(t, outsider.Flush())
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
	for _, d := range c.devices {
		d.awaitResync(t)
	}
	_, err = pushes.NextMsg(soon)
	require.NoError(t, err, "pushes take the bus now")
}

// busRestarts: NATS is killed during the load and is away for a while; messages
// are accepted all the same. Then the gateways tell their sockets to resync: the
// idle interval is the product's, two minutes, so nothing else repairs them in
// time.
func busRestarts(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, steady)
	sys.NATS.Kill9()
	l.await(t, steady) // Postgres is the truth, the bus a hint
	sys.NATS.Restart()
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
	for _, d := range c.devices {
		d.awaitResync(t)
	}
}

// gatewayLosesBus: one gateway is cut from NATS while the people of the other
// write and then fall silent. Its sockets stay open and hear nothing; after the
// cut they are told to resync.
func gatewayLosesBus(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, steady)
	sys.Bus[0].Cut()
	l.await(t, steady)
	l.end(t)
	sys.Bus[0].Heal()
	c.judge(t, eventually)
	c.devices[0].awaitResync(t) // it is on the gateway that was cut
}

// messagingHangs: a replica stops to answer, with its connections open, and goes
// on later with what it had in its hands.
func messagingHangs(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	for _, name := range []string{"messaging-1", "messaging-2"} {
		l.await(t, steady)
		sys.Process(name).Pause()
		l.await(t, steady/3) // the other one answers; those that hang try again
		sys.Process(name).Resume()
	}
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// databaseIsKilled: PostgreSQL dies in the middle of commits, recovers, and
// everything that was acknowledged is there.
func databaseIsKilled(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	for range 2 {
		l.await(t, steady)
		sys.Postgres.Kill9()
		sys.Postgres.Restart()
	}
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// rollingRestart: every process ends in order and starts again while people talk,
// as in a release.
func rollingRestart(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	for _, name := range []string{"auth", "user", "messaging-1", "messaging-2", "gateway-1", "gateway-2"} {
		l.await(t, steady)
		sys.Process(name).Stop()
		sys.Process(name).Start()
	}
	l.await(t, steady)
	l.end(t)
	c.judge(t, eventually)
}

// othersAreKilled: what sending does not need may die: auth, user and Redis.
func othersAreKilled(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, steady)
	sys.Process("auth").Kill9()
	sys.Process("user").Kill9()
	sys.Redis.Kill9()
	l.await(t, 2*steady)
	sys.Redis.Restart()
	sys.Process("auth").Start()
	sys.Process("user").Start()
	l.await(t, steady)
	l.end(t)
	register(t, sys, 1) // and they work again
	c.judge(t, eventually)
}
