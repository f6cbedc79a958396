package authz_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
)

// hostile are texts that something behind a door may choke on: PostgreSQL on a zero
// byte, a pattern on a percent sign, JSON and logs on control characters, a
// parser of ids on other spellings, and everything on length.
var hostile = []string{
	"\x00", "abc\x00defgh", "\x00@example.org", "%_%\\", "'; DROP TABLE account; --", "a\u202eb\u2066c", "\ufeff\u200b\u200d", "\U0010ffff\ufffe",
	"e\u0301\u0327" + strings.Repeat("\u0301", 40), strings.Repeat("\U0001f600", 60), strings.Repeat("x", 200_000), "../../etc/passwd", "\r\nX: y", "{}", "-1",
	"24251E74-5D26-4A01-A6FB-583A3FAF39CF", "{24251e74-5d26-4a01-a6fb-583a3faf39cf}", "00000000-0000-0000-0000-000000000000", "a@b.c\r\nBcc: d@e.f",
}

// numbers are those at the edges of what columns and counters hold.
var numbers = []int64{math.MinInt64, math.MinInt32, -1, 0, 1, math.MaxInt32, math.MaxInt64 - 1, math.MaxInt64, 253402300799, 253402300800}

// TestHostileRequests puts, into each field of each request of the table, what a
// client would not send, one after the other. Whatever it is, it is taken or is the
// caller's fault: no service answers that the fault is its own, or is away by it.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, r := range readTable(t) {
		m, ok := rpc.Methods()[r.procedure]
		if !ok || !m.Public() {
			continue // no person calls it
		}
		t.Run(strings.TrimPrefix(r.procedure, "/parley."), func(t *testing.T) {
			t.Parallel()
			owner := w.person(t, identity.RoleUser)
			// One request for all: it may do once what it does.
			request := message(t, m, w.fill(t, r.request, owner))
			role := identity.RoleUser
			if r.cells[user] == "denied" {
				role = identity.RoleAdmin
			}
			var by *person
			for i, twist := range twists(request, 3) {
				if by == nil || i%8 == 0 { // some twists end the session or the account
					by = w.person(t, role)
				}
				httpClient, url, option := w.Dial(m.Service, by.caller)
				began := time.Now()
				err := invokeWith(t, m, twist.request, httpClient, url, option)
				fault := []connect.Code{connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss, connect.CodeDeadlineExceeded, connect.CodeUnavailable}
				if err != nil && slices.Contains(fault, rpc.CodeOf(err)) && answer(err) != r.cells[user] {
					require.NoError(t, err, "%s with %s", m.Procedure, twist.what)
				}
				require.Less(t, time.Since(began), patience/2, "%s with %s", m.Procedure, twist.what)
			}
		})
	}
}

// twist is a request with one field changed.
type twist struct {
	what    string
	request *dynamicpb.Message
}

// twists changes each field of a message, and of those in it, to that depth.
func twists(request *dynamicpb.Message, depth int) []twist {
	var all []twist
	fields := request.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		for _, v := range valuesOf(request, field, depth) {
			changed := dynamicpb.NewMessage(request.Descriptor())
			request.Range(func(f protoreflect.FieldDescriptor, value protoreflect.Value) bool {
				changed.Set(f, value)
				return true
			})
			if field.IsList() {
				list := changed.NewField(field).List()
				list.Append(v.value)
				list.Append(v.value)
				changed.Set(field, protoreflect.ValueOfList(list))
			} else {
				changed.Set(field, v.value)
			}
			all = append(all, twist{fmt.Sprintf("%s = %.60q", field.FullName(), v.what), changed})
		}
	}
	return all
}

type value struct {
	what  string
	value protoreflect.Value
}

// valuesOf are the values that one field, or one item of a list, is given.
func valuesOf(in *dynamicpb.Message, field protoreflect.FieldDescriptor, depth int) []value {
	var all []value
	add := func(what any, v protoreflect.Value) { all = append(all, value{fmt.Sprint(what), v}) }
	switch field.Kind() {
	case protoreflect.StringKind:
		for _, text := range hostile {
			add(text, protoreflect.ValueOfString(text))
		}
	case protoreflect.BytesKind:
		for _, text := range hostile {
			add(text, protoreflect.ValueOfBytes([]byte(text)))
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		for _, n := range numbers {
			add(n, protoreflect.ValueOfInt32(int32(n)))
		}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		for _, n := range numbers {
			add(n, protoreflect.ValueOfInt64(n))
		}
	case protoreflect.EnumKind:
		for _, n := range []protoreflect.EnumNumber{-1, 0, 1, 99, math.MaxInt32} {
			add(n, protoreflect.ValueOfEnum(n))
		}
	case protoreflect.BoolKind:
		add(true, protoreflect.ValueOfBool(true))
	case protoreflect.MessageKind:
		if depth == 0 || field.IsMap() {
			return nil
		}
		inner := dynamicpb.NewMessage(field.Message())
		if given, ok := in.Get(field).Interface().(protoreflect.Message); ok && !field.IsList() && in.Has(field) {
			if dynamic, ok := given.Interface().(*dynamicpb.Message); ok {
				inner = dynamic
			}
		}
		add("an empty message", protoreflect.ValueOfMessage(dynamicpb.NewMessage(field.Message())))
		for _, t := range twists(inner, depth-1) {
			add(t.what, protoreflect.ValueOfMessage(t.request))
		}
	default:
	}
	return all
}
