package gateway

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/rpc"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// deviceHeader is where native clients say what they are, beside their token:
// "mobile", "desktop" or "web".
const deviceHeader = "Parley-Device"

// lossPause is the least time between two rounds of Resync because signals of
// presence came too fast: what follows would make it worse.
const lossPause = time.Minute

// presenceDesk is the gateway's part in presence: it reports who is connected here,
// and tells those who watch what the user service decides.
type presenceDesk struct {
	g        *Gateway
	watches  *watches
	ask      *rpc.RawClient // BatchGetPresence
	reporter *presence.Reporter
	follower *presence.Follower
	lostAt   time.Time // of the follower alone
	secret   [15]byte
}

func newPresenceDesk(g *Gateway, deps Deps) (*presenceDesk, error) {
	d := &presenceDesk{
		g: g, watches: newWatches(),
		ask: rpc.NewRawClient(deps.Dialer.Backend("user"), userv1connect.PresenceServiceBatchGetPresenceProcedure, "proto"),
	}
	_, _ = rand.Read(d.secret[:]) // never fails, by its documentation
	d.follower = &presence.Follower{
		Conn: deps.NATS, Log: deps.Log, Signal: d.tell, Missing: d.missing, Recheck: d.recheck, Loss: d.lost,
	}
	if deps.Redis != nil {
		d.reporter = presence.NewReporter(presence.ReporterConfig{
			Redis: deps.Redis, NATS: deps.NATS, Log: deps.Log, Lease: g.cfg.PresenceLease,
			Devices: g.hub.devices, Each: g.hub.eachUser,
		})
		g.hub.changed = d.reporter.Changed
	}
	meter := deps.Meter.Meter(scope)
	watched, err := meter.Int64ObservableGauge("gateway_watches",
		metric.WithDescription("How many watches of presence the sockets hold."))
	if err == nil {
		_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
			links, _ := d.watches.total()
			o.ObserveInt64(watched, links)
			return nil
		}, watched)
	}
	if err != nil {
		return nil, fmt.Errorf("make gateway_watches: %w", err)
	}
	return d, nil
}

// run reports and follows until ctx ends, which is after the last socket.
func (d *presenceDesk) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.follower.Run(ctx) })
	if d.reporter != nil {
		group.Go(func() error { return d.reporter.Run(ctx) })
	}
	return group.Wait()
}

// tell pushes a change to those who watch: the own devices of the person see
// something else than others do.
func (d *presenceDesk) tell(user uuid.UUID, signal *realtimev1.PresenceSignal) {
	if shown := signal.GetShown(); shown != nil {
		d.push(user, shown)
	}
	if own := signal.GetOwn(); own != nil {
		d.push(d.ownKey(user), own)
	}
}

// push is for those who watch under a key. It is encoded for the first of them.
func (d *presenceDesk) push(key uuid.UUID, p *realtimev1.Presence) {
	var ready *prepared
	d.watches.tell(key, p.GetVersion(), func(c *connection) {
		if ready == nil {
			ready = d.prepare(key, p)
		}
		if ready != nil {
			c.push(ready)
		}
	})
}

func (d *presenceDesk) prepare(key uuid.UUID, p *realtimev1.Presence) *prepared {
	payload, err := realtime.Encode(&realtimev1.Push{Event: &realtimev1.Push_Presence{Presence: p}})
	if err != nil {
		d.g.log.Error("presence not encoded", "error", err)
		return nil
	}
	soft := softKey(key)
	return &prepared{payload: payload, at: time.Now(), kind: kindPresence, soft: &soft}
}

// missing writes down again who is connected here and not on the roll.
func (d *presenceDesk) missing(user uuid.UUID) {
	if d.reporter != nil && d.g.hub.connected(user) {
		d.reporter.Changed(user)
	}
}

// recheck has those who watch somebody ask again whether they may. Until then they
// are told nothing: who has just been shut out sees nothing more from now on. The
// client asks, because its token is what the answer depends on, and a Resync is
// what makes every client watch anew. Many are not asked for at the same moment.
func (d *presenceDesk) recheck(user, viewer uuid.UUID) {
	window := d.g.cfg.Socket.ResyncWindow
	if viewer != uuid.Nil {
		window = 0
	}
	d.watches.doubt(user, viewer, func(c *connection) { c.resyncIn(d.g.spread(window)) })
}

// lost has all clients ask anew whom they watch.
func (d *presenceDesk) lost() {
	if now := time.Now(); now.Sub(d.lostAt) > lossPause {
		d.lostAt = now
		d.g.resyncAll(realtime.LossSlow)
	}
}

// ownKey is the key under which the own devices of somebody watch them, apart from
// others: with versions of its own. It is in the shard of the person. Nobody can
// name it: a client that could would see who is invisible.
func (d *presenceDesk) ownKey(user uuid.UUID) uuid.UUID {
	for i := range user[:15] {
		user[i] ^= d.secret[i]
	}
	return user
}

// devices lists the sessions of a person that are connected here.
func (h *hub) devices(user uuid.UUID) []presence.Device {
	s := &h.users[shardOf(user)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	var devices []presence.Device
next:
	for c := s.first[user]; c != nil; c = c.nextOfUser {
		for _, d := range devices {
			if d.Session == c.session {
				continue next
			}
		}
		devices = append(devices, presence.Device{Session: c.session, Kind: c.device})
	}
	return devices
}

// connected says whether somebody has a socket here.
func (h *hub) connected(user uuid.UUID) bool {
	s := &h.users[shardOf(user)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.first[user] != nil
}

// eachUser visits the people of a shard of presence who are connected here, which
// are those of some of our own shards.
func (h *hub) eachUser(shard int, visit func(uuid.UUID)) {
	for i := shard; i < hubShards; i += presence.Shards {
		s := &h.users[i]
		s.mu.RLock()
		for user := range s.first {
			visit(user)
		}
		s.mu.RUnlock()
	}
}

// deviceOf reads what a native client says of itself in the upgrade.
func deviceOf(r *http.Request) realtimev1.DeviceKind {
	return realtimev1.DeviceKind(realtimev1.DeviceKind_value["DEVICE_KIND_"+strings.ToUpper(r.Header.Get(deviceHeader))])
}
