package user_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// named registers somebody with these names.
func named(t *testing.T, h *servicetest.Harness, username, displayName string) uuid.UUID {
	t.Helper()
	id := newID(t)
	h.Deliver("auth", "user", event.New("account.registered", id.String(), 1, &authv1.AccountRegistered{
		AccountId: id.String(), Username: username, DisplayName: displayName, RegisteredAt: timestamppb.New(servicetest.Noon),
	}))
	return id
}

// search returns the user names that somebody finds.
func search(t *testing.T, h *servicetest.Harness, by uuid.UUID, query string, size int32) []string {
	t.Helper()
	client := userv1connect.NewDirectoryServiceClient(h.Dial("user", h.User(by)))
	res, err := client.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: query, PageSize: size})
	require.NoError(t, err)
	names := []string{}
	for _, u := range res.GetUsers() {
		names = append(names, u.GetUsername())
	}
	return names
}

func TestSearchUsers(t *testing.T) {
	t.Parallel()
	h, _ := startWith(t, servicetest.Options{Settings: []string{"PARLEY_USER_SEARCH_LIMIT=1000"}})
	named(t, h, "Anna", "Anna Ångström")
	named(t, h, "anna.b", "Berta")
	named(t, h, "xavier", "Savannah Anders")
	named(t, h, "elena", "Елена Петрова")
	named(t, h, "minjun", "김민준")
	named(t, h, "a_b_c", "100% Person")
	seeker := named(t, h, "annabel", "The seeker")

	for name, c := range map[string]struct {
		query string
		want  []string
	}{
		"ExactBeforeThoseThatBeginSo": {"anna", []string{"Anna", "anna.b"}},
		"CaseDoesNotMatter":           {"ANNA.B", []string{"anna.b", "Anna"}},
		"TwoLettersAreEnough":         {"an", []string{"anna.b", "Anna", "xavier"}},
		"AccentsDoNotMatter":          {"angstrom", []string{"Anna"}},
		"AWordOfTheDisplayName":       {"anders", []string{"xavier"}},
		"SeveralWords":                {"savannah an", []string{"xavier"}},
		"OtherScripts":                {"петр", []string{"elena"}},
		"Syllables":                   {"김민", []string{"minjun"}},
		"WhatIsSpeltAlike":            {"savanah", []string{"xavier"}},
		"WildcardsAreLetters":         {"a_b", []string{"a_b_c"}},
		"NotInTheMiddle":              {"avie", []string{}},
		"NobodyIsNobody":              {"zzzzzz", []string{}},
		"AnAddressIsNoName":           {"anna@example.org", []string{}},
		"OnlySigns":                   {"%%", []string{}},
		"OneLetterAndASign":           {"a.", []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, search(t, h, seeker, c.query, 0))
		})
	}
	t.Run("NoMoreThanAskedFor", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, []string{"Anna"}, search(t, h, seeker, "anna", 1))
	})
	t.Run("RefusesWhatIsOutOfBounds", func(t *testing.T) {
		t.Parallel()
		client := userv1connect.NewDirectoryServiceClient(h.Dial("user", h.User(seeker)))
		for _, req := range []*userv1.SearchUsersRequest{{Query: "a"}, {Query: "anna", PageSize: 51}, {Query: "anna", PageSize: -1}} {
			_, err := client.SearchUsers(t.Context(), req)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		}
	})
	t.Run("UsesTheIndex", func(t *testing.T) {
		t.Parallel()
		// The role forbids sequential scans, so what matters is that the index can serve both questions.
		for _, condition := range []string{`search LIKE '% an%'`, `'anna' <% search`} {
			var plan string
			rows, err := h.DB("user").Query(t.Context(), "EXPLAIN SELECT id FROM profile WHERE "+condition)
			require.NoError(t, err)
			for rows.Next() {
				var line string
				require.NoError(t, rows.Scan(&line))
				plan += line + "\n"
			}
			require.NoError(t, rows.Err())
			require.Contains(t, plan, "Bitmap Index Scan on profile_search", condition)
		}
	})
}

func TestSearchFindsNobodyWhoIsHidden(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})
	seeker := named(t, h, "seeker", "Seeker")
	hidden, leaving := named(t, h, "hidden", "Hidden One"), named(t, h, "leaving", "Leaving One")
	require.ElementsMatch(t, []string{"hidden", "leaving"}, search(t, h, seeker, "one", 0))

	_, err := profilesOf(h, hidden).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{Version: 1, UpdateMask: mask("discoverable")})
	require.NoError(t, err)
	require.Equal(t, []string{"leaving"}, search(t, h, seeker, "one", 0))
	require.Empty(t, search(t, h, seeker, "hidden", 0), "not by likeness either")
	caller := h.User(leaving)
	auth.confirms(caller, h.Clock.Now())
	deletions := userv1connect.NewDeletionServiceClient(h.Dial("user", caller))
	_, err = deletions.RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	require.NoError(t, err)
	require.Empty(t, search(t, h, seeker, "one", 0))
	_, err = deletions.CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{"leaving"}, search(t, h, seeker, "one", 0))

	suspended := event.New("account.suspended", leaving.String(), 3, &authv1.AccountSuspended{AccountId: leaving.String()})
	restored := event.New("account.unsuspended", leaving.String(), 4, &authv1.AccountUnsuspended{AccountId: leaving.String()})
	h.Deliver("auth", "user", suspended)
	require.Empty(t, search(t, h, seeker, "one", 0))
	h.Deliver("auth", "user", restored, suspended)
	require.Equal(t, []string{"leaving"}, search(t, h, seeker, "one", 0))

	// Whoever knows the id sees the profile nevertheless.
	_, err = clientOf(h, seeker).GetUser(t.Context(), &userv1.GetUserRequest{UserId: hidden.String()})
	require.NoError(t, err)
}

func TestSearchFindsNamesOfTheReleaseBefore(t *testing.T) {
	t.Parallel()
	h, _ := start(t)
	seeker := named(t, h, "seeker", "Seeker")
	old := newID(t)
	_, err := h.DB("user").Exec(t.Context(), `INSERT INTO profile (id, username, display_name, version, account_version, created_at)
		VALUES ($1, 'olga', 'Ölga', 1, 1, $2)`, old, servicetest.Noon)
	require.NoError(t, err)
	h.Clock.Advance(11 * time.Minute)
	require.Eventually(t, func() bool { return len(search(t, h, seeker, "olga", 0)) == 1 }, 20*time.Second, 200*time.Millisecond, "the job indexes it")
}

func TestSearchIsLimited(t *testing.T) {
	t.Parallel()
	h, _ := startWith(t, servicetest.Options{Settings: []string{"PARLEY_USER_SEARCH_LIMIT=3"}})
	client := userv1connect.NewDirectoryServiceClient(h.Dial("user", h.User(newID(t))))
	for range 3 {
		_, err := client.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "anna"})
		require.NoError(t, err)
	}
	_, err := client.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "anna"})
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	require.Positive(t, rpc.InfoOf(err).GetRetryAfter().AsDuration())
	require.Empty(t, search(t, h, newID(t), "anna", 0), "others are not concerned")
	h.Clock.Advance(rpc.InfoOf(err).GetRetryAfter().AsDuration())
	_, err = client.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "anna"})
	require.NoError(t, err)
}

// What a search costs does not grow with the number of those whom it fits.
func TestSearchCostIsBounded(t *testing.T) {
	t.Parallel()
	h, _ := start(t)
	_, err := h.DB("user").Exec(t.Context(), `
		INSERT INTO profile (id, username, display_name, search, version, account_version, created_at)
		SELECT gen_random_uuid(), 'anna' || n, 'Anna ' || n, ' anna' || n || ' anna ' || n, 1, 1, now() FROM generate_series(1, 50000) AS n`)
	require.NoError(t, err)
	named(t, h, "an", "Exactly")
	seeker := named(t, h, "seeker", "Seeker")
	_, err = h.DB("user").Exec(t.Context(), "ANALYZE profile")
	require.NoError(t, err)
	// Statistics come some seconds late.
	statistic := func(columns string) int64 {
		var n int64
		require.NoError(t, h.DB("user").QueryRow(t.Context(),
			"SELECT "+columns+" FROM pg_stat_user_tables WHERE relname = 'profile'").Scan(&n))
		return n
	}
	require.Eventually(t, func() bool { return statistic("n_tup_ins") > 50_000 }, time.Minute, 200*time.Millisecond)
	const read = "coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)"
	before := statistic(read)
	require.Equal(t, "an", search(t, h, seeker, "an", 20)[0], "whoever is called so is found among all of them")
	require.Len(t, search(t, h, seeker, "anna", 20), 20)
	require.Len(t, search(t, h, seeker, "annn", 20), 20, "spelt alike")
	var cost int64
	require.Eventually(t, func() bool {
		cost = statistic(read) - before
		return cost >= 2*1000 // the first search and the last at least
	}, time.Minute, 200*time.Millisecond)
	require.Less(t, cost, int64(10_000), "of 50,000 rows, for three searches")
}
