package service

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
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/telemetry"
	"github.com/parleychat/parley/pkg/token"
)

// Main is the whole program of a service that runs alone:
//
//	func main() { service.Main(auth.Definition()) }
//
// Without arguments it serves until SIGINT or SIGTERM; a second signal ends it at
// once. "migrate" brings the schema up to date and exits; "config" lists the
// environment variables. It exits with 1 on an error and with 2 on a command that
// it does not know.
func Main(def Definition) {
	ctx, stop := lifecycle.Signals(context.Background())
	code := command(ctx, def, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command runs one command and returns the exit code.
func command(ctx context.Context, def Definition, args, environ []string, out, errOut io.Writer) int {
	var err error
	switch {
	case len(args) == 0:
		err = serve(ctx, def, environ, errOut)
	case len(args) == 1 && args[0] == "migrate":
		err = migrate(ctx, def, environ)
	case len(args) == 1 && args[0] == "config":
		err = printConfig(def, out)
	default:
		_, _ = fmt.Fprintf(errOut, "usage: %s [migrate|config]\n", def.Name) // nobody to tell
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintf(errOut, "%s: %s\n", def.Name, telemetry.Mask(err.Error())) // nobody to tell
		return 1
	}
	return 0
}

// migrateConfig is the part of Config that the migrate command needs: its job has
// no other secrets.
type migrateConfig struct {
	DatabaseURL string `env:"DATABASE_URL" secret:"true"`
	MigrateURL  string `env:"MIGRATE_DATABASE_URL" secret:"true"`
}

func migrate(ctx context.Context, def Definition, environ []string) error {
	if err := def.check(); err != nil {
		return err
	}
	var c migrateConfig
	if err := config.NewSource(Prefix(def.Name), environ).Load(&c); err != nil {
		return err
	}
	if c.MigrateURL == "" {
		c.MigrateURL = c.DatabaseURL
	}
	if c.MigrateURL == "" {
		return fmt.Errorf("%sMIGRATE_DATABASE_URL: missing; it has to be set", Prefix(def.Name))
	}
	if err := postgres.Migrate(ctx, c.MigrateURL, def.Name, def.Migrations); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

func printConfig(def Definition, out io.Writer) error {
	fields, err := Describe(def)
	if err != nil {
		return err
	}
	return config.Print(out, fields)
}

// serve runs the service alone in its process.
func serve(ctx context.Context, def Definition, environ []string, logOut io.Writer) error {
	lifecycle.TuneCollector(ctx)
	if err := def.check(); err != nil {
		return err
	}
	settings := config.NewSource(Prefix(def.Name), environ)
	c, k, err := readConfig(def.Name, settings)
	if err != nil {
		return err
	}
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: def.Name, Version: telemetry.Version(), LogLevel: c.LogLevel, LogFormat: c.LogFormat, LogOutput: logOut,
		OTLPEndpoint: c.OTLPEndpoint, SampleRatio: c.SampleRatio, KeepSpans: telemetry.Keep(c.KeepSpans),
		Reports: telemetry.Reports{DSN: c.SentryDSN, Environment: c.SentryEnvironment},
	})
	if err != nil {
		return err
	}
	defer flush(ctx, tel)
	log := tel.Log.With("service", def.Name)
	if c.ClockOffset != 0 {
		log.WarnContext(ctx, "the clock is moved", "offset", c.ClockOffset)
	}
	bus, err := event.Connect(ctx, event.Config{
		URL: c.NATSURL, Name: def.Name, CredentialsFile: c.NATSCredentials, Replicas: c.NATSReplicas,
	}, log)
	if err != nil {
		return err
	}
	defer bus.Close()
	redis, err := openRedis(c.RedisURL, def.Name, log) //nolint:contextcheck // the client ends by Close
	if err != nil {
		return err
	}
	if redis != nil {
		defer redis.Close()
	}
	dialer, err := rpc.Remote(rpc.Addresses(c.Backends), rpc.RemoteConfig{Log: log}) //nolint:contextcheck // it lives until Close
	if err != nil {
		return fmt.Errorf("%sBACKENDS: %w", Prefix(def.Name), err)
	}
	defer dialer.Close()
	d := deps(def, c, k, settings, tel)
	d.Bus, d.Redis, d.Dialer = bus, redis, dialer
	return run(ctx, def, c, d, tel)
}

// deps turns the configuration into what Start needs, connections apart.
func deps(def Definition, c Config, k keys, settings *config.Source, tel *telemetry.Telemetry) Deps {
	clk := clock.Offset(clock.System(), c.ClockOffset)
	panel := admin.New(tel.Log, tel.MetricsHandler())
	panel.Handle(telemetry.TracesPath, tel.TracesHandler())
	return Deps{
		Services: c.Services,
		Database: postgres.Config{
			URL: c.DatabaseURL, MaxConns: c.DatabaseMaxConns, ApplicationName: def.Name, QueryExecMode: c.DatabaseExecMode,
		},
		UserKeys: token.RemoteKeys(&http.Client{Timeout: 5 * time.Second}, c.JWKSURL, clk),
		Issuer:   c.TokenIssuer, Audience: c.TokenAudience, TokenLife: c.TokenLife,
		Key: k.private, Callers: k.public,
		Clock: clk, Log: tel.Log, Admin: panel, Settings: settings,
		DrainDelay: c.DrainDelay, StopTimeout: c.StopTimeout,
	}
}

// run opens the ports, starts the service and waits for its end. The admin port
// lives from before the start until after the end.
func run(ctx context.Context, def Definition, c Config, d Deps, tel *telemetry.Telemetry) error {
	var lc net.ListenConfig
	adminListener, err := lc.Listen(ctx, "tcp", c.AdminListen)
	if err != nil {
		return fmt.Errorf("listen on %sADMIN_LISTEN: %w", Prefix(def.Name), err)
	}
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	adminDone := make(chan error, 1)
	go func() { adminDone <- d.Admin.Serve(adminCtx, adminListener) }()
	tel.Log.InfoContext(ctx, "admin port", "service", def.Name, "address", adminListener.Addr().String())

	err = func() error {
		running, err := startPatiently(ctx, def, c, d)
		if err != nil || running == nil {
			return err
		}
		d.Admin.Started()
		return running.Wait()
	}()
	stopAdmin()
	return errors.Join(err, <-adminDone)
}

// startRetry is the pause between two starts while the database is away.
const startRetry = 500 * time.Millisecond

// startPatiently starts the service as soon as its database is there: a setup may
// read from it. A process that ended instead would be started again by its
// supervisor, ever more slowly. nil without an error: ctx has ended first.
func startPatiently(ctx context.Context, def Definition, c Config, d Deps) (*Running, error) {
	var lc net.ListenConfig
	for tries := 0; ; tries++ {
		var err error
		if d.Listener, err = lc.Listen(ctx, "tcp", c.Listen); err != nil {
			return nil, fmt.Errorf("listen on %sLISTEN: %w", Prefix(def.Name), err)
		}
		running, err := Start(ctx, def, d)
		if err == nil || !postgres.IsUnavailable(err) {
			return running, err
		}
		if tries%20 == 0 {
			d.Log.WarnContext(ctx, "waiting for the database", "service", def.Name, "error", err)
		}
		if !clock.Pause(ctx, startRetry) {
			return nil, nil //nolint:nilnil // told to end before it began
		}
	}
}

// openRedis returns nil where none is configured, and a client that is still
// connecting where it is away.
func openRedis(url, name string, log *slog.Logger) (rueidis.Client, error) {
	if url == "" {
		return nil, nil //nolint:nilnil // no Redis is a valid answer
	}
	client, err := cache.Open(url, name)
	if errors.Is(err, cache.ErrAway) {
		log.Warn("starting without Redis", "error", err)
		return client, nil
	}
	return client, err
}

func flush(ctx context.Context, tel *telemetry.Telemetry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		tel.Log.WarnContext(ctx, "telemetry was not delivered", "error", err)
	}
}
