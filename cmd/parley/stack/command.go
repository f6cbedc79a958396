package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// EnvEndpoints is the variable that carries the JSON of Endpoints to tests.
const EnvEndpoints = "PARLEY_TEST_STACK"

// ExitError carries the exit code of the command that ran on the stack; main must exit with it.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(e)) }

type flags struct {
	postgresPort, natsPort, redisPort int
	only                              []string
	dir                               string
	durable, installedRedis           bool
}

// Command is `parley stack`: the servers for tests and experiments, for as long as the caller lives.
func Command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "stack [flags] [-- command args...]",
		Short: "Run PostgreSQL, NATS and a Redis protocol server for tests",
		Long: `Starts the servers on 127.0.0.1 and prints one JSON line with their addresses when all are ready.
Runs until its standard input ends or a signal arrives, and leaves nothing behind unless --dir is given.
With a command: runs it with that JSON in ` + EnvEndpoints + ` instead, and exits with its exit code.`,
		Args:          cobra.ArbitraryArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, args []string) error { return run(cmd, f, args) },
	}
	cmd.Flags().IntVar(&f.postgresPort, "postgres-port", 0, "port of PostgreSQL (0: a free one)")
	cmd.Flags().IntVar(&f.natsPort, "nats-port", 0, "port of NATS (0: a free one)")
	cmd.Flags().IntVar(&f.redisPort, "redis-port", 0, "port of the Redis protocol (0: a free one)")
	cmd.Flags().BoolVar(&f.installedRedis, "installed-redis", false, "run the redis-server of this machine, if it has one (16 databases)")
	cmd.Flags().StringSliceVar(&f.only, "only", []string{"postgres", "nats", "redis"}, "servers to start")
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder for the data, kept at the end (default: a temporary one)")
	cmd.Flags().BoolVar(&f.durable, "durable", false, "keep every promise to the disk (fsync)")
	return cmd
}

func run(cmd *cobra.Command, f flags, args []string) (err error) {
	ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	if f.dir == "" {
		if f.dir, err = TempDir(!f.durable); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	opts, err := f.options(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	if err != nil {
		return err
	}
	s, err := Start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	endpoints, err := json.Marshal(s.Endpoints())
	if err != nil {
		return fmt.Errorf("encode the endpoints: %w", err)
	}
	if len(args) > 0 {
		return runCommand(ctx, args, string(endpoints))
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), string(endpoints)); err != nil {
		return fmt.Errorf("print the endpoints: %w", err)
	}
	return s.wait(ctx, cmd.InOrStdin())
}

func (f flags) options(log *slog.Logger) (Options, error) {
	o := Options{Dir: f.dir, Logger: log}
	for _, name := range f.only {
		switch name {
		case "postgres":
			o.Postgres = &PostgresOptions{Port: f.postgresPort, Volatile: !f.durable, Install: true}
		case "nats":
			// The bound is far above any disk: streams of many tests reserve room that they never use.
			o.NATS = &NATSOptions{Port: f.natsPort, MaxStore: 1 << 45, SyncAlways: f.durable, AccountPerUser: true}
		case "redis":
			o.Redis = &RedisOptions{Port: f.redisPort, Installed: f.installedRedis}
		default:
			return Options{}, fmt.Errorf("--only %s: unknown server; known are postgres, nats, redis", name)
		}
	}
	return o, nil
}

// wait returns when ctx ends, stdin ends, or a child dies, which is an error.
func (s *Stack) wait(ctx context.Context, stdin io.Reader) error {
	parentGone := make(chan struct{})
	go func() {
		// A read error means the same as the end: nobody holds the other side. The goroutine ends with the process.
		_, _ = io.Copy(io.Discard, stdin)
		close(parentGone)
	}()
	var postgresGone, redisGone <-chan struct{}
	if s.Postgres != nil {
		postgresGone = s.Postgres.Done()
	}
	if s.Redis != nil {
		redisGone = s.Redis.Done()
	}
	select {
	case <-ctx.Done():
	case <-parentGone:
	case <-postgresGone:
		return errors.New("PostgreSQL has ended unexpectedly")
	case <-redisGone:
		return errors.New("redis-server has ended unexpectedly")
	}
	return nil
}

// runCommand runs args with the endpoints in its environment. It is told of our end with SIGTERM, and the
// servers stay until it has gone.
func runCommand(ctx context.Context, args []string, endpoints string) error {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, EnvEndpoints+"=")
	}), EnvEndpoints+"="+endpoints)
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		// -1 stands for a death by signal; a shell would say 128+n, any failure will do.
		return ExitError(max(1, exit.ExitCode()))
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	return nil
}
