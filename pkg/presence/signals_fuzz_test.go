package presence

import (
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// FuzzSignals holds that no message of the bus breaks a follower, that it names to
// us only people whom the message names, and that whoever listens to signals alone
// is not troubled by the rest.
func FuzzSignals(f *testing.F) {
	one, two := uuid.NewSHA1(uuid.Nil, []byte("one")), uuid.NewSHA1(uuid.Nil, []byte("two"))
	for _, signals := range []*realtimev1.PresenceSignals{
		{},
		{Signals: []*realtimev1.PresenceSignal{{UserId: one[:], Shown: &realtimev1.Presence{Version: 3}}, {UserId: two[:4]}, {}}},
		{Missing: [][]byte{one[:], nil, two[:15]}},
		{Rechecks: []*realtimev1.PresenceRecheck{{UserId: one[:]}, {UserId: one[:], ViewerId: two[:]}, {ViewerId: two[:]}}},
	} {
		data, err := proto.Marshal(signals)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var all realtimev1.PresenceSignals
		readable := proto.Unmarshal(data, &all) == nil
		told := 0
		known := func(user uuid.UUID, in [][]byte) {
			told++
			require.Contains(t, in, user[:])
		}
		var changed, again [][]byte
		for _, s := range all.GetSignals() {
			changed = append(changed, s.GetUserId())
		}
		for _, r := range all.GetRechecks() {
			again = append(again, r.GetUserId())
		}
		full := Follower{
			Log:     slog.New(slog.DiscardHandler),
			Signal:  func(user uuid.UUID, _ *realtimev1.PresenceSignal) { known(user, changed) },
			Missing: func(user uuid.UUID) { known(user, all.GetMissing()) },
			Recheck: func(user, _ uuid.UUID) { known(user, again) },
		}
		full.take(t.Context(), &nats.Msg{Subject: Subject(0), Data: data})
		require.LessOrEqual(t, told, len(all.GetSignals())+len(all.GetMissing())+len(all.GetRechecks()))
		if !readable {
			require.Zero(t, told, "nothing of a message that is half read")
		}
		few := Follower{Log: slog.New(slog.DiscardHandler), Signal: func(uuid.UUID, *realtimev1.PresenceSignal) {}}
		few.take(t.Context(), &nats.Msg{Subject: Subject(0), Data: data})
	})
}
