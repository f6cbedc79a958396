package gateway

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// kind labels a frame in metrics.
type kind uint8

const (
	kindAuthenticate kind = iota
	kindCall
	kindPing
	kindPong
	kindWelcome
	kindReply
	kindPush
	kindPresence
	kindTyping
	kindResync
	kindClose
	kindUnknown
	kindWatch
	kinds
)

func (k kind) String() string {
	return [...]string{
		"authenticate", "call", "ping", "pong", "welcome", "reply", "push", "presence", "typing", "resync", "close",
		"unknown", "watch",
	}[k]
}

// metrics is what the gateway counts. Attribute sets are made beforehand.
type metrics struct {
	connections metric.Int64UpDownCounter
	delivery    metric.Float64Histogram
	closes      metric.Int64Counter
	rpc         metric.Float64Histogram
	handshakes  metric.Int64Counter
	rejected    metric.Int64Counter
	losses      metric.Int64Counter
	ephemera    metric.Int64Counter
	message     metric.Float64Histogram

	in, out    [kinds]atomic.Int64 // frames, by kind
	unauth     metric.MeasurementOption
	auth       metric.MeasurementOption
	attributes sync.Map // kind of metric and values → metric.MeasurementOption
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{}
	var errs [11]error
	m.connections, errs[0] = meter.Int64UpDownCounter("gateway_connections",
		metric.WithDescription("Open sockets, by whether they are authenticated."))
	frames, err := meter.Int64ObservableCounter("gateway_frames",
		metric.WithDescription("Frames of sockets, by direction and kind."))
	errs[1] = err
	m.delivery, errs[2] = meter.Float64Histogram("gateway_push_delivery", metric.WithUnit("s"),
		metric.WithDescription("Time from the arrival of a push on the bus to its write to a socket, the longest of each write."),
		metric.WithExplicitBucketBoundaries(.0001, .0003, .001, .003, .01, .02, .05, .1, .3, 1, 3, 10))
	m.closes, errs[3] = meter.Int64Counter("gateway_closes",
		metric.WithDescription("Sockets that ended, by close code; 1006 is without one."))
	m.rpc, errs[4] = meter.Float64Histogram("gateway_rpc_duration", metric.WithUnit("s"),
		metric.WithDescription("Routed calls, by procedure, transport and code."),
		metric.WithExplicitBucketBoundaries(.001, .003, .01, .03, .1, .2, .3, 1, 3, 10, 30))
	m.handshakes, errs[5] = meter.Int64Counter("gateway_handshakes",
		metric.WithDescription("Upgrades that were refused, by cause, and sockets that were welcomed."))
	m.rejected, errs[6] = meter.Int64Counter("gateway_rejected_requests",
		metric.WithDescription("HTTP requests and calls of sockets that the gateway itself answered with an error, by reason."))
	m.losses, errs[7] = meter.Int64Counter("gateway_push_losses",
		metric.WithDescription("Times that pushes may have been lost, by cause; all sockets resync."))
	m.ephemera, errs[9] = meter.Int64Counter("gateway_ephemera",
		metric.WithDescription("Pushes of presence and typing that slow sockets did not get, by kind and whether a later one took their place."))
	m.message, errs[10] = newMessageDelivery(meter)
	if err == nil {
		_, errs[8] = meter.RegisterCallback(m.observeFrames(frames), frames)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	m.unauth = metric.WithAttributeSet(attribute.NewSet(attribute.Bool("authenticated", false)))
	m.auth = metric.WithAttributeSet(attribute.NewSet(attribute.Bool("authenticated", true)))
	return m, nil
}

// observeFrames reads the counts of frames when somebody asks. A counter of the
// library finds its attributes anew for each frame, which was 3 % of the gateway.
func (m *metrics) observeFrames(frames metric.Int64Observable) metric.Callback {
	direction := func(o metric.Observer, name string, counts *[kinds]atomic.Int64) {
		for k := range kinds {
			o.ObserveInt64(frames, counts[k].Load(), metric.WithAttributes(
				attribute.String("direction", name), attribute.String("kind", k.String())))
		}
	}
	return func(_ context.Context, o metric.Observer) error {
		direction(o, "in", &m.in)
		direction(o, "out", &m.out)
		return nil
	}
}

// with finds the attribute set of one value, which must come from a small set.
func (m *metrics) with(key, value string) metric.MeasurementOption {
	id := [2]string{key, value}
	if found, ok := m.attributes.Load(id); ok {
		option, _ := found.(metric.MeasurementOption)
		return option
	}
	option := metric.WithAttributeSet(attribute.NewSet(attribute.String(key, value)))
	m.attributes.Store(id, option)
	return option
}

func (m *metrics) reject(ctx context.Context, reason errorv1.Reason) {
	m.rejected.Add(ctx, 1, m.with("reason", reasonName(reason)))
}

func (m *metrics) closed(ctx context.Context, code int) {
	m.closes.Add(ctx, 1, m.with("code", strconv.Itoa(code)))
}

func (m *metrics) handshake(ctx context.Context, result string) {
	m.handshakes.Add(ctx, 1, m.with("result", result))
}

func (m *metrics) called(ctx context.Context, procedure, transport, code string, took time.Duration) {
	id := [3]string{procedure, transport, code}
	found, ok := m.attributes.Load(id)
	if !ok {
		found = metric.WithAttributeSet(attribute.NewSet(attribute.String("procedure", procedure),
			attribute.String("transport", transport), attribute.String("code", code)))
		m.attributes.Store(id, found)
	}
	if option, isOption := found.(metric.MeasurementOption); isOption {
		m.rpc.Record(ctx, took.Seconds(), option)
	}
}
