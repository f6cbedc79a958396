package messaging

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

// plainWorld is a database in which both ways to append are tried on twins.
type plainWorld struct {
	t        *testing.T
	db       *pgxpool.Pool
	clock    *clock.Fake
	appender *appender
}

func newPlainWorld(t *testing.T) plainWorld {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testkit.ServiceDatabase(t, "messaging", Definition().Migrations), MaxConns: 16})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	w := plainWorld{t: t, db: pool, clock: clock.NewFake(time.Date(2026, 11, 15, 12, 0, 0, 0, time.UTC))}
	w.appender = &appender{db: pool, clock: w.clock, partitions: entryPartitions()}
	for _, p := range []postgres.Partitions{entryPartitions(), (&outbox.Outbox{}).Partitions()} {
		_, err := p.Ensure(t.Context(), pool, w.clock.Now())
		require.NoError(t, err)
	}
	return w
}

func (w plainWorld) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.db.Exec(w.t.Context(), sql, args...)
	require.NoError(w.t, err)
}

// direct makes a conversation of two people of which the first may write to the
// other, and returns a send of the first.
func (w plainWorld) direct() *send {
	w.t.Helper()
	id, low, high, now := uuid.New(), uuid.New(), uuid.New(), w.clock.Now()
	low[0], high[0] = 1, 2
	w.exec(`INSERT INTO conversation (id, kind, direct_low, direct_high, head_seq, head_ordinal, last_at, last_xid, may_send_low, checked_at, permission_version, created_at)
		VALUES ($1, 1, $2, $3, 7, 5, $4, '1', true, $4, 3, $4)`, id, low, high, now)
	for _, user := range []uuid.UUID{low, high} {
		w.exec(`INSERT INTO member (conversation_id, user_id, join_seq, read_seq, read_ordinal, mark_xid) VALUES ($1, $2, 1, 2, 2, '1')`, id, user)
	}
	return &send{
		key: sendKey{sender: low, clientMessage: uuid.New()}, conversationID: id,
		hash: contentHash(id, "text"), body: []byte("body"),
	}
}

// rows is all that an append may leave behind, without the ids by which twins differ.
func (w plainWorld) rows(s *send) (rows []map[string]any) {
	w.t.Helper()
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{"SELECT head_seq, head_ordinal, last_at, last_xid > '1' AS moved FROM conversation WHERE id = $1", []any{s.conversationID}},
		{
			"SELECT user_id = $2 AS sender, left_seq, read_seq, read_ordinal, delivered_seq, mark_xid > '1' AS marked FROM member WHERE conversation_id = $1 ORDER BY 1",
			[]any{s.conversationID, s.key.sender},
		},
		{
			"SELECT seq, ordinal, created_at, kind, sender_id = $2 AS sender, client_message_id = $3 AS key, payload FROM entry WHERE conversation_id = $1",
			[]any{s.conversationID, s.key.sender, s.key.clientMessage},
		},
		{
			"SELECT conversation_id = $1 AS conversation, seq, ordinal, created_at, content_hash = $4 AS hash FROM send_key WHERE sender_id = $2 AND client_message_id = $3",
			[]any{s.conversationID, s.key.sender, s.key.clientMessage, s.hash},
		},
		{"SELECT from_seq, from_time FROM entry_span WHERE conversation_id = $1", []any{s.conversationID}},
		{"SELECT created_at, envelopes, key_versions, published_at FROM outbox WHERE id = $1", []any{s.conversationID}}, // see outboxRow
	} {
		found, err := w.db.Query(w.t.Context(), q.sql, q.args...)
		require.NoError(w.t, err)
		list, err := pgx.CollectRows(found, pgx.RowToMap)
		require.NoError(w.t, err)
		rows = append(rows, list...)
	}
	return rows
}

// touched tells whether the conversation's row was ever locked or changed since it was written.
func (w plainWorld) touched(s *send) (touched bool) {
	w.t.Helper()
	require.NoError(w.t, w.db.QueryRow(w.t.Context(), "SELECT xmax <> '0' FROM conversation WHERE id = $1", s.conversationID).Scan(&touched))
	return touched
}

func (w plainWorld) outboxRow(s *send) outbox.Row {
	return outbox.Row{ID: s.conversationID, CreatedAt: w.clock.Now(), Envelopes: []byte("envelopes")}
}

// What the short way appends, the general one appends as well and leaves the same
// behind; and it touches nothing that the general one would refuse.
func TestPlainAppendIsTheGeneralOne(t *testing.T) {
	t.Parallel()
	w := newPlainWorld(t)
	const conversation, member, store = "UPDATE conversation SET ", "UPDATE member SET ",
		"INSERT INTO send_key (sender_id, client_message_id, conversation_id, seq, ordinal, created_at, content_hash) "
	ofOne, ofSender := " WHERE id = $1", " WHERE conversation_id = $1 AND user_id = $2"
	past := w.clock.Now().Add(-time.Hour)
	brings := func(p permission, age time.Duration) func(plainWorld, *send) {
		return func(w plainWorld, s *send) {
			w.exec(conversation+"checked_at = NULL"+ofOne, s.conversationID)
			p.at = w.clock.Now().Add(-age)
			s.permission = new(p)
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(w plainWorld, s *send)
		plain   bool
		outcome outcome
	}{
		{"Plain", func(plainWorld, *send) {}, true, outcomeAppended},
		{"Group", func(w plainWorld, s *send) {
			w.exec(conversation+"direct_low = NULL, direct_high = NULL, checked_at = NULL"+ofOne, s.conversationID)
		}, true, outcomeAppended},
		{"ClockBehind", func(w plainWorld, s *send) {
			w.exec(conversation+"last_at = $2"+ofOne, s.conversationID, w.clock.Now().Add(time.Hour))
		}, true, outcomeAppended},
		{"ReadBeyond", func(w plainWorld, s *send) {
			w.exec(member+"read_seq = 20, read_ordinal = 20, delivered_seq = 20"+ofSender, s.conversationID, s.key.sender)
		}, true, outcomeAppended},
		{"FirstOfTheMonth", func(w plainWorld, s *send) {
			w.exec(conversation+"last_at = $2"+ofOne, s.conversationID, w.clock.Now().AddDate(0, -1, 0))
		}, false, outcomeAppended},
		{"Repeated", func(w plainWorld, s *send) {
			w.exec(store+"VALUES ($1, $2, $3, 6, 4, $4, $5)", s.key.sender, s.key.clientMessage, s.conversationID, past, s.hash)
		}, false, outcomeRepeated},
		{"RepeatedAfterTheClosing", func(w plainWorld, s *send) {
			w.exec(store+"VALUES ($1, $2, $3, 6, 4, $4, $5)", s.key.sender, s.key.clientMessage, s.conversationID, past, s.hash)
			w.exec(conversation+"closed = true"+ofOne, s.conversationID)
		}, false, outcomeRepeated},
		{"Reused", func(w plainWorld, s *send) {
			w.exec(store+"VALUES ($1, $2, $3, 6, 4, $4, 'another')", s.key.sender, s.key.clientMessage, s.conversationID, past)
		}, false, outcomeReused},
		{"NoSuchConversation", func(_ plainWorld, s *send) { s.conversationID = uuid.New() }, false, outcomeUnknown},
		{"Stranger", func(_ plainWorld, s *send) { s.key.sender = uuid.New() }, false, outcomeUnknown},
		{"Left", func(w plainWorld, s *send) { w.exec(member+"left_seq = 4"+ofSender, s.conversationID, s.key.sender) }, false, outcomeLeft},
		{"Closed", func(w plainWorld, s *send) { w.exec(conversation+"closed = true"+ofOne, s.conversationID) }, false, outcomeClosed},
		{"NeverChecked", func(w plainWorld, s *send) { w.exec(conversation+"checked_at = NULL"+ofOne, s.conversationID) }, false, outcomeStale},
		{"CheckedTooLongAgo", func(w plainWorld, s *send) {
			w.exec(conversation+"checked_at = $2"+ofOne, s.conversationID, w.clock.Now().Add(-permissionLife))
		}, false, outcomeStale},
		{"CheckedJustInTime", func(w plainWorld, s *send) {
			w.exec(conversation+"checked_at = $2"+ofOne, s.conversationID, w.clock.Now().Add(time.Microsecond-permissionLife))
		}, true, outcomeAppended},
		{"NotAllowed", func(w plainWorld, s *send) {
			w.exec(conversation+"may_send_low = false, may_send_high = true"+ofOne, s.conversationID)
		}, false, outcomeNotAllowed},
		{"NotAllowedTheOtherWay", func(w plainWorld, s *send) {
			require.NoError(w.t, w.db.QueryRow(w.t.Context(), "SELECT direct_high FROM conversation WHERE id = $1", s.conversationID).Scan(&s.key.sender))
		}, false, outcomeNotAllowed},
		{"BringsAnAnswer", brings(permission{version: 3, low: true}, 0), true, outcomeAppended},
		{"BringsADenial", brings(permission{version: 3, high: true}, 0), false, outcomeNotAllowed},
		{"BringsAnOutdatedAnswer", brings(permission{version: 2, low: true}, 0), false, outcomeStale},
		{"BringsAnOldAnswer", brings(permission{version: 3, low: true}, permissionLife), false, outcomeStale},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := w
			w.t = t
			short, general := w.direct(), w.direct()
			c.prepare(w, short)
			c.prepare(w, general)
			before := w.rows(short)
			require.Equal(t, before, w.rows(general), "the two are twins")

			want, err := w.appender.appendAll(t.Context(), []*send{general}, w.outboxRow(general))
			require.NoError(t, err)
			require.Equal(t, c.outcome, want[0].outcome)
			got, known, err := w.appender.appendOne(t.Context(), short, w.outboxRow(short))
			require.NoError(t, err)
			asks := c.outcome == outcomeStale && short.permission == nil
			require.Equal(t, c.plain || asks, known)
			if !c.plain {
				require.Equal(t, before, w.rows(short), "nothing is written")
			}
			if asks {
				require.Equal(t, outcomeStale, got.outcome)
				require.Equal(t, [16]byte(short.key.sender), [16]byte(*got.low))
				require.EqualValues(t, 2, got.high[0])
				require.EqualValues(t, 3, got.permissionVersion)
				require.False(t, w.touched(short), "what waits for privacy waits for no disk")
			}
			if !c.plain {
				return
			}
			require.Equal(t, verdict{
				outcome: outcomeAppended, seq: 8, ordinal: 6, createdAt: got.createdAt, low: got.low, high: got.high, permissionVersion: 3,
			}, got)
			require.Equal(t, want[0].createdAt, got.createdAt)
			require.Equal(t, want[0].low == nil, got.low == nil)
			require.Equal(t, w.rows(general), w.rows(short))
		})
	}
}

// The short way has no statement that takes the lock before its snapshot. While it waits for whoever has it, that one
// may store the same key, or close the conversation; what the snapshot saw is then not enough.
func TestNothingIsAppendedBySnapshotsThatAreTooOld(t *testing.T) {
	t.Parallel()
	w := newPlainWorld(t)
	for _, c := range []struct {
		name     string
		first    func(t *testing.T, tx pgx.Tx, s *send)
		end      func(tx pgx.Tx, ctx context.Context) error
		appended bool
		outcome  outcome
	}{
		{"TheSameIsStored", storeGenerally, pgx.Tx.Commit, false, outcomeRepeated},
		{"TheSameIsNotStoredAfterAll", storeGenerally, pgx.Tx.Rollback, true, outcomeAppended},
		{"AnotherIsStored", func(t *testing.T, tx pgx.Tx, s *send) {
			t.Helper()
			another := *s
			another.key.clientMessage = uuid.New()
			storeGenerally(t, tx, &another)
		}, pgx.Tx.Commit, false, outcomeAppended},
		{"Closed", func(t *testing.T, tx pgx.Tx, s *send) {
			t.Helper()
			require.NoError(t, db.New(tx).ConversationClose(t.Context(), []uuid.UUID{s.conversationID}))
		}, pgx.Tx.Commit, false, outcomeClosed},
		{"NotAllowedAnyMore", func(t *testing.T, tx pgx.Tx, s *send) {
			t.Helper()
			_, err := tx.Exec(t.Context(), "UPDATE conversation SET may_send_low = false WHERE id = $1", s.conversationID)
			require.NoError(t, err)
		}, pgx.Tx.Commit, false, outcomeNotAllowed},
		{"PermissionIsChecked", func(t *testing.T, tx pgx.Tx, s *send) {
			t.Helper()
			_, err := tx.Exec(t.Context(), "UPDATE conversation SET permission_version = 4 WHERE id = $1", s.conversationID)
			require.NoError(t, err)
		}, pgx.Tx.Commit, true, outcomeAppended},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := w
			w.t = t
			s := w.direct()
			tx, err := w.db.Begin(t.Context())
			require.NoError(t, err)
			defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
			c.first(t, tx, s)

			type result struct {
				known bool
				err   error
			}
			done := make(chan result, 1)
			row := w.outboxRow(s)
			row.ID = uuid.New()
			go func() {
				_, known, err := w.appender.appendOne(t.Context(), s, row)
				done <- result{known, err}
			}()
			w.untilWaitsFor(tx)
			require.NoError(t, c.end(tx, t.Context()))
			r := <-done
			require.NoError(t, r.err)
			require.Equal(t, c.appended, r.known)
			if c.appended {
				return
			}
			before := w.rows(s)
			verdicts, err := w.appender.appendAll(t.Context(), []*send{s}, row)
			require.NoError(t, err)
			require.Equal(t, c.outcome, verdicts[0].outcome, "which the short way left to the general one")
			if c.outcome != outcomeAppended {
				require.Equal(t, before, w.rows(s))
			}
		})
	}
}

// storeGenerally is what another replica does meanwhile.
func storeGenerally(t *testing.T, tx pgx.Tx, s *send) {
	t.Helper()
	now := time.Date(2026, 11, 15, 12, 0, 0, 0, time.UTC)
	ids := []uuid.UUID{s.conversationID}
	_, err := tx.Exec(t.Context(), lockConversationsSQL, ids)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), appendSQL, ids, []uuid.UUID{s.key.sender}, []uuid.UUID{s.key.clientMessage}, [][]byte{s.hash}, [][]byte{s.body},
		now, now.Add(-permissionLife), int16(kindMessage), uuid.New(), now, []byte("envelopes"))
	require.NoError(t, err)
}

// untilWaitsFor returns when somebody waits for a lock of the transaction.
func (w plainWorld) untilWaitsFor(tx pgx.Tx) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		var waits bool
		err := w.db.QueryRow(w.t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1::int = ANY (pg_blocking_pids(pid)))", tx.Conn().PgConn().PID()).Scan(&waits)
		return err == nil && waits
	}, 10*time.Second, 5*time.Millisecond)
}

// Those of a batch that are not appended take no number, wherever they stand.
func TestABatchNumbersOnlyWhatPasses(t *testing.T) {
	t.Parallel()
	w := newPlainWorld(t)
	first := w.direct()
	another := func(change func(s *send)) *send {
		s := *first
		s.key.clientMessage = uuid.New()
		change(&s)
		return &s
	}
	same := func(*send) {}
	var high uuid.UUID
	require.NoError(t, w.db.QueryRow(t.Context(), "SELECT direct_high FROM conversation WHERE id = $1", first.conversationID).Scan(&high))
	repeated := another(same)
	w.exec(`INSERT INTO send_key (sender_id, client_message_id, conversation_id, seq, ordinal, created_at, content_hash) VALUES ($1, $2, $3, 6, 4, $4, $5)`,
		repeated.key.sender, repeated.key.clientMessage, repeated.conversationID, w.clock.Now(), repeated.hash)
	elsewhere := w.direct()
	sends := []*send{
		another(func(s *send) { s.key.sender = high }), first, repeated, elsewhere, another(same),
		another(func(s *send) { s.conversationID = uuid.New() }), another(same),
	}
	verdicts, err := w.appender.appendAll(t.Context(), sends, w.outboxRow(first))
	require.NoError(t, err)
	type place struct {
		outcome      outcome
		seq, ordinal int64
	}
	var got []place
	for _, v := range verdicts {
		got = append(got, place{v.outcome, v.seq, v.ordinal})
	}
	require.Equal(t, []place{
		{outcomeNotAllowed, 0, 0},
		{outcomeAppended, 8, 6},
		{outcomeRepeated, 6, 4},
		{outcomeAppended, 8, 6},
		{outcomeAppended, 9, 7},
		{outcomeUnknown, 0, 0},
		{outcomeAppended, 10, 8},
	}, got)

	var head, read, entries int64
	require.NoError(t, w.db.QueryRow(t.Context(), `SELECT head_seq, read_seq, (SELECT count(*) FROM entry WHERE conversation_id = $1)
		FROM conversation JOIN member ON conversation_id = id WHERE id = $1 AND user_id = $2`, first.conversationID, first.key.sender).Scan(&head, &read, &entries))
	require.Equal(t, []int64{10, 10, 3}, []int64{head, read, entries})
	var versions []*int64
	require.NoError(t, w.db.QueryRow(t.Context(), "SELECT key_versions FROM outbox WHERE id = $1", first.conversationID).Scan(&versions))
	require.Equal(t, []*int64{nil, new(int64(8)), nil, new(int64(8)), new(int64(9)), nil, new(int64(10))}, versions)

	none, err := w.appender.appendAll(t.Context(), []*send{repeated, sends[5]}, w.outboxRow(repeated))
	require.NoError(t, err)
	require.Equal(t, []outcome{outcomeRepeated, outcomeUnknown}, []outcome{none[0].outcome, none[1].outcome})
}

// Sends move their senders' marks without a lock beforehand, and the flush of receipts locks the same rows: in one
// order, or the two would hold up each other until PostgreSQL ends one of them.
func TestSendsAndReceiptsMeetInOneOrder(t *testing.T) {
	t.Parallel()
	w := newPlainWorld(t)
	const conversations, rounds = 60, 150
	var rows db.MemberLockParams
	sends := make([]*send, conversations)
	for i := range sends {
		sends[i] = w.direct()
		rows.ConversationIds, rows.UserIds = append(rows.ConversationIds, sends[i].conversationID), append(rows.UserIds, sends[i].key.sender)
	}
	flushes := make(chan error, 1)
	go func() {
		for range rounds {
			err := pgx.BeginFunc(t.Context(), w.db, func(tx pgx.Tx) error { return lockMarked(t.Context(), db.New(tx), rows) })
			if err != nil {
				flushes <- err
				return
			}
		}
		flushes <- nil
	}()
	for range rounds {
		rand.Shuffle(len(sends), func(i, j int) { sends[i], sends[j] = sends[j], sends[i] })
		for _, s := range sends {
			s.key.clientMessage = uuid.New()
		}
		row := w.outboxRow(sends[0])
		row.ID = uuid.New()
		_, err := w.appender.appendAll(t.Context(), sends, row)
		require.NoError(t, err)
	}
	require.NoError(t, <-flushes)
}
