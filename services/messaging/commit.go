package messaging

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// The statements of a group commit, in their order, and those of a single send.
// What they promise is written in them.
var (
	//go:embed batch/conversations.sql
	lockConversationsSQL string
	//go:embed batch/append.sql
	appendSQL string
	//go:embed batch/permissions.sql
	permissionsSQL string
	//go:embed batch/append_one.sql
	appendOneSQL string
	//go:embed batch/stale_one.sql
	staleOneSQL string
)

const (
	// maxTries of a transaction that lost a race with another replica's. The winner
	// has committed by then, so the second try sees it; the others are for luck.
	maxTries = 4
	// commitTimeout bounds one try. Beyond it the outcome is unknown.
	commitTimeout = 5 * time.Second

	// SQLSTATE codes and classes.
	checkViolation          = "23514"
	classDataException      = "22"
	classIntegrityViolation = "23"
)

// appender runs the group commit: one transaction in one round trip per batch (a
// single send with something to be said against it needs a second, to be judged),
// so that no lock outlives the connection of the process that took it.
//
// It keeps nothing in memory from one batch to the next; any number of them, in
// any number of replicas, work on the same conversations, ordered by the rows'
// locks alone.
type appender struct {
	db         *pgxpool.Pool
	outbox     *outbox.Outbox
	clock      clock.Clock
	partitions postgres.Partitions
}

// verdict is what the transaction says of one send.
type verdict struct {
	outcome           outcome
	seq, ordinal      int64
	createdAt         time.Time
	low, high         *uuid.UUID // the people of a direct conversation
	permissionVersion int64
}

// append judges and appends sends, of which no two have the same key. It returns
// a verdict for each. After an error no verdict is known; the sends
// may be in the log nevertheless, if the connection broke at the end.
func (a *appender) append(ctx context.Context, sends []*send) ([]verdict, error) {
	for try := 1; ; try++ {
		verdicts, err := a.once(ctx, sends)
		switch {
		case err == nil:
			return verdicts, nil
		case try < maxTries && lostRace(err):
			// The other transaction is over, or ours would not have been told.
		case try < maxTries && noPartition(err):
			// The job that makes them ahead did not run for long, or a clock jumped.
			if _, ensureErr := a.partitions.Ensure(ctx, a.db, a.clock.Now()); ensureErr != nil {
				return nil, errors.Join(err, ensureErr)
			}
		default:
			return nil, err
		}
	}
}

// once is one try.
func (a *appender) once(ctx context.Context, sends []*send) ([]verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	events := make([]*eventv1.Event, len(sends))
	for i, s := range sends {
		events[i] = s.event
	}
	row, err := a.outbox.Row(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("prepare outbox row: %w", err)
	}
	verdicts, err := a.transact(ctx, sends, row)
	if err != nil {
		return nil, err
	}
	versions := make([]*int64, len(verdicts))
	appended := false
	for i := range verdicts {
		if verdicts[i].outcome == outcomeAppended {
			versions[i], appended = &verdicts[i].seq, true
		}
	}
	if appended {
		a.outbox.Committed(row, versions)
	}
	return verdicts, nil
}

// transact stores what may be stored of sends.
func (a *appender) transact(ctx context.Context, sends []*send, row outbox.Row) ([]verdict, error) {
	if len(sends) == 1 {
		v, known, err := a.appendOne(ctx, sends[0], row)
		if err != nil || known {
			return []verdict{v}, err
		}
	}
	return a.appendAll(ctx, sends, row)
}

// appendOne stores a plain single send, or says that privacy has to be asked first:
// one of the two is what most are, and neither needs the general statements. For all
// others nothing is known. Why, and whether it is so, is for those to say: the state
// may have changed meanwhile.
func (a *appender) appendOne(ctx context.Context, s *send, row outbox.Row) (v verdict, known bool, err error) {
	v, appended, err := a.appendPlain(ctx, s, row)
	if err != nil || appended || s.permission != nil {
		return v, appended, err
	}
	batch := &pgx.Batch{}
	batch.Queue(staleOneSQL, s.conversationID, s.key.sender, s.key.clientMessage, a.clock.Now().Add(-permissionLife))
	return a.runOne(ctx, batch)
}

// appendPlain appends a single send against which nothing is to be said, in a
// transaction like that of appendAll. It leaves all other cases alone.
func (a *appender) appendPlain(ctx context.Context, s *send, row outbox.Row) (v verdict, appended bool, err error) {
	now := a.clock.Now()
	stale := now.Add(-permissionLife)
	batch := &pgx.Batch{}
	if s.permission != nil {
		batch.Queue(lockConversationsSQL, []uuid.UUID{s.conversationID})
		queuePermissions(batch, []*send{s})
	}
	batch.Queue(appendOneSQL, s.conversationID, s.key.sender, s.key.clientMessage, s.hash, s.body,
		now, stale, int16(kindMessage), row.ID, row.CreatedAt, row.Envelopes)
	return a.runOne(ctx, batch)
}

// runOne is run where there is one verdict or none.
func (a *appender) runOne(ctx context.Context, batch *pgx.Batch) (v verdict, known bool, err error) {
	verdicts, err := a.run(ctx, batch, 1)
	if err != nil || len(verdicts) == 0 {
		return verdict{}, false, err
	}
	return verdicts[0], true, nil
}

// appendAll judges sends and appends those that pass.
func (a *appender) appendAll(ctx context.Context, sends []*send, row outbox.Row) ([]verdict, error) {
	n := len(sends)
	conversations, senders, keys := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	hashes, bodies := make([][]byte, n), make([][]byte, n)
	for i, s := range sends {
		conversations[i], senders[i], keys[i] = s.conversationID, s.key.sender, s.key.clientMessage
		hashes[i], bodies[i] = s.hash, s.body
	}
	now := a.clock.Now()

	batch := &pgx.Batch{}
	batch.Queue(lockConversationsSQL, conversations)
	queuePermissions(batch, sends)
	batch.Queue(appendSQL, conversations, senders, keys, hashes, bodies,
		now, now.Add(-permissionLife), int16(kindMessage), row.ID, row.CreatedAt, row.Envelopes)

	verdicts, err := a.run(ctx, batch, n)
	if err != nil {
		return nil, err
	}
	if len(verdicts) != n {
		return nil, fmt.Errorf("append entries: %d verdicts for %d sends", len(verdicts), n)
	}
	return verdicts, nil
}

// run sends statements that take locks and a last one that appends, at once, and
// returns the rows of that one, at most as many as there are sends. A pgx
// batch outside a transaction ends with a single Sync: the server runs it as one
// implicit transaction, which it commits or rolls back without hearing from us again.
func (a *appender) run(ctx context.Context, batch *pgx.Batch, sends int) (verdicts []verdict, err error) {
	results := a.db.SendBatch(ctx, batch)
	defer func() {
		// The commit happens here; only a clean end says that it did.
		if closeErr := results.Close(); err == nil && closeErr != nil {
			verdicts, err = nil, fmt.Errorf("commit batch: %w", closeErr)
		}
	}()
	for range batch.Len() - 1 {
		if _, err := results.Exec(); err != nil {
			return nil, fmt.Errorf("take locks: %w", err)
		}
	}
	rows, err := results.Query()
	if err != nil {
		return nil, fmt.Errorf("append entries: %w", err)
	}
	verdicts, err = pgx.AppendRows(make([]verdict, 0, sends), rows, scanVerdict)
	if err != nil {
		return nil, fmt.Errorf("append entries: %w", err)
	}
	return verdicts, nil
}

func scanVerdict(row pgx.CollectableRow) (v verdict, err error) {
	err = row.Scan((*int16)(&v.outcome), &v.seq, &v.ordinal, &v.createdAt, &v.low, &v.high, &v.permissionVersion)
	return v, err
}

// permission is privacy's answer for the two directions of a conversation, which the
// sends that waited for it bring along.
type permission struct {
	at        time.Time // when it was asked for, or a little before
	version   int64     // permission_version when asked
	low, high bool      // may the lower person write to the higher, and back
}

// queuePermissions stores the answers that sends bring along, in their transaction: it
// costs no commit of its own. One whose conversation was marked stale since the question
// is not stored, and the send found stale again.
func queuePermissions(batch *pgx.Batch, sends []*send) {
	var ids []uuid.UUID
	var versions []int64
	var lows, highs []bool
	var at time.Time
	for _, s := range sends {
		p := s.permission
		if p == nil || slices.Contains(ids, s.conversationID) { // they waited for one answer
			continue
		}
		ids, versions = append(ids, s.conversationID), append(versions, p.version)
		lows, highs = append(lows, p.low), append(highs, p.high)
		if at.IsZero() || p.at.Before(at) {
			at = p.at
		}
	}
	if len(ids) > 0 {
		batch.Queue(permissionsSQL, ids, versions, lows, highs, at)
	}
}

// lostRace says that the transaction was rolled back because of another one, and
// may be tried again: a deadlock, or the same client message id from another
// replica, which the next try will find stored.
func lostRace(err error) bool {
	return postgres.IsRetryable(err) || postgres.IsUniqueViolation(err, "send_key_pkey")
}

// noPartition says that a table has no partition for the present. PostgreSQL
// reports it as a check violation without a constraint.
func noPartition(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == checkViolation && pg.ConstraintName == ""
}

// faultyData says that a value of one of the sends is to blame, so that the
// others would pass without it.
func faultyData(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || noPartition(err) || lostRace(err) {
		return false
	}
	return strings.HasPrefix(pg.Code, classDataException) || strings.HasPrefix(pg.Code, classIntegrityViolation)
}
