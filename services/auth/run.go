package auth

import (
	"cmp"
	"context"
	"embed"
	"io/fs"
	"net/http"
	"runtime"
	"time"

	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Definition is what both shapes of the program start.
func Definition() service.Definition {
	migrations, _ := fs.Sub(migrationFiles, "migrations") // fails for invalid names only
	return service.Definition{Name: "auth", Migrations: migrations, Setup: setup, Settings: &settings{}}
}

func setup(ctx context.Context, rt *service.Runtime) error {
	cfg, err := readSettings(rt)
	if err != nil {
		return err
	}
	gateways, err := cfg.gateways()
	if err != nil {
		return err
	}
	passwords, err := newPasswords(cfg.PasswordPepper, cfg.BcryptCost, cmp.Or(cfg.HashingPlaces, runtime.GOMAXPROCS(0)))
	if err != nil {
		return err
	}
	keys, err := newKeyring(rt.DB, cfg.KeyEncryptionKey, keyPolicy{cfg.KeyRotation, cfg.AccessTokenLife}, rt.Clock, rt.Log)
	if err != nil {
		return err
	}
	// Before the first call: a fresh deployment has no key yet.
	if err := keys.rotate(ctx); err != nil {
		return err
	}
	mails, err := mail.New(mail.Config{
		Service: rt.Name, Bus: rt.Bus, Key: cfg.KeyEncryptionKey, Settings: cfg.Mail, Clock: rt.Clock, Log: rt.Log,
	})
	if err != nil {
		return err
	}
	s := &Service{
		pool: rt.DB, outbox: rt.Outbox, bus: rt.Bus, clock: rt.Clock, log: rt.Log,
		passwords: passwords, refresh: refreshSealer{cfg.RefreshSecret}, keys: keys, attempts: newAttempts(rt.Redis, rt.Clock, rt.Log),
		policy: sessionPolicy{cfg.AccessTokenLife, cfg.SessionLife, cfg.SessionIdle}, issuer: cfg.Issuer, audience: cfg.Audience,
		registerAwait: cfg.awaited(), gateways: gateways, mails: mails,
		loginLimit: cfg.LoginLimit, loginAddressLimit: cfg.LoginAddressLimit, registerLimit: cfg.RegisterLimit,
	}
	rt.Handle(authv1connect.NewAuthServiceHandler(s, rt.Options()...))
	rt.HandleHTTP("GET /.well-known/jwks.json", http.HandlerFunc(s.keySet))
	rt.Go("mail", mails.Run)
	rt.Job(job.Job{Name: "rotate-signing-keys", Every: keyReload, Run: keys.rotate})
	rt.Job(job.Job{Name: "prune-sessions", Every: time.Hour, Run: s.pruneSessions})
	return nil
}
