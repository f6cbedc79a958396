package messaging

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/redis/rueidis"

	"github.com/parleychat/parley/pkg/cache"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

// entryTTL is how long an entry is cached. An entry never changes, so this only
// bounds the memory, and how long the last entry of a conversation is shown after
// its partition was dropped.
const entryTTL = 30 * time.Minute

// headKey names the entry at the head of a log.
type headKey struct {
	conversationID uuid.UUID
	seq            int64
	at             int64 // its created_at in microseconds, by which it is found
}

// recent tells what conversations look like to their members now: the lists and
// syncs with which every client begins.
//
// What changes with each message and each mark (heads, watermarks) is read from
// its rows, by their keys. What is dear, the last entry in one of many partitions,
// is cached: as (conversation, seq) it never changes, so no send has to invalidate
// anything, none waits for Redis, and nothing shown is out of date.
type recent struct {
	queries *db.Queries
	entries *cache.Cache[headKey, logEntry]
}

func newRecent(queries *db.Queries, redis rueidis.Client, log *slog.Logger) (*recent, error) {
	r := &recent{queries: queries}
	var err error
	r.entries, err = cache.New(redis, log, cache.Options[headKey, logEntry]{
		Name: "messaging.entry", TTL: entryTTL,
		Key: func(k headKey) string {
			// With the time: in a database that was restored from a backup a seq is given
			// out a second time.
			return fmt.Sprintf("%s:%d:%d", k.conversationID, k.seq, k.at)
		},
		Encode: encodeEntry, Decode: decodeEntry, Load: r.load, Constant: true,
	})
	return r, err
}

// see returns the conversations that exist for their viewers. A pair that is asked
// for twice is there once.
func (r *recent) see(ctx context.Context, pairs db.ConversationSeenParams) (map[place]*messagingv1.Conversation, error) {
	rows, err := r.queries.ConversationSeen(ctx, pairs)
	if err != nil {
		return nil, fmt.Errorf("read conversations: %w", err)
	}
	heads := make([]headKey, 0, len(rows))
	for _, row := range rows {
		if row.LeftSeq == 0 {
			heads = append(heads, headOf(row))
		}
	}
	entries, err := r.entries.GetMany(ctx, heads)
	if err != nil {
		return nil, fmt.Errorf("read last entries: %w", err)
	}
	seen := make(map[place]*messagingv1.Conversation, len(rows))
	for _, row := range rows {
		c := toConversation(row)
		if last, ok := entries[headOf(row)]; ok && row.LeftSeq == 0 { // not there: its partition is gone
			c.LastEntry = toEntry(last)
		}
		seen[place{row.ID, row.ViewerID}] = c
	}
	return seen, nil
}

func headOf(row db.ConversationSeenRow) headKey {
	return headKey{row.ID, row.HeadSeq, row.LastAt.UnixMicro()}
}

// load reads entries for the cache.
func (r *recent) load(ctx context.Context, keys []headKey) (map[headKey]logEntry, error) {
	var params db.EntryHeadParams
	for _, k := range keys {
		params.ConversationIds = append(params.ConversationIds, k.conversationID)
		params.Seqs = append(params.Seqs, k.seq)
		params.Ats = append(params.Ats, time.UnixMicro(k.at))
	}
	rows, err := r.queries.EntryHead(ctx, params)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	entries := make(map[headKey]logEntry, len(rows))
	for _, e := range rows {
		entries[headKey{e.ConversationID, e.Seq, e.CreatedAt.UnixMicro()}] = logEntry{
			conversationID: e.ConversationID, seq: e.Seq, ordinal: e.Ordinal, senderID: e.SenderID, createdAt: e.CreatedAt,
			clientMessageID: e.ClientMessageID, kind: entryKind(e.Kind), payload: e.Payload,
		}
	}
	return entries, nil
}

// encodedHead is what stands before the payload: conversation, sender and client
// message id (zero: none), then seq, ordinal, time and kind.
const encodedHead = 3*16 + 3*8 + 2

// encodeEntry keeps the row and not what toEntry makes of it: a replica of an older
// release must not hide a body that it does not know from the newer ones.
func encodeEntry(e logEntry) ([]byte, error) {
	raw := make([]byte, 0, encodedHead+len(e.payload))
	raw = append(raw, e.conversationID[:]...)
	raw = append(raw, e.senderID[:]...)
	var client uuid.UUID
	if e.clientMessageID != nil {
		client = *e.clientMessageID
	}
	raw = append(raw, client[:]...)
	for _, n := range []int64{e.seq, e.ordinal, e.createdAt.UnixMicro()} {
		raw = binary.BigEndian.AppendUint64(raw, uint64(n))
	}
	raw = binary.BigEndian.AppendUint16(raw, uint16(e.kind))
	return append(raw, e.payload...), nil
}

var errShortEntry = errors.New("a cached entry is too short")

func decodeEntry(raw []byte) (logEntry, error) {
	if len(raw) < encodedHead {
		return logEntry{}, errShortEntry
	}
	number := func(i int) int64 { return int64(binary.BigEndian.Uint64(raw[48+8*i:])) }
	e := logEntry{
		conversationID: uuid.UUID(raw[:16]), senderID: uuid.UUID(raw[16:32]),
		seq: number(0), ordinal: number(1), createdAt: time.UnixMicro(number(2)),
		kind: entryKind(binary.BigEndian.Uint16(raw[72:])), payload: raw[encodedHead:],
	}
	if client := uuid.UUID(raw[32:48]); client != uuid.Nil {
		e.clientMessageID = &client
	}
	return e, nil
}
