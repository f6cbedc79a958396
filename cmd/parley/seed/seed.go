// Package seed is `parley seed`: thousands of accounts with tokens, for load tests, without a password hash or
// a limit in the way of each.
//
// It needs the operator's access to auth's database and writes a file for `parley load` (package
// crowd). The accounts are marked in the database (services/auth, seededHash), nobody can log in to them by a
// password, and outside of `parley dev` they are made only on --force.
package seed

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/crowd"
	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/services/auth"
)

// keyVariable holds the key that seals the signing keys, as for the service itself: not a flag, which every
// user of the machine could read.
const keyVariable = "PARLEY_AUTH_KEY_ENCRYPTION_KEY"

type options struct {
	users, pairs, circle int
	prefix, out          string

	data     string
	url      string
	database string
	force    bool

	issuer, audience string
	life             time.Duration
	wait             time.Duration
}

// Command returns `parley seed`.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "seed",
		Short: "Make many accounts with tokens, for load tests",
		Long: "seed makes accounts past the API, without a password hash each, and writes a file with tokens for `parley load`.\n" +
			"With --data it finds everything of a running `parley dev`. Any other deployment needs --auth-database-url,\n" +
			keyVariable + " in the environment, --url and --force. Nobody can log in to such accounts by a password.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, os.Getenv(keyVariable), cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.users, "users", 1000, "how many accounts to make")
	flags.IntVar(&o.pairs, "pairs", 0, "start direct conversations: the first with the second, the third with the fourth, …")
	flags.IntVar(&o.circle, "circle", 0, "start direct conversations: everybody with the N people before and after, half of N each way")
	flags.StringVar(&o.prefix, "prefix", "", "names are prefix-1, prefix-2, …; empty: a new one by chance")
	flags.StringVar(&o.out, "out", "users.jsonl", "the file to write; the key goes beside it, both are readable by you alone")
	flags.StringVar(&o.data, "data", ".parley", "the data folder of a running `parley dev`")
	flags.StringVar(&o.url, "url", "", "the gateway (http://…); empty: that of --data")
	flags.StringVar(&o.database, "auth-database-url", "", "the database of another deployment, as auth's role")
	flags.BoolVar(&o.force, "force", false, "make accounts in a deployment that is not `parley dev`")
	flags.StringVar(&o.issuer, "issuer", "parley", "TOKEN_ISSUER of the deployment")
	flags.StringVar(&o.audience, "audience", "parley", "TOKEN_AUDIENCE of the deployment")
	flags.DurationVar(&o.life, "token-life", 10*time.Minute, "how long tokens are good; at most TOKEN_LIFE of the services")
	flags.DurationVar(&o.wait, "wait", 2*time.Minute, "how long to wait until every service knows the people, and for each conversation")
	return cmd
}

// target is the deployment.
type target struct {
	url, database string
	key           []byte
}

// find tells where to work. Only `parley dev` is known to be for development.
func (o options) find(key string) (target, error) {
	if o.database == "" {
		operator, err := dev.ReadOperator(o.data)
		if err != nil {
			return target{}, err
		}
		to := target{operator.Ready.Gateway, operator.Database["auth"], operator.KeyEncryptionKey}
		if o.url != "" {
			to.url = o.url
		}
		return to, nil
	}
	switch {
	case !o.force:
		return target{}, errors.New("this is not a data folder of `parley dev`: accounts for load tests are made elsewhere only with --force")
	case o.url == "":
		return target{}, errors.New("--url: the gateway is needed")
	}
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) == 0 {
		return target{}, fmt.Errorf("%s: 32 bytes in base64 are needed in the environment", keyVariable)
	}
	return target{o.url, o.database, raw}, nil
}

func run(ctx context.Context, o options, key string, out io.Writer) error {
	if o.users < 2 || o.pairs < 0 || 2*o.pairs > o.users {
		return errors.New("--users must be 2 or more, and twice --pairs")
	}
	if o.circle < 0 || o.circle%2 != 0 || o.circle >= o.users {
		return errors.New("--circle must be even and below --users")
	}
	to, err := o.find(key)
	if err != nil {
		return err
	}
	if o.prefix == "" {
		o.prefix = "seed" + strings.ToLower(rand.Text()[:8])
	}
	began := time.Now()
	people, mint, err := accounts(ctx, o, to)
	if err != nil {
		return err
	}
	if err := crowd.Write(o.out, people, mint); err != nil {
		return err
	}
	made := time.Since(began)
	started, err := acquaint(ctx, o, to.url, people, mint)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d accounts %s-1 … in %s, ready after %s with %d conversations; written to %s and %s\n",
		o.users, o.prefix, made.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), started, o.out, crowd.KeyPath(o.out))
	return err
}

// accounts makes them in the database and signs a token for each.
func accounts(ctx context.Context, o options, to target) ([]crowd.Person, crowd.Mint, error) {
	pool, err := postgres.Open(ctx, postgres.Config{URL: to.database, MaxConns: 2, ApplicationName: "parley-seed"})
	if err != nil {
		return nil, crowd.Mint{}, err
	}
	defer pool.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	seeder, err := auth.NewSeeder(pool, to.key, clock.System(), log)
	if err != nil {
		return nil, crowd.Mint{}, err
	}
	key, err := seeder.SigningKey(ctx)
	if err != nil {
		return nil, crowd.Mint{}, err
	}
	mint := crowd.NewMint(key, o.issuer, o.audience, o.life)
	made, err := seeder.Accounts(ctx, o.prefix, o.users)
	if err != nil {
		return nil, crowd.Mint{}, err
	}
	people := make([]crowd.Person, len(made))
	for i, one := range made {
		people[i] = crowd.Person{ID: one.UserID, Session: one.SessionID}
		if err := mint.Renew(&people[i], time.Now()); err != nil {
			return nil, crowd.Mint{}, err
		}
	}
	return people, mint, nil
}

// httpClient keeps a connection per worker.
func httpClient() *http.Client {
	return &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
}
