package load

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/cmd/parley/crowd"
	"github.com/parleychat/parley/pkg/history"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func decoded(t *testing.T, server *realtimev1.ServerFrame) frame {
	t.Helper()
	raw, err := proto.Marshal(server)
	require.NoError(t, err)
	var f frame
	require.NoError(t, decodeFrame(raw, &f))
	return f
}

func TestFramesAreReadAsGeneratedCodeWritesThem(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 123_456_000)
	f := decoded(t, &realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: &messagingv1.Entry{
		ConversationId: "c", Seq: 42, Ordinal: 40, SenderId: "s", CreatedAt: timestamppb.New(at), ClientMessageId: "m",
		Body: &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: "hello"}},
	}}}}})
	require.Equal(t, kindEntry, f.kind)
	require.Equal(t, entry{
		conversation: []byte("c"), seq: 42, ordinal: 40, sender: []byte("s"), client: []byte("m"), text: []byte("hello"), at: at.UnixNano(), message: true,
	}, f.entry)

	body, err := proto.Marshal(&messagingv1.SendMessageResponse{Seq: 7, Ordinal: 6, CreatedAt: timestamppb.New(at)})
	require.NoError(t, err)
	f = decoded(t, &realtimev1.ServerFrame{Id: 9, Frame: &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: body}}}})
	require.Equal(t, kindReply, f.kind)
	require.EqualValues(t, 9, f.id)
	seq, err := decodeSeq(f.body)
	require.NoError(t, err)
	require.EqualValues(t, 7, seq)

	f = decoded(t, &realtimev1.ServerFrame{Id: 9, Frame: &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: &realtimev1.Error{
		Code: "resource_exhausted", Info: &errorv1.ErrorInfo{Reason: errorv1.Reason_REASON_RATE_LIMITED},
	}}}}})
	require.Equal(t, kindError, f.kind)
	require.Equal(t, "resource_exhausted RATE_LIMITED", nameOf(decodeFault(f.body)))
	require.Equal(t, kindResync, decoded(t, &realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}}).kind)
	require.Equal(t, kindOther, decoded(t, &realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{Event: &realtimev1.Push_Receipt{
		Receipt: &messagingv1.Receipt{ReadSeq: 3},
	}}}}).kind)
	require.ErrorIs(t, decodeFrame([]byte{0xff}, &f), errFrame)
}

func TestFramesAreWrittenAsGeneratedCodeReadsThem(t *testing.T) {
	t.Parallel()
	var w writer
	for range 2 { // buffers are used again
		var client realtimev1.ClientFrame
		require.NoError(t, proto.Unmarshal(w.send(5, "conversation", []byte("id"), []byte("text")), &client))
		require.EqualValues(t, 5, client.GetId())
		require.Equal(t, procedureSend, client.GetCall().GetProcedure())
		require.Equal(t, "conversation", client.GetCall().GetLane())
		var req messagingv1.SendMessageRequest
		require.NoError(t, proto.Unmarshal(client.GetCall().GetRequest(), &req))
		require.True(t, proto.Equal(&messagingv1.SendMessageRequest{ConversationId: "conversation", ClientMessageId: "id", Text: "text"}, &req))
		require.NoError(t, proto.Unmarshal(w.watch(8, []string{"a", "b"}), &client))
		require.EqualValues(t, 8, client.GetId())
		require.Equal(t, []string{"a", "b"}, client.GetWatch().GetUserIds())
		require.True(t, client.GetWatch().GetReplace())
		require.NoError(t, proto.Unmarshal(w.authenticate(6, "token"), &client))
		require.Equal(t, "token", client.GetAuthenticate().GetAccessToken())
	}
}

func TestClientIDsTellTheMessage(t *testing.T) {
	t.Parallel()
	r := &run{tag: 0xabc, process: 5}
	a, b := &talk{run: r, index: 70_000}, &talk{run: r, index: 70_001}
	at := time.Now().UnixNano()
	a.sends, b.sends = []sent{{at: at}, {at: at}}, []sent{{at: at}}
	id := a.clientID(1, at)
	parsed := uuid.UUID(id)
	require.EqualValues(t, 7, parsed.Version())
	require.Equal(t, uuid.RFC4122, parsed.Variant())
	var text uuidText
	formatUUID(&text, id)
	require.Equal(t, parsed.String(), string(text[:]))
	back, err := parseUUID(text[:])
	require.NoError(t, err)
	counter, ours := a.counterOf(back)
	require.True(t, ours)
	require.EqualValues(t, 1, counter)
	_, ours = b.counterOf(b.clientID(1, at))
	require.False(t, ours, "not sent yet")
	_, ours = b.counterOf(a.clientID(0, at))
	require.False(t, ours, "of another talk")
}

func TestLatenciesTravelAndMerge(t *testing.T) {
	t.Parallel()
	parts := []*Counts{newCounts(), newCounts()}
	for i := 1; i <= 1000; i++ {
		parts[i%2].Ack.add(time.Duration(i) * time.Millisecond)
		parts[i%2].Acked++
		parts[i%2].Errors["x"]++
	}
	all := newCounts()
	for _, part := range parts {
		raw, err := json.Marshal(part)
		require.NoError(t, err)
		read := newCounts()
		require.NoError(t, json.Unmarshal(raw, read))
		all.add(read)
	}
	require.EqualValues(t, 1000, all.Acked)
	require.EqualValues(t, 1000, all.Errors["x"])
	l := latencyOf(all.Ack)
	require.EqualValues(t, 1000, l.Count)
	require.InEpsilon(t, 500, l.P50, 0.01)
	require.InEpsilon(t, 950, l.P95, 0.01)
	require.InEpsilon(t, 990, l.P99, 0.01)
	require.InEpsilon(t, 999, l.P999, 0.01)
	require.InEpsilon(t, 1000, l.Max, 0.01)
}

// The display counts on while a second is told, shows each once, and takes nothing from the report.
func TestASecondIsToldOnce(t *testing.T) {
	t.Parallel()
	m := newMeter()
	one := func(ms int) {
		m.arrived(m.now(), m.now(), func(c *Counts) {
			c.Sent++
			c.Ack.add(time.Duration(ms) * time.Millisecond)
			c.Delivery.add(time.Duration(ms) * time.Millisecond)
		}, func(c *Counts) { c.AckedIn++; c.DeliveredIn++ })
	}
	shown := func(meanwhile func()) string {
		b := newBoard(io.Discard)
		for process, alive := range []int{3, 4} {
			require.NoError(t, m.tellSecond(func(c *Counts) error {
				raw, err := json.Marshal(answer{Second: secondOf(c, alive)})
				require.NoError(t, err)
				meanwhile()
				var got answer
				require.NoError(t, json.Unmarshal(raw, &got))
				b.tell(process, got.Second)
				return nil
			}))
			meanwhile = func() {}
		}
		line := b.line()
		require.Contains(t, b.line(), "sent/s      0  acked/s      0  delivered/s      0  ack p50      - p99      -  delivery p50      - p99      -  errors 0")
		return line
	}
	for i := range 200 {
		one(i/2 + 1)
	}
	m.fail(m.now(), io.EOF)
	line := shown(func() { one(7) })
	require.Contains(t, line, "conns      7  sent/s    201  acked/s    201  delivered/s    201")
	require.Regexp(t, `delivery p50 +(49|50|51)\.\dms p99 +(99|100)\.\dms  errors 1`, line)
	require.Contains(t, shown(func() {}), "sent/s      0", "what came while the last one was told was in its second part")
	all := m.takeWindow()
	require.EqualValues(t, 201, all.Sent)
	require.EqualValues(t, 201, all.Delivery.TotalCount())
	require.EqualValues(t, 1, all.Errors[nameOf(io.EOF)])
}

func TestSharesAreWhole(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{Scenario: scenarioDirect, Pairs: 7, Procs: 3}, {Scenario: scenarioDirect, Pairs: 3, Procs: 3}, {Scenario: scenarioIdle, Conns: 11, Procs: 4},
	} {
		sum := 0
		for i := range o.Procs {
			share := o.share(i)
			sum += share
			if o.Scenario == scenarioDirect {
				require.Zero(t, share%2, "both of a pair are in one process")
			}
		}
		require.Equal(t, o.people(), sum)
	}
}

func TestProcessesAreCountedOnce(t *testing.T) {
	t.Parallel()
	line := "42 (a) b) S 7 42 42 0 -1 4194304 1 0 0 0 250 50 30 20 20 0 1 0 100 1000000 256 18446744073709551615"
	got, ok := parseStat(line)
	require.True(t, ok)
	require.Equal(t, 7, got.parent)
	require.InDelta(t, 3.5, got.cpu, 1e-9)
	require.Positive(t, got.rss)
	_, ok = parseStat("nonsense")
	require.False(t, ok)

	table := processTable{10: {1, 1, 100}, 11: {10, 2, 200}, 12: {11, 4, 400}, 20: {1, 8, 800}}
	server, err := table.usage(10, map[int]bool{10: true, 11: true}, false)
	require.NoError(t, err)
	require.InDelta(t, 1, server.CPU, 1e-9, "the database below it counts for itself")
	database, err := table.usage(11, map[int]bool{10: true, 11: true}, false)
	require.NoError(t, err)
	require.InDelta(t, 6, database.CPU, 1e-9, "with its children")
	_, err = table.usage(99, nil, false)
	require.Error(t, err)
}

func TestUseIsThatOfTheMeasuredTime(t *testing.T) {
	t.Parallel()
	r := &Report{AckedIn: 2000}
	r.used(map[string]Usage{"server": {CPU: 10}}, map[string]Usage{"server": {CPU: 12, RSS: 5, PSS: 7}}, 0.75)
	require.Equal(t, &Process{CPUSeconds: 1.5, CPUPerThousand: 0.75, RSS: 5, PSS: 7}, r.Processes["server"])

	begin := time.Now()
	u := used{before: sample{at: begin.Add(-time.Second)}, after: sample{at: begin.Add(time.Minute)}}
	require.InDelta(t, 0.75, u.part(begin, 3), 1e-9, "a load that ended early waits for its last answers; that is not used")
	require.Zero(t, u.part(begin, 0))
	u.before.at = begin.Add(time.Millisecond)
	require.InDelta(t, 1, u.part(begin, 3), 1e-9, "without a warm-up nothing is before it")
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := Options{Scenario: scenarioDirect, URL: "ws://x", Mode: modeClosed, Wait: "both", Rate: 1, Procs: 1, Dials: 1, Size: 1, Pairs: 1, RecordLimit: 1}
	require.NoError(t, good.check())
	for name, spoil := range map[string]func(o *Options){
		"scenario": func(o *Options) { o.Scenario = "group" }, "mode": func(o *Options) { o.Mode = "x" }, "wait": func(o *Options) { o.Wait = "x" },
		"processes": func(o *Options) { o.Procs = 2 }, "address": func(o *Options) { o.SrcIPs = "localhost" }, "no URL": func(o *Options) { o.URL = "" },
		"rate":  func(o *Options) { o.Mode, o.Rate = modeOpen, 0 },
		"steps": func(o *Options) { o.Scenario, o.Conns, o.Steps = scenarioIdle, 10, []int{5, 4} },
	} {
		o := good
		spoil(&o)
		require.Error(t, o.check(), name)
	}
	require.Equal(t, []string{"127.0.0.2", "127.0.0.3"}, (&Options{SrcIPs: "2"}).sources())
}

func TestOutcomesOfErrors(t *testing.T) {
	t.Parallel()
	require.True(t, (&fault{Code: "unavailable"}).unknown())
	require.True(t, (&fault{Code: "deadline_exceeded"}).unknown())
	require.False(t, (&fault{Code: "resource_exhausted"}).unknown())
	require.Equal(t, history.Hash("text"), hash([]byte("text")))
}

// A message that never got its answer, one that never arrived and one that never left count with the time they took so
// far, and only once.
func TestTheSlowestAreNotLeftOut(t *testing.T) {
	t.Parallel()
	r := &run{meter: newMeter(), keep: true, limit: 100}
	tk := &talk{run: r, sides: [2]*side{{next: 1}, {next: 1}}}
	tk.sends = []sent{{}, {settled: true, outcome: history.Acked}, {settled: true, outcome: history.Acked, delivered: true}}
	tk.open, tk.undelivered = 1, 1
	tk.send(0, 0) // without a connection
	require.False(t, tk.quiet())
	for range 2 {
		tk.giveUp(moment(15 * time.Second))
	}
	require.True(t, tk.quiet())
	c := r.meter.takeWindow()
	require.EqualValues(t, 1, c.Unknown)
	require.EqualValues(t, 1, c.Unanswered)
	require.EqualValues(t, 1, c.NeverSent)
	require.EqualValues(t, 1, c.Undelivered)
	require.EqualValues(t, 2, c.Ack.TotalCount())
	require.EqualValues(t, 1, c.Delivery.TotalCount())
	require.InEpsilon(t, 15_000, latencyOf(c.Ack).Max, 0.01)
	require.InEpsilon(t, 15_000, latencyOf(c.Delivery).Max, 0.01)
	// The judge's repair finds the one that had not arrived: it was counted.
	tk.deliveredLocked(1, 1, true, time.Now(), false)
	c = r.meter.takeWindow()
	require.EqualValues(t, 1, c.Missed)
	require.EqualValues(t, 1, c.Delivery.TotalCount())
}

// An entry that comes again is no fault, unless it says something else.
func TestAnotherContentAtTheSamePlace(t *testing.T) {
	t.Parallel()
	r := &run{meter: newMeter(), keep: true, limit: 100}
	tk := &talk{run: r, id: "c", sides: [2]*side{{id: "a", next: 1}, {id: "b", next: 1}}}
	tk.sends = []sent{{at: 1}}
	var id uuidText
	formatUUID(&id, tk.clientID(0, 1))
	e := entry{seq: 1, ordinal: 1, sender: []byte("a"), client: id[:], text: []byte("one"), message: true}
	for range 2 {
		tk.takeLocked(1, &e, time.Now(), true)
	}
	require.Len(t, tk.historyView(1, 1).Entries, 1)
	e.text = []byte("two")
	tk.takeLocked(1, &e, time.Now(), true)
	view := tk.historyView(1, 1)
	require.Len(t, view.Entries, 2)
	log := history.Log{Conversation: "c", Entries: view.Entries[:1]}
	require.NotEmpty(t, history.Check(history.History{Logs: []history.Log{log}, Views: []history.View{view}}))
	require.EqualValues(t, 2, tk.sides[1].next)
}

func TestWhoComesBack(t *testing.T) {
	t.Parallel()
	for _, one := range []struct {
		code   int
		reason string
		advice time.Duration
		again  bool
	}{
		{1012, `{"reconnect_ms":1500,"resume":true}`, 1500 * time.Millisecond, true},
		{4008, "x", 0, true},
		{4402, "TOKEN_EXPIRED", 0, true},
		{4429, `{"reconnect_ms":100}`, 100 * time.Millisecond, true},
		{4401, "SESSION_REVOKED", 0, false},
		{4400, "BAD_FRAME", 0, false},
		{4499, "", 0, false},
		{1003, "", 0, false},
	} {
		advice, again := returns(fmt.Errorf("read: %w", &websocket.CloseError{Code: one.code, Text: one.reason}))
		require.Equal(t, one.again, again, one)
		require.True(t, !again || advice == one.advice, one)
	}
	_, again := returns(io.ErrUnexpectedEOF)
	require.True(t, again)
}

func TestAroundAPerson(t *testing.T) {
	t.Parallel()
	r := &run{people: make([]crowd.Person, 6)}
	for i := range r.people {
		r.people[i].ID = uuid.New()
	}
	for watch, want := range map[int]int{0: 0, 1: 1, 4: 4, 5: 5, 9: 5} {
		r.opts.Watch = watch
		list := r.around(2)
		require.Len(t, list, want)
		slices.Sort(list)
		require.Len(t, slices.Compact(list), want, "nobody twice")
		require.NotContains(t, list, r.people[2].ID.String())
	}
}
