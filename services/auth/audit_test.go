package auth_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func TestAuditTrail(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root := newAdmin(t, h, client, "root")
	anna := newcomer(t, h, client, "anna")
	berta, clara := newcomer(t, h, client, "berta"), newcomer(t, h, client, "clara")
	_, err := logIn(from(t, "203.0.113.77"), client, "anna", "not-the-password")
	wrongPassword(t, err)
	_, err = logIn(from(t, "203.0.113.78"), client, "nobody", "not-the-password")
	wrongPassword(t, err)

	t.Run("ThePersonSeesTheirOwnWithItsOrigin", func(t *testing.T) {
		t.Parallel()
		entries := anna.record(t)
		require.Len(t, entries, 2)
		require.Equal(t, "session.started", entries[0].GetAction())
		require.Equal(t, authv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, entries[0].GetOutcome())
		require.Equal(t, "CREDENTIALS_INVALID", entries[0].GetReason())
		require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_ANONYMOUS, entries[0].GetActor())
		require.Equal(t, "203.0.113.77", entries[0].GetAddress())
		require.Contains(t, entries[0].GetUserAgent(), "connect-go")
		require.Equal(t, "account.registered", entries[1].GetAction())
		require.Equal(t, authv1.AuditOutcome_AUDIT_OUTCOME_DONE, entries[1].GetOutcome())
		require.Equal(t, anna.tokens.GetSessionId(), entries[1].GetSessionId())
		require.Equal(t, anna.id, entries[1].GetUserId())
		others := berta.record(t)
		require.NotEmpty(t, others)
		for _, entry := range others { // what she reads as an admin meanwhile is among them
			require.Equal(t, berta.id, entry.GetUserId())
		}
	})
	t.Run("AdminsSeeAllInPagesAndLeaveATrace", func(t *testing.T) {
		t.Parallel()
		var actions []string
		token, nobody := "", 0
		for {
			res, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{PageSize: 3, PageToken: token})
			require.NoError(t, err)
			for _, ev := range res.GetEvents() {
				actions = append(actions, ev.GetAction())
				if ev.GetAddress() == "203.0.113.78" && ev.GetUserId() == "" {
					nobody++
				}
			}
			if token = res.GetNextPageToken(); token == "" {
				break
			}
		}
		require.Equal(t, 1, nobody, "a name that nobody has is recorded as well")
		require.Contains(t, actions, "role.set")
		require.Contains(t, actions, "account.registered")
		_, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: berta.id})
		require.NoError(t, err)
		ev := berta.recorded(t, "admin.audit_read", "")
		require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_ADMIN, ev.GetActor())
		require.Empty(t, ev.GetActorId())
		seen, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: berta.id, PageSize: 1})
		require.NoError(t, err)
		require.Equal(t, root.id, seen.GetEvents()[0].GetActorId())
		_, err = root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: clara.id, PageToken: seen.GetNextPageToken()})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PAGE_TOKEN_INVALID)
	})
}

func TestAuditIsPruned(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_AUDIT_RETENTION=48h")
	anna := newcomer(t, h, client, "anna")
	require.Len(t, anna.record(t), 1)
	count := func() (n int) {
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM audit").Scan(&n))
		return n
	}
	h.Clock.Advance(47 * time.Hour)
	again(t, h, client, "anna", password)
	h.Clock.Advance(2 * time.Hour)
	require.Eventually(t, func() bool { return count() == 1 }, 30*time.Second, 10*time.Millisecond, "the old entry goes, the young one stays")
}

// What is refused because it cannot be recorded has not happened.
func TestWhatCannotBeRecordedDoesNotHappen(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna := newcomer(t, h, client, "anna")
	_, err := h.DB("auth").Exec(t.Context(), "ALTER TABLE audit ADD CONSTRAINT nothing CHECK (action <> 'password.changed')")
	require.NoError(t, err)
	_, err = changePassword(t, anna, password, nextPassword)
	requireReason(t, err, connect.CodeInternal, errorv1.Reason_REASON_INTERNAL)
	again(t, h, client, "anna", password)
}

// Of what admins try, refusals are in the record as well: nobody is looked for without a trace.
func TestWhatAdminsAreRefusedIsRecorded(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root, anna := newAdmin(t, h, client, "root"), newcomer(t, h, client, "anna")
	_, err := root.admin.GetAccount(t.Context(), &authv1.GetAccountRequest{Account: &authv1.GetAccountRequest_Username{Username: "nobody-here"}})
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_ACCOUNT_NOT_FOUND)
	_, err = root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: anna.id, Until: timestamppb.New(h.Clock.Now()), Note: "spam"})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	_, err = root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: anna.id, PageToken: "torn"})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PAGE_TOKEN_INVALID)
	anna.recorded(t, "account.suspended", "INVALID_ARGUMENT")
	anna.recorded(t, "admin.audit_read", "PAGE_TOKEN_INVALID")
	res, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{})
	require.NoError(t, err)
	for _, ev := range res.GetEvents() {
		if ev.GetReason() == "ACCOUNT_NOT_FOUND" {
			require.Equal(t, root.id, ev.GetActorId())
			require.Equal(t, "nobody-here", ev.GetDetails()["username"])
			return
		}
	}
	require.Fail(t, "the search for nobody is not in the record")
}
