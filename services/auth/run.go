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
	s, err := newService(ctx, rt)
	if err != nil {
		return err
	}
	s.serve(rt)
	return nil
}

func newService(ctx context.Context, rt *service.Runtime) (*Service, error) {
	cfg, err := readSettings(rt)
	if err != nil {
		return nil, err
	}
	gateways, err := cfg.gateways()
	if err != nil {
		return nil, err
	}
	known, err := openBreached(cfg.BreachedPasswords)
	if err != nil {
		return nil, err
	}
	passwords, err := newPasswords(cfg.PasswordPepper, cfg.BcryptCost, cmp.Or(cfg.HashingPlaces, runtime.GOMAXPROCS(0)), known)
	if err != nil {
		return nil, err
	}
	secrets, err := newSecretHasher(cfg.KeyEncryptionKey)
	if err != nil {
		return nil, err
	}
	keys, err := newKeyring(rt.DB, cfg.KeyEncryptionKey, keyPolicy{cfg.KeyRotation, cfg.AccessTokenLife}, rt.Clock, rt.Log)
	if err != nil {
		return nil, err
	}
	// Before the first call: a fresh deployment has no key yet.
	if err := keys.rotate(ctx); err != nil {
		return nil, err
	}
	mails, err := mail.New(mail.Config{
		Service: rt.Name, Bus: rt.Bus, Key: cfg.KeyEncryptionKey, Settings: cfg.Mail, Clock: rt.Clock, Log: rt.Log,
	})
	if err != nil {
		return nil, err
	}
	oauth, err := newOAuth(ctx, cfg.OAuth, cfg.KeyEncryptionKey, rt.Clock, rt.Log)
	if err != nil {
		return nil, err
	}
	return &Service{
		pool: rt.DB, outbox: rt.Outbox, bus: rt.Bus, clock: rt.Clock, log: rt.Log,
		passwords: passwords, refresh: refreshSealer{cfg.RefreshSecret}, keys: keys, attempts: newAttempts(rt.Redis, rt.Clock, rt.Log),
		secrets: secrets, factors: factorSealer{keys.seal}, factorIssuer: cfg.SecondFactorIssuer,
		policy: sessionPolicy{cfg.AccessTokenLife, cfg.SessionLife, cfg.SessionIdle}, issuer: cfg.Issuer, audience: cfg.Audience,
		registerAwait: cfg.awaited(), gateways: gateways, mails: mails, mailer: newMailer(), oauth: oauth,
		loginLimit: cfg.LoginLimit, loginAddressLimit: cfg.LoginAddressLimit, registerLimit: cfg.RegisterLimit, actionLimit: cfg.ActionLimit, refreshLimit: cfg.RefreshLimit,
		codeSendLimit: cfg.CodeSendLimit, codeSendAddressLimit: cfg.CodeSendAddressLimit,
		usernames:          usernamePolicy{every: cfg.UsernameEvery, hold: cfg.UsernameHold},
		sessionsPerAccount: int32(cfg.SessionsPerAccount), auditRetention: cfg.AuditRetention,
	}, nil
}

// serve puts on the runtime what the service serves and does.
func (s *Service) serve(rt *service.Runtime) {
	rt.Handle(authv1connect.NewAuthServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewSessionServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewAccountServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewSecondFactorServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewAdminServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewOAuthServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewUsernameServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewConfirmationServiceHandler(s, rt.Options()...))
	rt.Handle(authv1connect.NewPortabilityServiceHandler(s, rt.Options()...))
	rt.Listen(s.listeners()...)
	rt.HandleHTTP("GET /.well-known/jwks.json", http.HandlerFunc(s.keySet))
	rt.Go("mail", s.mails.Run)
	rt.Go("mailer", s.runMailer)
	rt.Go("oauth client", closeIdle(s.oauth.client))
	rt.Job(job.Job{Name: "rotate-signing-keys", Every: keyReload, Run: s.keys.rotate})
	rt.Job(job.Job{Name: "prune-sessions", Every: time.Hour, Run: s.pruneSessions})
	rt.Job(job.Job{Name: "prune-codes", Every: 10 * time.Minute, Run: s.pruneCodes})
	rt.Job(job.Job{Name: "prune-oauth", Every: 10 * time.Minute, Run: s.pruneOAuth})
	rt.Job(job.Job{Name: "prune-audit", Every: time.Hour, Run: s.pruneAudit})
	rt.Job(job.Job{Name: "release-usernames", Every: time.Hour, Run: s.releaseUsernames})
	rt.Job(job.Job{Name: "send-notices", Every: time.Minute, Run: s.sendNotices})
	rt.Job(job.Job{Name: "end-suspensions", Every: time.Minute, Run: s.endSuspensions})
}
