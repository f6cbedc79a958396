package user

import (
	"context"
	"embed"
	"io/fs"

	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Definition is what both shapes of the program start.
func Definition() service.Definition {
	migrations, _ := fs.Sub(migrationFiles, "migrations") // fails for invalid names only
	return service.Definition{Name: "user", Migrations: migrations, Setup: setup}
}

func setup(_ context.Context, rt *service.Runtime) error {
	s := &Service{
		pool:     rt.DB,
		outbox:   rt.Outbox,
		accounts: authv1connect.NewAuthServiceClient(rt.Dial("auth")),
		log:      rt.Log,
	}
	rt.Handle(userv1connect.NewUserServiceHandler(s, rt.Options()...))
	rt.Listen(s.listeners()...)
	return nil
}
