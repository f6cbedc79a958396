package authz_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
)

// TestAuthorization asks every method, as everybody, at every door.
func TestAuthorization(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, r := range readTable(t) {
		m, ok := rpc.Methods()[r.procedure]
		if !ok {
			continue // TestTable tells
		}
		t.Run(strings.TrimPrefix(r.procedure, "/parley."), func(t *testing.T) {
			t.Parallel()
			for _, column := range columns {
				for _, d := range []door{direct, overHTTP, overGRPC, overGRPCWeb, overGET, overSocket} {
					want, asked := r.expect(d, m, column)
					if !asked {
						continue
					}
					if got := w.ask(t, d, m, column, r.request); got != want {
						require.Fail(t, "not what the table says", "%s calls %s at the door of the %s: %s, not %s; the row as it answers now:\n%s",
							column, m.Procedure, d.name, got, want, w.observe(t, m, r.request))
					}
				}
			}
		})
	}
}

// ofEachKind are who is asked at the further doors of the gateway: nobody, a person, a
// service and a token that was good. Whoever the others are, is decided from the same
// token in the same place.
var ofEachKind = []string{anonymous, user, stranger, revoked}

// expect is the cell for a door. Outside, an internal method does not exist, and
// nobody is a service. A socket belongs to a person and carries no streams.
func (r row) expect(d door, m rpc.Method, column string) (want string, asked bool) {
	cell := r.cells[column]
	if cell == notAsked {
		return "", false
	}
	if slices.Contains([]string{overGRPC.name, overGRPCWeb.name, overGET.name}, d.name) && !slices.Contains(ofEachKind, column) {
		return "", false
	}
	isPerson := slices.Contains([]string{user, other, moderator, admin}, column)
	switch {
	case d.name == direct.name:
		return cell, true
	case d.name == overGET.name && !noSideEffects(m):
		return "", false
	case d.name == overSocket.name && !isPerson:
		return "", false
	case !r.outside, d.name == overSocket.name && m.Streaming != connect.StreamTypeUnary:
		return "unknown", true
	case column == service, column == stranger:
		return "invalid", true
	default:
		return cell, true
	}
}

// TestEveryAllowedServiceMayCall asks as those that the column "service" leaves out:
// it is about the first of the callers that a method's proto names.
func TestEveryAllowedServiceMayCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, r := range readTable(t) {
		m := rpc.Methods()[r.procedure]
		for i, name := range m.InternalCallers {
			if i == 0 || r.cells[service] == notAsked {
				continue
			}
			by := who{caller: w.Service(name, m.Service)}
			require.Equal(t, r.cells[service], direct.call(t, w, m, by, w.fill(t, r.request, w.person(t, identity.RoleUser))), "%s calls %s", name, m.Procedure)
		}
	}
}

// ask makes one call. Whoever calls and whatever is owned is new each time, so
// that no call sees what another one did.
func (w *world) ask(t testing.TB, d door, m rpc.Method, column, request string) string {
	t.Helper()
	by, owner := w.caller(t, m, column)
	if owner == nil && owned.MatchString(request) {
		owner = w.person(t, identity.RoleUser)
	}
	return d.call(t, w, m, by, w.fill(t, request, owner))
}

// caller is who stands for a column, and the owner of what is asked for if that
// is the caller.
func (w *world) caller(t testing.TB, m rpc.Method, column string) (by who, owner *person) {
	t.Helper()
	switch column {
	case user:
		p := w.person(t, identity.RoleUser)
		return who{p.caller, p.raw}, p
	case other:
		p := w.person(t, identity.RoleUser)
		return who{p.caller, p.raw}, nil
	case moderator:
		p := w.person(t, identity.RoleModerator)
		return who{p.caller, p.raw}, nil
	case admin:
		p := w.person(t, identity.RoleAdmin)
		return who{p.caller, p.raw}, nil
	case service:
		return who{caller: w.Service(rightCaller(m), m.Service)}, nil
	case stranger:
		return who{caller: w.Service(wrongCaller(m), m.Service)}, nil
	case expired:
		return who{w.expired, w.expiredRaw}, nil
	case revoked:
		return who{w.revoked, w.revokedRaw}, nil
	default:
		return who{caller: w.Anonymous()}, nil
	}
}

// rightCaller is a service that may call the method; any, where none may.
func rightCaller(m rpc.Method) string {
	if len(m.InternalCallers) > 0 {
		return m.InternalCallers[0]
	}
	return "messaging"
}

// wrongCaller is a service with good tokens that may not call the method.
func wrongCaller(m rpc.Method) string {
	for _, name := range []string{"messaging", "user", "auth"} {
		if !slices.Contains(m.InternalCallers, name) {
			return name
		}
	}
	return m.Service
}

// owned finds in a request what belongs to somebody.
var owned = regexp.MustCompile(`"\$(USER|USERNAME|EMAIL|SESSION|REFRESH|CONVERSATION)"`)

// observe is a row as a method answers it now.
func (w *world) observe(t testing.TB, m rpc.Method, request string) row {
	t.Helper()
	r := row{procedure: m.Procedure, outside: m.Public(), cells: map[string]string{}, request: request}
	for _, column := range columns {
		r.cells[column] = notAsked
		if column != other || owned.MatchString(request) {
			r.cells[column] = w.ask(t, direct, m, column, request)
		}
	}
	return r
}

// TestMissingRows prints the rows that the table lacks, as the methods answer
// now. Whoever adds one makes sure that this is what was meant.
func TestMissingRows(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	for _, r := range readTable(t) {
		have[r.procedure] = true
	}
	var missing []rpc.Method
	for procedure, m := range rpc.Methods() {
		if !have[procedure] {
			missing = append(missing, m)
		}
	}
	if len(missing) == 0 {
		return
	}
	slices.SortFunc(missing, func(a, b rpc.Method) int { return strings.Compare(a.Procedure, b.Procedure) })
	w := newWorld(t)
	var lines []string
	for _, m := range missing {
		lines = append(lines, w.observe(t, m, "{}").String())
	}
	require.Fail(t, "methods without a row", "add to %s, after thinking:\n%s", tableFile, strings.Join(lines, "\n"))
}

// TestNobodyHasASocketWithoutAToken holds the door of sockets itself: whoever is
// no person with a living session gets none.
func TestNobodyHasASocketWithoutAToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.person(t, identity.RoleUser)
	foreign := servicetest.Start(t, servicetest.Options{})
	for name, c := range map[string]struct {
		raw    string
		code   int
		reason string
	}{
		"nothing":        {"", 4401, "TOKEN_INVALID"},
		"nonsense":       {"nonsense", 4401, "TOKEN_INVALID"},
		"an expired one": {w.expiredRaw, 4402, "TOKEN_EXPIRED"},
		"a revoked one":  {w.revokedRaw, 4401, "SESSION_REVOKED"},
		"of elsewhere":   {foreign.AccessToken(servicetest.Caller{UserID: p.id, SessionID: p.session, Role: identity.RoleAdmin}), 4401, "TOKEN_INVALID"},
	} {
		_, err := w.socket(t, c.raw)
		var closed *client.CloseError
		require.ErrorAs(t, err, &closed, name)
		require.Equal(t, c.code, closed.Code, name)
		require.Equal(t, c.reason, closed.Reason, name)
	}
}
