package dev

import (
	"context"
	"net/http"
	"time"

	"github.com/parleychat/parley/cmd/parley/stack/provision"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/token"
)

// databaseName is the database with the schemas of all services; the rest is what
// the programs of the services have as defaults of their variables.
const (
	databaseName = "parley"

	issuer    = "parley"
	audience  = "parley"
	tokenLife = 15 * time.Minute
	poolSize  = 20
)

// shift is the one variable of a service's own program that also counts here.
type shift struct {
	ClockOffset time.Duration `env:"CLOCK_OFFSET"`
}

// dependencies are what a service's own program would make from its environment.
func (p *process) dependencies(ctx context.Context, name string, bus *event.Bus) (service.Deps, error) {
	url, err := provision.EnsureService(ctx, p.stack.Postgres.URL, databaseName, name, p.secrets.Database[name])
	if err != nil {
		return service.Deps{}, err
	}
	settings := config.NewSource(service.Prefix(name), p.environ)
	var shifted shift
	if err := settings.Load(&shifted); err != nil {
		return service.Deps{}, err
	}
	return service.Deps{
		Services:   p.names,
		Database:   postgres.Config{URL: url, MaxConns: poolSize, ApplicationName: name},
		MigrateURL: url,
		Bus:        bus, Loopback: p.loopback, Redis: p.redis, Dialer: p.services,
		UserKeys: p.userKeys(), Issuer: issuer, Audience: audience, TokenLife: tokenLife,
		Key: p.secrets.privateKey(name), Callers: p.secrets.callers(),
		Clock: clock.Offset(clock.System(), shifted.ClockOffset), Log: p.log, Admin: p.admin,
		Settings: settings,
	}, nil
}

// userKeys reads the key set of auth as every verifier does, only without a
// network in between.
func (p *process) userKeys() token.KeySource {
	auth := p.services.Backend("auth")
	return token.RemoteKeys(&http.Client{Transport: auth.Transport, Timeout: 5 * time.Second}, auth.URL+"/.well-known/jwks.json", clock.System())
}
