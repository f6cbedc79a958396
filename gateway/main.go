package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/redis/rueidis"

	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/lifecycle"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/telemetry"
	"github.com/parleychat/parley/pkg/token"
)

// ProcessConfig is what a gateway that runs alone reads beside Config. The names
// are those of the services.
type ProcessConfig struct {
	NATSURL         string `env:"NATS_URL" required:"true" secret:"true" doc:"NATS with JetStream; several addresses separated by commas."`
	NATSCredentials string `env:"NATS_CREDENTIALS" doc:"The path of a NATS credentials file."`
	NATSReplicas    int    `env:"NATS_REPLICAS" default:"1" min:"1" max:"5" doc:"The replicas of the streams, for one that has to be made anew; 3 in production."`

	RedisURL string `env:"REDIS_URL" secret:"true" doc:"Redis, that of the services, where it stands who is connected; empty: people who come in here look offline. See pkg/cache for the parameters."`

	Listen      string `env:"LISTEN" default:":8080" doc:"Where calls and sockets are served: HTTP/1.1 and h2c."`
	AdminListen string `env:"ADMIN_LISTEN" default:":9090" doc:"Where health, metrics and profiles are served."`

	JWKSURL       string        `env:"JWKS_URL" required:"true" doc:"The key set of auth, for people's tokens."`
	TokenIssuer   string        `env:"TOKEN_ISSUER" default:"parley" doc:"The issuer of people's tokens."`
	TokenAudience string        `env:"TOKEN_AUDIENCE" default:"parley" doc:"The audience of people's tokens."`
	TokenLife     time.Duration `env:"TOKEN_LIFE" default:"15m" min:"1m" max:"24h" doc:"How long a revocation is remembered: the life of access tokens."`

	Backends map[string]string `env:"BACKENDS" required:"true" doc:"Where the services are: auth=http://auth:8080,…; calls are spread over all addresses of a name, and over several URLs separated by semicolons."`

	LogLevel     slog.Level `env:"LOG_LEVEL" default:"info" doc:"debug, info, warn or error."`
	LogFormat    string     `env:"LOG_FORMAT" default:"json" doc:"json or text."`
	OTLPEndpoint string     `env:"OTLP_ENDPOINT" doc:"Where traces go by OTLP over HTTP; empty: nowhere."`
	SampleRatio  float64    `env:"TRACE_SAMPLE_RATIO" default:"0.01" min:"0" max:"1" doc:"The part of the traces that is sampled: exported, and shown on /debug/traces of the admin port."`
	KeepSpans    int        `env:"TRACE_KEEP_SPANS" default:"2000" min:"0" max:"100000" doc:"How many sampled spans are kept in memory for /debug/traces, about 1 KiB each; 0: none."`

	SentryDSN         string `env:"SENTRY_DSN" secret:"true" doc:"A project of any Sentry-compatible server, to which errors are reported, masked; empty: none."`
	SentryEnvironment string `env:"SENTRY_ENVIRONMENT" default:"production" doc:"The deployment, in the reports of errors."`

	DrainDelay  time.Duration `env:"DRAIN_DELAY" default:"5s" max:"5m" doc:"From not ready to the end of intake: as long as balancers take to notice."`
	ClockOffset time.Duration `env:"CLOCK_OFFSET" doc:"Moves the clock of this process; for tests of clock jumps only."`
}

// Main is the whole program of a gateway. Without arguments it serves until
// SIGINT or SIGTERM; a second signal ends it at once. "config" lists the
// environment variables.
func Main() {
	ctx, stop := lifecycle.Signals(context.Background())
	code := command(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args, environ []string, out, errOut io.Writer) int {
	var err error
	switch {
	case len(args) == 0:
		err = serve(ctx, environ, errOut)
	case len(args) == 1 && args[0] == "config":
		err = printConfig(out)
	default:
		_, _ = fmt.Fprintln(errOut, "usage: gateway [config]") // nobody to tell
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintf(errOut, "gateway: %s\n", telemetry.Mask(err.Error())) // nobody to tell
		return 1
	}
	return 0
}

// Describe lists the environment variables of a gateway that runs alone.
func Describe() ([]config.Field, error) {
	fields, err := config.Describe(envPrefix, &ProcessConfig{})
	if err != nil {
		return nil, fmt.Errorf("describe the configuration: %w", err)
	}
	own, err := config.Describe(envPrefix, &Config{})
	if err != nil {
		return nil, fmt.Errorf("describe the configuration: %w", err)
	}
	return append(fields, own...), nil
}

func printConfig(out io.Writer) error {
	fields, err := Describe()
	if err != nil {
		return err
	}
	return config.Print(out, fields)
}

// serve runs a gateway alone in its process.
func serve(ctx context.Context, environ []string, logOut io.Writer) error {
	lifecycle.TuneCollector(ctx)
	var p ProcessConfig
	var cfg Config
	settings := config.NewSource(envPrefix, environ)
	if err := errors.Join(settings.Load(&p), settings.Load(&cfg), settings.Unknown()); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "gateway", Version: telemetry.Version(), LogLevel: p.LogLevel, LogFormat: p.LogFormat, LogOutput: logOut,
		OTLPEndpoint: p.OTLPEndpoint, SampleRatio: p.SampleRatio, KeepSpans: telemetry.Keep(p.KeepSpans),
		Reports: telemetry.Reports{DSN: p.SentryDSN, Environment: p.SentryEnvironment},
	})
	if err != nil {
		return fmt.Errorf("set up telemetry: %w", err)
	}
	log := tel.Log.With("service", "gateway")
	group := lifecycle.New(log, lifecycle.DrainDelay(p.DrainDelay), lifecycle.PhaseTimeout(cfg.drainBound()+5*time.Second))
	group.OnStop(lifecycle.Store, "telemetry", tel.Shutdown)
	adm := admin.New(log, tel.MetricsHandler())
	adm.Handle(telemetry.TracesPath, tel.TracesHandler())
	if err := addAdmin(ctx, group, adm, p.AdminListen); err != nil {
		return err
	}
	if err := addGateway(ctx, group, adm, p, cfg, log); err != nil {
		return err
	}
	adm.Started()
	if err := group.Run(ctx); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	return nil
}

// addAdmin opens the admin port, which lives until the last phase.
func addAdmin(ctx context.Context, group *lifecycle.Group, adm *admin.Server, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %sADMIN_LISTEN: %w", envPrefix, err)
	}
	group.OnDrain(adm.Drain)
	group.Add(lifecycle.Store, "admin port", func(ctx context.Context) error { return adm.Serve(ctx, listener) })
	return nil
}

// openRedis returns nil where none is configured, and a client that is still
// connecting where Redis is away: only presence needs it.
func openRedis(ctx context.Context, url string, log *slog.Logger) (rueidis.Client, error) {
	if url == "" {
		log.WarnContext(ctx, "nobody who connects here will be seen online: there is no "+envPrefix+"REDIS_URL")
		return nil, nil //nolint:nilnil // no Redis is a valid answer
	}
	client, err := cache.Open(url, "gateway") //nolint:contextcheck // lives until Close
	if errors.Is(err, cache.ErrAway) {
		log.WarnContext(ctx, "starting without Redis", "error", err)
		return client, nil
	}
	return client, err //nolint:wrapcheck // says what it is about
}

// addGateway wires the gateway and what feeds it.
func addGateway(
	ctx context.Context, group *lifecycle.Group, adm *admin.Server, p ProcessConfig, cfg Config, log *slog.Logger,
) error {
	bus, err := event.Connect(ctx, event.Config{
		URL: p.NATSURL, Name: "gateway", CredentialsFile: p.NATSCredentials, Replicas: p.NATSReplicas,
	}, log)
	if err != nil {
		return fmt.Errorf("connect to the bus: %w", err)
	}
	dialer, err := rpc.Remote(rpc.Addresses(p.Backends), rpc.RemoteConfig{Log: log}) //nolint:contextcheck // lives until Close
	if err != nil {
		bus.Close()
		return fmt.Errorf("%sBACKENDS: %w", envPrefix, err)
	}
	redis, err := openRedis(ctx, p.RedisURL, log)
	if err != nil {
		dialer.Close()
		bus.Close()
		return fmt.Errorf("%sREDIS_URL: %w", envPrefix, err)
	}
	group.OnStop(lifecycle.Store, "connections", func(context.Context) error {
		if redis != nil {
			redis.Close()
		}
		dialer.Close()
		bus.Close()
		return nil
	})
	clk := clock.Offset(clock.System(), p.ClockOffset)
	keys := token.RemoteKeys(&http.Client{Timeout: verifyTimeout}, p.JWKSURL, clk)
	revocations := token.NewRevocations(clk, p.TokenLife)
	g, err := New(ctx, cfg, Deps{
		Dialer: dialer, NATS: bus.Conn(), Redis: redis, Clock: clk, Log: log, Revocations: revocations,
		Verifier: token.NewVerifier(keys, revocations, clk, p.TokenIssuer, p.TokenAudience),
	})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Listen)
	if err != nil {
		return fmt.Errorf("listen on %sLISTEN: %w", envPrefix, err)
	}
	log.InfoContext(ctx, "listening", "address", listener.Addr().String())
	adm.AddCheck("gateway/bus", admin.Once, g.Ready)
	adm.AddCheck("gateway/keys", admin.Once, keys.Fetch)
	adm.AddCheck("gateway/revocations", admin.Once, revocations.Known)
	group.Add(lifecycle.Intake, "gateway", func(ctx context.Context) error { return g.Run(ctx, listener) })
	// Until the last socket is gone a revocation has to reach it.
	group.Add(lifecycle.Listen, "revocations", func(ctx context.Context) error { return revocations.Follow(ctx, bus) })
	return nil
}
