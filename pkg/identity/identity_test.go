package identity_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/identity"
)

func TestAContextWithoutACallerIsAnonymous(t *testing.T) {
	t.Parallel()
	c := identity.From(t.Context())
	require.Equal(t, identity.Anonymous, c.Kind)
	require.False(t, c.HasRole(identity.RoleUser))
	require.False(t, c.HasRole(identity.RoleNone))
}

func TestWithGivesTheCallerBack(t *testing.T) {
	t.Parallel()
	c := identity.Caller{Kind: identity.User, UserID: uuid.New(), SessionID: uuid.New(), Role: identity.RoleModerator}
	require.Equal(t, c, identity.From(identity.With(t.Context(), c)))
	require.True(t, c.HasRole(identity.RoleUser))
	require.True(t, c.HasRole(identity.RoleModerator))
	require.False(t, c.HasRole(identity.RoleAdmin))
	require.False(t, identity.Caller{Kind: identity.Service, Role: identity.RoleAdmin}.HasRole(identity.RoleUser), "a role is a person's")
}

func TestRolesHaveNames(t *testing.T) {
	t.Parallel()
	for _, r := range []identity.Role{identity.RoleUser, identity.RoleModerator, identity.RoleAdmin} {
		parsed, err := identity.ParseRole(r.String())
		require.NoError(t, err)
		require.Equal(t, r, parsed)
	}
	for _, name := range []string{"", "root", "Admin"} {
		_, err := identity.ParseRole(name)
		require.Error(t, err)
	}
}
