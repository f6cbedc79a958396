package deadletters_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/cmd/parley/deadletters"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// deployment is a NATS with streams and dead letters.
type deployment struct {
	t   *testing.T
	url string
	js  jetstream.JetStream
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	server := testkit.NATS(t)
	conn, err := nats.Connect(server.URL)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	d := &deployment{t: t, url: server.URL, js: js}
	for name, subject := range map[string]string{"events-user": "event.user.>", "dead-letters": "dead.>"} {
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
		require.NoError(t, err)
	}
	return d
}

// park puts a letter there as a listener does.
func (d *deployment) park(service, listener string, ev *eventv1.Event) {
	d.t.Helper()
	require.NoError(d.t, event.Complete(d.t.Context(), ev, time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)))
	data, err := proto.Marshal(&eventv1.DeadLetter{
		Event: ev, Service: service, Listener: listener, Error: "first line\n\x1b[31msecond " + strings.Repeat("x", 200), Attempts: 8,
		ParkedAt: timestamppb.New(time.Date(2027, 3, 14, 12, 1, 0, 0, time.UTC)),
	})
	require.NoError(d.t, err)
	msg := nats.NewMsg("dead." + service + "." + listener)
	msg.Header.Set("Parley-Subject", event.Subject("user", ev.GetType()))
	msg.Data = data
	_, err = d.js.PublishMsg(d.t.Context(), msg)
	require.NoError(d.t, err)
}

func (d *deployment) updated(key string) *eventv1.Event {
	return event.New("user.updated", key, 3, &userv1.UserUpdated{UserId: key, Username: "anna"})
}

// events are those of the domain user that were published.
func (d *deployment) events() uint64 {
	d.t.Helper()
	stream, err := d.js.Stream(d.t.Context(), "events-user")
	require.NoError(d.t, err)
	return stream.CachedInfo().State.Msgs
}

// run is `parley dead-letters ARGS` with something typed in.
func (d *deployment) run(input string, args ...string) (out string, err error) {
	d.t.Helper()
	cmd := deadletters.Command()
	cmd.SetArgs(append(args, "--nats", d.url))
	var printed bytes.Buffer
	cmd.SetOut(&printed)
	cmd.SetErr(&bytes.Buffer{})
	cmd.SetIn(strings.NewReader(input))
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.ExecuteContext(d.t.Context())
	return printed.String(), err
}

func (d *deployment) must(args ...string) string {
	d.t.Helper()
	out, err := d.run("", args...)
	require.NoError(d.t, err)
	return out
}

// listed are the numbers that `list --json` prints.
func (d *deployment) listed(args ...string) []int {
	d.t.Helper()
	numbers := []int{}
	for line := range strings.Lines(d.must(append([]string{"list", "--json"}, args...)...)) {
		var l struct {
			Number int `json:"number"`
		}
		require.NoError(d.t, json.Unmarshal([]byte(line), &l))
		numbers = append(numbers, l.Number)
	}
	return numbers
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	require.Equal(t, "NUMBER  PARKED  LISTENER  TYPE  KEY  VERSION  TRIES  ERROR\n", d.must("list"))
	require.Equal(t, "0 dropped\n", d.must("drop", "--all"), "nothing to ask about")
	d.park("messaging", "user.updated", d.updated("a"))
	d.park("user", "hot.user.updated", d.updated("a"))
	d.park("messaging", "user.deleted", event.New("user.deleted", "b", 4, &userv1.UserDeleted{UserId: "b"}))

	table := d.must("list")
	require.Contains(t, table, "messaging/user.updated")
	require.Contains(t, table, "2027-03-14T12:01:00Z")
	require.NotContains(t, table, "\x1b", "an error cannot write to the terminal")
	require.Len(t, strings.Split(strings.TrimSpace(table), "\n"), 4, "a line each")
	require.Equal(t, []int{1, 2, 3}, d.listed())
	require.Equal(t, []int{1, 3}, d.listed("--service", "messaging"))
	require.Equal(t, []int{2}, d.listed("--listener", "hot.user.updated"))
	require.Equal(t, []int{1, 2}, d.listed("--type", "user.updated"))
	require.Equal(t, []int{2}, d.listed("--after", "1", "--limit", "1"))
	require.Contains(t, d.must("list", "--limit", "2"), "--after 2")

	shown := d.must("show", "1")
	require.Contains(t, shown, `"username": "anna"`, "the payload as text")
	require.Contains(t, shown, `"attempts": 8`)
	var one map[string]any
	require.NoError(t, json.Unmarshal([]byte(d.must("show", "3", "--json")), &one))
	require.Equal(t, "user.deleted", one["type"])

	for name, c := range map[string]struct {
		input string
		args  []string
	}{
		"NotConfirmed":   {"n\n", []string{"drop", "1"}},
		"NoAnswer":       {"", []string{"replay", "--all"}},
		"Nothing":        {"y\n", []string{"drop"}},
		"NumbersAndAll":  {"y\n", []string{"drop", "1", "--all"}},
		"NoNumber":       {"y\n", []string{"drop", "first"}},
		"NotThere":       {"y\n", []string{"drop", "99"}},
		"OfSomebodyElse": {"y\n", []string{"drop", "1", "--service", "user"}},
		"ShowNotThere":   {"", []string{"show", "99"}},
		"NoLimit":        {"", []string{"list", "--limit", "0"}},
	} {
		_, err := d.run(c.input, c.args...)
		require.Error(t, err, name)
	}
	require.Equal(t, []int{1, 2, 3}, d.listed(), "nothing was changed")

	out, err := d.run("yes\n", "replay", "--all", "--type", "user.updated")
	require.NoError(t, err)
	require.Equal(t, "2 replayed\n", out)
	require.EqualValues(t, 2, d.events())
	require.Equal(t, []int{3}, d.listed())
	require.Equal(t, "{\"dropped\":1}\n", d.must("drop", "3", "--yes", "--json"))
	require.Empty(t, d.listed())
	require.EqualValues(t, 2, d.events())
}

// A letter that cannot be read does not keep the ones behind it.
func TestReplayGoesOnBehindWhatCannotBe(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	_, err := d.js.Publish(t.Context(), "dead.messaging.user.updated", []byte{0xff, 0xff})
	require.NoError(t, err)
	d.park("messaging", "user.updated", d.updated("a"))
	d.park("messaging", "user.updated", d.updated("b"))
	out, err := d.run("", "replay", "--all", "--yes")
	require.ErrorContains(t, err, "1 of 3 are left")
	require.ErrorContains(t, err, "dead letter 1 ")
	require.Equal(t, "2 replayed\n", out)
	require.EqualValues(t, 2, d.events())
	require.Equal(t, []int{1}, d.listed())
}

func TestManyAndUnknown(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	unknown := event.New("user.updated", "x", 1, &userv1.UserUpdated{})
	unknown.Payload = &anypb.Any{TypeUrl: "type.googleapis.com/parley.newer.v1.Unknown", Value: []byte{1, 2, 3}}
	d.park("messaging", "user.updated", unknown)
	require.Contains(t, d.must("show", "1"), "parley.newer.v1.Unknown")
	for i := range 1100 { // more than two pages
		d.park("messaging", "user.updated", d.updated(fmt.Sprint(i)))
	}
	require.Equal(t, "1101 dropped\n", d.must("drop", "--all", "--yes"))
	require.Empty(t, d.listed())
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	cmd := deadletters.Command()
	cmd.SetArgs([]string{"list", "--data", t.TempDir(), "--nats", ""})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "PARLEY_NATS_URL")
}
