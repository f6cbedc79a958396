package messaging

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	// maxMarks wait for a flush; each is some 100 bytes.
	maxMarks = 200_000
	// flushChunk marks are stored in one transaction: few, because their rows are
	// locked meanwhile, and sends want to lock them as well.
	flushChunk = 200
	// flushTimeout bounds one such transaction.
	flushTimeout = 3 * time.Second
	// flushIdle is after which time PostgreSQL ends such a transaction, and frees its
	// rows, when the process that holds it says nothing more: it is frozen, or the
	// machine is gone. The role's own bound, 10 s, would hold up other replicas' sends
	// beyond the patience of their callers.
	flushIdle = time.Second
	// maxKnown memberships are remembered, for knownLife. A membership that ends
	// meanwhile does no harm: the flush looks again.
	maxKnown  = 200_000
	knownLife = 5 * time.Minute
)

var errTooManyMarks = rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
	"too many receipts are waiting"), overloadedRetry)

// MarkRead implements the RPC.
func (s *Service) MarkRead(ctx context.Context, req *messagingv1.MarkReadRequest) (*messagingv1.MarkReadResponse, error) {
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	if err := s.mark(ctx, id, mark{read: req.GetSeq(), delivered: req.GetSeq()}); err != nil {
		return nil, err
	}
	return &messagingv1.MarkReadResponse{}, nil
}

// MarkDelivered implements the RPC.
func (s *Service) MarkDelivered(ctx context.Context, req *messagingv1.MarkDeliveredRequest) (*messagingv1.MarkDeliveredResponse, error) {
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	if err := s.mark(ctx, id, mark{delivered: req.GetSeq()}); err != nil {
		return nil, err
	}
	return &messagingv1.MarkDeliveredResponse{}, nil
}

// mark checks that the caller is a member and leaves the mark to the next flush.
func (s *Service) mark(ctx context.Context, conversationID uuid.UUID, m mark) error {
	key := place{conversationID: conversationID, userID: identity.From(ctx).UserID}
	known := s.receipts.member(key)
	s.receipts.metrics.members.Count(ctx, known)
	if !known {
		window, err := s.window(ctx, key.userID, conversationID)
		if err != nil {
			return err
		}
		if window.LeftSeq > 0 {
			return errNotAMember
		}
		s.receipts.remember(key)
	}
	return s.receipts.add(key, m)
}

// place is a member's in a conversation.
type place struct {
	conversationID, userID uuid.UUID
}

// mark is how far a member has come; 0 says nothing.
type mark struct {
	read, delivered int64
}

// receipts gathers watermarks in memory and stores them together, so that a person
// who scrolls costs one row update per interval. What has not been stored when the
// process dies is lost, which the API says.
type receipts struct {
	outbox   *outbox.Outbox
	pusher   *pusher
	metrics  *metrics
	clock    clock.Clock
	log      *slog.Logger
	interval time.Duration

	mu    sync.Mutex
	marks map[place]mark
	known map[place]time.Time // members, until when that is believed
	wake  chan struct{}
}

func newReceipts(o *outbox.Outbox, p *pusher, m *metrics, c clock.Clock, log *slog.Logger, interval time.Duration) *receipts {
	return &receipts{
		outbox: o, pusher: p, metrics: m, clock: c, log: log, interval: interval,
		marks: map[place]mark{}, known: map[place]time.Time{}, wake: make(chan struct{}, 1),
	}
}

// member says that the place is known to be a member's.
func (r *receipts) member(key place) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.known[key]
	return ok && r.clock.Now().Before(until)
}

func (r *receipts) remember(key place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for old := range r.known { // any one: maps are walked in random order
		if len(r.known) < maxKnown {
			break
		}
		delete(r.known, old)
	}
	r.known[key] = r.clock.Now().Add(knownLife)
}

// add raises what the next flush will store.
func (r *receipts) add(key place, m mark) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, waits := r.marks[key]
	if !waits && len(r.marks) >= maxMarks {
		return errTooManyMarks
	}
	r.marks[key] = mark{read: max(old.read, m.read), delivered: max(old.delivered, m.delivered)}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// run flushes an interval after the first mark, until ctx ends; then once more.
func (r *receipts) run(ctx context.Context) error {
	lasting := context.WithoutCancel(ctx)
	for {
		select {
		case <-ctx.Done():
			r.flush(lasting)
			return nil
		case <-r.wake:
		}
		timer := time.NewTimer(r.interval)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		r.flush(lasting)
	}
}

// flush stores all that waits, in chunks. What could not be stored waits for the
// next flush: a chunk with faulty data alone, all that is left when the database is
// away, since each further chunk would only wait as long as the first one has.
func (r *receipts) flush(ctx context.Context) {
	r.mu.Lock()
	marks := r.marks
	r.marks = map[place]mark{}
	r.mu.Unlock()

	left := map[place]mark{}
	var failed error
	for len(marks) > 0 {
		chunk := takeMarks(marks, flushChunk)
		err := r.store(ctx, chunk)
		if err == nil {
			continue
		}
		failed = err
		maps.Copy(left, chunk)
		if !faultyData(err) {
			maps.Copy(left, marks)
			break
		}
	}
	if failed != nil {
		r.log.WarnContext(ctx, "receipts not stored yet", "marks", len(left), "error", failed)
	}
	for key, m := range left {
		_ = r.add(key, m) // when there is no room for it, newer marks have taken it
	}
}

// takeMarks moves up to n of the marks out of them.
func takeMarks(marks map[place]mark, n int) map[place]mark {
	chunk := make(map[place]mark, min(n, len(marks)))
	for key, m := range marks {
		if len(chunk) == n {
			break
		}
		chunk[key] = m
		delete(marks, key)
	}
	return chunk
}

// store writes marks with their events, then tells the people.
func (r *receipts) store(ctx context.Context, marks map[place]mark) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make id of the events: %w", err)
	}
	lock, raise := db.MemberLockParams{}, db.MemberMarkParams{}
	for key, m := range marks {
		raise.ConversationIds = append(raise.ConversationIds, key.conversationID)
		raise.UserIds = append(raise.UserIds, key.userID)
		raise.ReadSeqs = append(raise.ReadSeqs, m.read)
		raise.DeliveredSeqs = append(raise.DeliveredSeqs, m.delivered)
	}
	lock.ConversationIds, lock.UserIds = raise.ConversationIds, raise.UserIds

	var risen []db.MemberMarkRow
	err = r.outbox.Tx(ctx, func(tx pgx.Tx, emit func(...*eventv1.Event) error) error {
		q := db.New(tx)
		if err := lockMarked(ctx, q, lock); err != nil {
			return err
		}
		if risen, err = q.MemberMark(ctx, raise); err != nil {
			return fmt.Errorf("raise watermarks: %w", err)
		}
		return emit(told(id, risen)...)
	})
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	r.metrics.flushedMarks.Add(ctx, int64(len(risen)))
	for _, row := range risen {
		r.pusher.receipt(ctx, pair(row.DirectLow, row.DirectHigh), &messagingv1.Receipt{
			ConversationId: row.ConversationID.String(), UserId: row.UserID.String(),
			ReadSeq: row.ReadSeq, DeliveredSeq: row.DeliveredSeq,
		})
	}
	return nil
}

// lockMarked takes the rows that a flush raises, first of all bounding how long they
// stay locked should this process stop here: the batch of a send never waits for
// its client, this transaction does.
func lockMarked(ctx context.Context, q *db.Queries, rows db.MemberLockParams) error {
	if err := q.FlushIdle(ctx, strconv.FormatInt(flushIdle.Milliseconds(), 10)); err != nil {
		return fmt.Errorf("bound the flush: %w", err)
	}
	if err := q.MemberLock(ctx, rows); err != nil {
		return fmt.Errorf("lock members: %w", err)
	}
	return nil
}

// told makes the events of one transaction: none for what did not rise.
func told(id uuid.UUID, risen []db.MemberMarkRow) []*eventv1.Event {
	var delivered, seen []*messagingv1.Watermark
	for _, row := range risen {
		conversation, user := row.ConversationID.String(), row.UserID.String()
		if row.DeliveredRose {
			delivered = append(delivered, &messagingv1.Watermark{ConversationId: conversation, UserId: user, Seq: row.DeliveredSeq})
		}
		if row.ReadRose {
			seen = append(seen, &messagingv1.Watermark{ConversationId: conversation, UserId: user, Seq: row.ReadSeq})
		}
	}
	var events []*eventv1.Event
	if len(delivered) > 0 {
		events = append(events, messageDelivered(id, delivered))
	}
	if len(seen) > 0 {
		events = append(events, messageSeen(id, seen))
	}
	return events
}
