package auth_test

import (
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

func denied(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED)
}

// TestRolesAreEnforced calls each method of admins as everybody who is none.
func TestRolesAreEnforced(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	target := register(t, client, "target").GetUserId()
	calls := map[string]func(authv1connect.AdminServiceClient) error{
		"GetAccount": func(c authv1connect.AdminServiceClient) error {
			_, err := c.GetAccount(t.Context(), &authv1.GetAccountRequest{Account: &authv1.GetAccountRequest_UserId{UserId: target}})
			return err
		},
		"SetRole": func(c authv1connect.AdminServiceClient) error {
			_, err := c.SetRole(t.Context(), &authv1.SetRoleRequest{UserId: target, Role: authv1.Role_ROLE_MODERATOR})
			return err
		},
		"SuspendAccount": func(c authv1connect.AdminServiceClient) error {
			_, err := c.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: target, Note: "spam"})
			return err
		},
		"UnsuspendAccount": func(c authv1connect.AdminServiceClient) error {
			_, err := c.UnsuspendAccount(t.Context(), &authv1.UnsuspendAccountRequest{UserId: target})
			return err
		},
		"ListAuditEvents": func(c authv1connect.AdminServiceClient) error {
			_, err := c.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{})
			return err
		},
	}
	admin := newAdmin(t, h, client, "root")
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := func(role identity.Role) authv1connect.AdminServiceClient {
				return authv1connect.NewAdminServiceClient(h.Dial("auth", h.UserWithRole(uuid.New(), role)))
			}
			denied(t, call(as(identity.RoleUser)))
			denied(t, call(as(identity.RoleModerator)))
			// A token that says admin where the database does not: its role was taken away.
			denied(t, call(as(identity.RoleAdmin)))
			requireReason(t, call(authv1connect.NewAdminServiceClient(h.Dial("auth", h.Anonymous()))),
				connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
			require.NoError(t, call(admin.admin))
		})
	}
}

func setRole(t *testing.T, by *someone, target string, role authv1.Role) (authv1.Role, error) {
	t.Helper()
	res, err := by.admin.SetRole(t.Context(), &authv1.SetRoleRequest{UserId: target, Role: role})
	return res.GetBefore(), err
}

func TestSetRole(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root := newAdmin(t, h, client, "root")

	t.Run("IsInTheTokenFromTheNextRefresh", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		before, err := setRole(t, root, anna.id, authv1.Role_ROLE_ADMIN)
		require.NoError(t, err)
		require.Equal(t, authv1.Role_ROLE_USER, before)
		tokens, err := refresh(t.Context(), client, anna.tokens.GetRefreshToken())
		require.NoError(t, err)
		claims, err := verifier(h).Verify(t.Context(), tokens.GetAccessToken())
		require.NoError(t, err)
		require.Equal(t, identity.RoleAdmin, claims.Role)
		anna = logged(h, anna.id, tokens)
		// Taken away, it is gone at once, not only when the token ends.
		before, err = setRole(t, root, anna.id, authv1.Role_ROLE_USER)
		require.NoError(t, err)
		require.Equal(t, authv1.Role_ROLE_ADMIN, before)
		_, err = setRole(t, anna, root.id, authv1.Role_ROLE_USER)
		require.Error(t, err)
		anna.ended(t)
		later := again(t, h, client, "anna", password)
		claims, err = verifier(h).Verify(t.Context(), later.tokens.GetAccessToken())
		require.NoError(t, err)
		require.Equal(t, identity.RoleUser, claims.Role)
		ev := later.recorded(t, "role.set", "")
		require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_ADMIN, ev.GetActor())
		require.Empty(t, ev.GetActorId(), "which admin it was is the admins' to know")
	})
	t.Run("NotOneself", func(t *testing.T) {
		t.Parallel()
		_, err := setRole(t, root, root.id, authv1.Role_ROLE_USER)
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_OWN_ACCOUNT)
		_, err = root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: root.id, Note: "by mistake"})
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_OWN_ACCOUNT)
		root.lives(t)
	})
	t.Run("NotNobody", func(t *testing.T) {
		t.Parallel()
		_, err := setRole(t, root, uuid.NewString(), authv1.Role_ROLE_MODERATOR)
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_ACCOUNT_NOT_FOUND)
	})
}

func TestTwoAdminsActOnEachOther(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna, berta := newAdmin(t, h, client, "anna"), newAdmin(t, h, client, "berta")
	errs := make([]error, 2)
	var group sync.WaitGroup
	group.Go(func() {
		_, errs[0] = anna.admin.SetRole(t.Context(), &authv1.SetRoleRequest{UserId: berta.id, Role: authv1.Role_ROLE_USER})
	})
	group.Go(func() {
		_, errs[1] = berta.admin.SetRole(t.Context(), &authv1.SetRoleRequest{UserId: anna.id, Role: authv1.Role_ROLE_USER})
	})
	group.Wait()
	var admins int
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM account WHERE role = 'admin'").Scan(&admins))
	require.Equal(t, 1, admins, "%v", errs)
}

func TestOperator(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna := newcomer(t, h, client, "anna")
	op := operator(t, h)
	done, err := op.Grant(t.Context(), "Anna@Example.org", identity.RoleAdmin, "ops\n")
	require.NoError(t, err)
	require.Equal(t, anna.id, done.UserID.String())
	require.Equal(t, identity.RoleUser, done.Before)
	anna.lives(t)
	ev := anna.recorded(t, "role.set", "")
	require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_OPERATOR, ev.GetActor())

	_, err = op.Grant(t.Context(), "anna", identity.RoleUser, "ops")
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_ADMIN)
	_, err = op.Grant(t.Context(), "nobody", identity.RoleAdmin, "ops")
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_ACCOUNT_NOT_FOUND)
	register(t, client, "berta")
	_, err = op.Grant(t.Context(), "berta", identity.RoleAdmin, "ops")
	require.NoError(t, err)
	_, err = op.Grant(t.Context(), "anna", identity.RoleModerator, "ops")
	require.NoError(t, err)
	// The relay of the running service publishes it, by real time, after the row's grace by the clock of the test.
	h.Clock.Advance(5 * time.Second)
	anna.ended(t)
}

func TestSuspension(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	root := newAdmin(t, h, client, "root")
	suspend := func(t *testing.T, target string, until *timestamppb.Timestamp) {
		t.Helper()
		_, err := root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: target, Until: until, Note: "spam"})
		require.NoError(t, err)
	}
	refused := func(t *testing.T, err error) {
		t.Helper()
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCOUNT_SUSPENDED)
	}
	events := func(typ, key string) (of []*eventv1.Event) {
		for _, ev := range h.Events("auth", typ) {
			if ev.GetKey() == key {
				of = append(of, ev)
			}
		}
		return of
	}

	anna := newcomer(t, h, client, "anna")
	mailedCode(t, h, "anna@example.org")
	suspend(t, anna.id, nil)
	suspend(t, anna.id, nil)
	_, err := refresh(t.Context(), client, anna.tokens.GetRefreshToken())
	refused(t, err)
	anna.ended(t)
	_, err = logIn(t.Context(), client, "anna", "not-the-password")
	wrongPassword(t, err)
	_, err = logIn(t.Context(), client, "anna", password)
	refused(t, err)
	require.Contains(t, h.Mail.Next("anna@example.org").Subject, "suspended")
	told := events("account.suspended", anna.id)
	require.Len(t, told, 1, "nothing changed, nothing is told")
	require.EqualValues(t, 2, told[0].GetKeyVersion())
	got, err := root.admin.GetAccount(t.Context(), &authv1.GetAccountRequest{Account: &authv1.GetAccountRequest_Username{Username: "ANNA"}})
	require.NoError(t, err)
	require.Equal(t, "spam", got.GetSuspension().GetNote())

	for range 2 {
		_, err = root.admin.UnsuspendAccount(t.Context(), &authv1.UnsuspendAccountRequest{UserId: anna.id})
		require.NoError(t, err)
	}
	anna = again(t, h, client, "anna", password)
	require.Len(t, events("account.unsuspended", anna.id), 1)
	entry := anna.recorded(t, "account.suspended", "")
	require.Empty(t, entry.GetDetails(), "the note is for admins")
	anna.recorded(t, "session.started", "ACCOUNT_SUSPENDED")

	// With an end. The job tells of it; a log-in need not wait for the job.
	until := h.Clock.Now().Add(time.Hour)
	_, err = root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: anna.id, Until: timestamppb.New(h.Clock.Now()), Note: "x"})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	suspend(t, anna.id, timestamppb.New(until))
	_, err = logIn(t.Context(), client, "anna", password)
	refused(t, err)
	require.Equal(t, until.Format(time.RFC3339), rpc.InfoOf(err).GetMetadata()["until"])
	h.Clock.Advance(time.Hour)
	again(t, h, client, "anna", password)
	require.Eventually(t, func() bool {
		h.Clock.Advance(time.Minute) // the job leaves an account to the log-in that holds it, until its next run
		return len(events("account.unsuspended", anna.id)) == 2
	}, time.Minute, 200*time.Millisecond, "the job tells of the end")
	versions := events("account.unsuspended", anna.id)
	require.EqualValues(t, 5, versions[1].GetKeyVersion())
}

// A suspension outlives any proof: the second factor, a reset password.
func TestNoWayAroundASuspension(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	root := newAdmin(t, h, client, "root")
	anna := newcomer(t, h, client, "anna")
	phone, _ := enrol(t, h, anna)
	challenge := challenged(t, client, "anna")
	_, err := root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: anna.id, Note: "spam"})
	require.NoError(t, err)
	_, err = anna.factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenge, Code: phone.next(t)})
	require.Error(t, err)
	_, err = logIn(t.Context(), client, "anna", password)
	requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCOUNT_SUSPENDED)
}
