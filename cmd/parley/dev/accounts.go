package dev

import (
	"context"
	"fmt"

	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// Account is somebody to log in as.
type Account struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// demoPassword is of the two demo accounts, which exist in development only.
const demoPassword = "correct horse battery"

// demoAccounts registers two people through the API, unless they are there.
func (p *process) demoAccounts(ctx context.Context) ([]Account, error) {
	backend := p.services.Backend("auth")
	auth := authv1connect.NewAuthServiceClient(backend.HTTP, backend.URL)
	people := []struct{ username, name string }{{"ada", "Ada Lovelace"}, {"grace", "Grace Hopper"}}
	accounts := make([]Account, 0, len(people))
	for _, person := range people {
		_, err := auth.Register(ctx, &authv1.RegisterRequest{
			Email: person.username + "@example.org", Username: person.username, Password: demoPassword, DisplayName: person.name,
		})
		switch rpc.ReasonOf(err) {
		case errorv1.Reason_REASON_USERNAME_TAKEN, errorv1.Reason_REASON_EMAIL_TAKEN:
		default:
			if err != nil {
				return nil, fmt.Errorf("register the demo account %s: %w", person.username, err)
			}
		}
		accounts = append(accounts, Account{person.username, demoPassword})
	}
	return accounts, nil
}
