package servicetest

import (
	"time"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
)

// Dialer leads to the services by name, for a gateway that a test puts before
// them.
func (h *Harness) Dialer() rpc.Dialer { return h.dialer }

// UserKeys verify people's tokens: the harness's own and, when auth is under
// test, those that it signs.
func (h *Harness) UserKeys() token.KeySource { return h.userKeys() }

// TokenAt returns a token of a person that was issued at some other time, good
// for TokenLife from then.
func (h *Harness) TokenAt(c Caller, issued time.Time) string {
	h.t.Helper()
	raw, err := token.SignAccess(h.userKey, token.Claims{
		UserID: c.UserID, SessionID: c.SessionID, Role: c.Role, IssuedAt: issued, ExpiresAt: issued.Add(TokenLife),
	}, Issuer, Audience)
	if err != nil {
		h.t.Fatalf("sign a token: %v", err)
	}
	return raw
}
