package messaging_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"math"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/servicetest"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// FuzzSyncCursor holds that no cursor that a client makes up harms anybody: its
// Sync is answered, from the beginning if need be, with what the client may see,
// and so are the Syncs that the same query answers.
func FuzzSyncCursor(f *testing.F) {
	// The log of a fuzz test must not be used while it fuzzes.
	w := start(f, servicetest.Options{Log: slog.New(slog.DiscardHandler)}, nil)
	anna, _, _ := w.friends()
	// The sessions of a fuzzer's processes differ, so a cursor is made here, for this
	// process's person, of what the corpus holds: the JSON in it.
	first, err := anna.Sync(f.Context(), &messagingv1.SyncRequest{})
	require.NoError(f, err)
	good, err := page.Decode[json.RawMessage]("messaging.sync", first.GetNextCursor(), anna.id)
	require.NoError(f, err)
	var fields map[string]any
	require.NoError(f, json.Unmarshal(*good, &fields))
	for _, spoil := range []struct {
		name  string
		value any
	}{{"s", uint64(math.MaxUint64)}, {"n", uint64(math.MaxInt64) + 1}, {"x", uint64(math.MaxUint64)}, {"l", uuid.Max}, {"e", "\x00"}} {
		changed := maps.Clone(fields)
		changed[spoil.name] = spoil.value
		data, err := json.Marshal(changed)
		require.NoError(f, err)
		f.Add(data, int32(0))
	}
	for _, text := range []string{`{"e":""}`, `{"e":"\ud800"}`, `{"e":"x","s":1}`, `{"s":-1}`, `{"l":"x"}`, `[]`, `null`, `{}`, `{`, ``} {
		f.Add([]byte(text), int32(500))
	}
	f.Add([]byte("\xff"), int32(1))
	f.Add([]byte(*good), int32(1))
	f.Fuzz(func(t *testing.T, position []byte, size int32) {
		cursor := string(position) // as it is, if it is no JSON
		if token, err := page.Encode("messaging.sync", json.RawMessage(position), anna.id); err == nil {
			cursor = token
		}
		if size < 0 || size > 500 || len(cursor) > 512 || !utf8.ValidString(cursor) {
			return // refused before, the last by the client itself
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var beside sync.WaitGroup
		results := make([]error, 4)
		for i := range results {
			beside.Go(func() {
				_, results[i] = anna.Sync(ctx, &messagingv1.SyncRequest{Cursor: first.GetNextCursor()})
			})
		}
		res, err := anna.Sync(ctx, &messagingv1.SyncRequest{Cursor: cursor, PageSize: size})
		beside.Wait()
		for _, beside := range results {
			require.NoError(t, beside, "somebody else's Sync")
		}
		require.NoError(t, err)
		require.NotEmpty(t, res.GetNextCursor())
		again, err := anna.Sync(ctx, &messagingv1.SyncRequest{Cursor: res.GetNextCursor()})
		require.NoError(t, err)
		require.False(t, again.GetReset_(), "the cursor that was given is good")
	})
}
