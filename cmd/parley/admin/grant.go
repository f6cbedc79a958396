// Package admin is `parley admin`: what the operator of a deployment does to accounts past the API, first of all
// to make the first admin.
//
// It needs auth's role in the database and nothing else, and leaves an entry in the record of sensitive actions.
// It never asks for a password and never shows one.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/services/auth"
)

// databaseVariable holds the URL of the database, as for the service itself: an argument with a password in it could
// be read by every user of the machine.
const databaseVariable = "PARLEY_AUTH_DATABASE_URL"

type options struct {
	user, role string
	data       string
	database   string
}

// Command returns `parley admin`.
func Command() *cobra.Command {
	cmd := &cobra.Command{Use: "admin", Short: "Act on accounts as the operator"}
	cmd.AddCommand(grantCommand())
	return cmd
}

func grantCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "grant --user NAME --role user|moderator|admin",
		Short: "Give an account a role",
		Long: "grant gives an account a role, and so makes the first admin of a deployment. With --data it finds the database of a\n" +
			"running `parley dev`; any other deployment is named by " + databaseVariable + " in the environment. Who loses a right\n" +
			"is logged out everywhere; a right that was gained comes with the next refresh of a token.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.database = os.Getenv(databaseVariable)
			return grant(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.user, "user", "", "user name or e-mail address of the account")
	flags.StringVar(&o.role, "role", "", "user, moderator or admin")
	flags.StringVar(&o.data, "data", ".parley", "the data folder of a running `parley dev`, unless "+databaseVariable+" is set")
	return cmd
}

func grant(ctx context.Context, o options, out io.Writer) error {
	if o.user == "" {
		return errors.New("--user: whom?")
	}
	role, err := identity.ParseRole(o.role)
	if err != nil {
		return fmt.Errorf("--role: %w", err)
	}
	if o.database == "" {
		operator, err := dev.ReadOperator(o.data)
		if err != nil {
			return fmt.Errorf("%w (or set %s)", err, databaseVariable)
		}
		o.database = operator.Database["auth"]
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: o.database, MaxConns: 2, ApplicationName: "parley-admin"})
	if err != nil {
		return err
	}
	defer pool.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	done, err := auth.NewOperator(pool, clock.System(), log).Grant(ctx, o.user, role, whoami())
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	if done.Before == role {
		_, err = fmt.Fprintf(out, "%s (%s) was %s already\n", o.user, done.UserID, role)
	} else {
		_, err = fmt.Fprintf(out, "%s (%s): %s, before %s\n", o.user, done.UserID, role, done.Before)
	}
	return err
}

// whoami names the person at the command line for the record, as far as the machine knows.
func whoami() string {
	who, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return who.Username
}
