// Package identity says who is making a call.
//
// It owns the Caller that the RPC server puts into the context of every call,
// and nothing else: it verifies no token and grants no right. A context that
// nobody has written a caller into belongs to an anonymous one, so forgetting
// to authenticate can never give a right.
package identity

import (
	"context"
	"fmt"

	"github.com/google/uuid"
)

// Kind tells people, services and strangers apart.
type Kind uint8

// The zero Kind is the one without rights.
const (
	Anonymous Kind = iota
	User
	Service
)

// String names the kind for logs.
func (k Kind) String() string {
	switch k {
	case User:
		return "user"
	case Service:
		return "service"
	default:
		return "anonymous"
	}
}

// Role is what an account may do beyond its own affairs. Roles are ordered: an
// admin may do all that a moderator may.
type Role uint8

// RoleNone is the role of everybody who is not a person.
const (
	RoleNone Role = iota
	RoleUser
	RoleModerator
	RoleAdmin
)

// String gives the name that stands in tokens; "" for RoleNone.
func (r Role) String() string {
	switch r {
	case RoleUser:
		return "user"
	case RoleModerator:
		return "moderator"
	case RoleAdmin:
		return "admin"
	default:
		return ""
	}
}

// ParseRole reads the name of a role. An unknown name is an error, never a
// default: a token that we cannot read gives no rights.
func ParseRole(name string) (Role, error) {
	for _, r := range []Role{RoleUser, RoleModerator, RoleAdmin} {
		if r.String() == name {
			return r, nil
		}
	}
	return RoleNone, fmt.Errorf("unknown role %q", name)
}

// Caller is who makes a call. UserID, SessionID and Role are set for a User,
// Service (its name, "messaging") for a Service.
type Caller struct {
	Kind      Kind
	UserID    uuid.UUID
	SessionID uuid.UUID
	Role      Role
	Service   string
}

// HasRole says whether the caller is a person with that role or a higher one.
func (c Caller) HasRole(r Role) bool {
	return c.Kind == User && r != RoleNone && c.Role >= r
}

type callerKey struct{}

// With returns a context whose calls are made by the caller.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns who makes the call, an anonymous caller if nobody said.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
