package gateway

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/parleychat/parley/pkg/config"
)

// envPrefix begins the gateway's environment variables.
const envPrefix = "PARLEY_GATEWAY_"

// Config is how one gateway behaves. The zero value of no field means "no
// limit": Defaults gives values for production.
type Config struct {
	// Origins are the values of the Origin header that browsers may come with,
	// each exactly as sent ("https://chat.example.org"). Requests without the
	// header come from native clients and are let through.
	Origins []string `env:"ORIGINS" doc:"Origins of web clients, comma separated"`
	// TrustedProxies are the addresses (CIDR) whose X-Forwarded-For is believed.
	TrustedProxies []string `env:"TRUSTED_PROXIES" doc:"CIDRs of balancers whose X-Forwarded-For counts"`
	// Exempt are the addresses (CIDR) without limits per address.
	Exempt []string `env:"LIMIT_EXEMPT" doc:"CIDRs without limits per address"`

	// PresenceLease is for how long the people of a gateway that says nothing are
	// still believed to be connected.
	PresenceLease time.Duration `env:"PRESENCE_LEASE" default:"15s" min:"100ms" max:"10m" doc:"After this time without a sign of life a gateway's people count as disconnected"`

	HTTP   HTTPConfig   `env:"HTTP"`
	Limits LimitsConfig `env:"LIMIT"`
	Socket SocketConfig `env:"SOCKET"`
}

// HTTPConfig is about calls that do not come over a socket.
type HTTPConfig struct {
	MaxRequestBytes int64         `env:"MAX_REQUEST_BYTES" default:"1048576" min:"1024" doc:"Largest request of a unary call, in bytes"`
	HeaderTimeout   time.Duration `env:"HEADER_TIMEOUT" default:"5s" min:"100ms" doc:"Time to send the headers, and a body that is not wanted"`
	IdleTimeout     time.Duration `env:"IDLE_TIMEOUT" default:"2m" min:"1s" doc:"Life of a connection without requests"`
	CallTimeout     time.Duration `env:"CALL_TIMEOUT" default:"35s" min:"100ms" doc:"Bound of a unary call, above that of the services"`
}

// LimitsConfig is about who may come, before any other work is done.
type LimitsConfig struct {
	NodeSocketRate     float64 `env:"NODE_SOCKET_RATE" default:"2000" min:"1" doc:"New sockets a second that this gateway takes"`
	NodeSocketBurst    int     `env:"NODE_SOCKET_BURST" default:"4000" min:"1"`
	AddressSocketRate  float64 `env:"ADDRESS_SOCKET_RATE" default:"20" min:"0.01" doc:"New sockets a second of one address"`
	AddressSocketBurst int     `env:"ADDRESS_SOCKET_BURST" default:"200" min:"1"`
	AddressSockets     int     `env:"ADDRESS_SOCKETS" default:"5000" min:"1" doc:"Open sockets of one address"`
	AddressStrangers   int     `env:"ADDRESS_STRANGERS" default:"64" min:"1" doc:"Sockets of one address that have not authenticated yet"`
	AddressCallRate    float64 `env:"ADDRESS_CALL_RATE" default:"200" min:"0.01" doc:"HTTP calls a second of one address"`
	AddressCallBurst   int     `env:"ADDRESS_CALL_BURST" default:"1000" min:"1"`
	UserSockets        int     `env:"USER_SOCKETS" default:"32" min:"1" doc:"Open sockets of one person on this gateway"`
}

// SocketConfig is about one socket.
type SocketConfig struct {
	AuthTimeout    time.Duration `env:"AUTH_TIMEOUT" default:"5s" min:"10ms" doc:"Time until the first frame has authenticated"`
	AuthFrameBytes int           `env:"AUTH_FRAME_BYTES" default:"4096" min:"512" doc:"Largest first frame"`
	FrameBytes     int           `env:"FRAME_BYTES" default:"65536" min:"1024" doc:"Largest frame of a client"`
	QueueBytes     int           `env:"QUEUE_BYTES" default:"1048576" min:"4096" doc:"What may wait for a slow client"`
	Watches        int           `env:"WATCHES" default:"200" min:"1" max:"10000" doc:"People whom one socket may watch"`
	FrameRate      float64       `env:"FRAME_RATE" default:"50" min:"0.1" doc:"Frames a second of one socket"`
	FrameBurst     int           `env:"FRAME_BURST" default:"200" min:"1"`
	OpenCalls      int           `env:"OPEN_CALLS" default:"32" min:"1" doc:"Calls of one socket at once"`
	LaneWait       time.Duration `env:"LANE_WAIT" default:"1s" min:"1ms" doc:"Time in a lane after which it takes no further call"`
	CallTimeout    time.Duration `env:"CALL_TIMEOUT" default:"10s" min:"10ms" doc:"Deadline of a call that names none"`
	MaxCallTimeout time.Duration `env:"MAX_CALL_TIMEOUT" default:"30s" min:"10ms" doc:"Longest deadline that a client may ask for"`

	PingInterval time.Duration `env:"PING_INTERVAL" default:"25s" min:"10ms" doc:"Time between pings"`
	DeadAfter    time.Duration `env:"DEAD_AFTER" default:"60s" min:"10ms" doc:"Silence after which a client is dead"`
	WriteTimeout time.Duration `env:"WRITE_TIMEOUT" default:"10s" min:"10ms" doc:"Longest write"`
	CloseGrace   time.Duration `env:"CLOSE_GRACE" default:"3s" min:"10ms" doc:"Time for a client to answer a close frame"`
	IdleInterval time.Duration `env:"IDLE_INTERVAL" default:"2m" min:"10ms" doc:"Silence after which a client calls Sync"`

	ResyncWindow   time.Duration `env:"RESYNC_WINDOW" default:"10s" doc:"Time over which sockets are told to resync"`
	DrainWindow    time.Duration `env:"DRAIN_WINDOW" default:"20s" doc:"Time over which sockets are closed on shutdown"`
	DrainReconnect time.Duration `env:"DRAIN_RECONNECT" default:"5s" doc:"Longest delay that a drained client is told"`
	SlowReconnect  time.Duration `env:"SLOW_RECONNECT" default:"2s" doc:"Longest delay that a slow client is told"`
	AbuseReconnect time.Duration `env:"ABUSE_RECONNECT" default:"60s" doc:"Longest delay that a flooding client is told"`

	WheelTick time.Duration `env:"WHEEL_TICK" default:"250ms" min:"1ms" doc:"Resolution of all of these times"`
}

// Defaults is the configuration that the default tags describe.
func Defaults() (Config, error) {
	var cfg Config
	err := config.Load(envPrefix, &cfg, nil)
	return cfg, err
}

// drainBound is how long sockets may take to end.
func (c *Config) drainBound() time.Duration {
	return c.Socket.DrainWindow + c.Socket.MaxCallTimeout/2 + c.Socket.CloseGrace
}

// parsePrefixes reads CIDRs; a bare address stands for itself.
func parsePrefixes(list []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(list))
	for _, text := range list {
		if address, err := netip.ParseAddr(text); err == nil {
			prefixes = append(prefixes, netip.PrefixFrom(address, address.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("network %q: %w", text, err)
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	return prefixes, nil
}
