package messaging

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	syncCursor = "messaging.sync"
	// syncBatch callers are answered by one query, syncRows conversations at most.
	syncBatch = 256
	syncRows  = 4096
	// syncQueue callers may wait; each waits for a query or two.
	syncQueue = 20_000
	// syncers run at once. Two keep the database busy while one reads its answer.
	syncers     = 2
	syncTimeout = 8 * time.Second
)

var errTooManySyncs = rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
	"too many clients are syncing"), overloadedRetry)

// cursor is what a client keeps between two calls of Sync.
type cursor struct {
	// Epoch is the database that the numbers are of.
	Epoch string `json:"e"`
	// Since is the lowest transaction id that the client may not know.
	Since uint64 `json:"s"`
	// While there are more pages: the Since that follows the last one, and the
	// place of the last conversation told. Pages go up by (transaction, id).
	Next     uint64    `json:"n,omitempty"`
	PageXID  uint64    `json:"x,omitempty"`
	PageLast uuid.UUID `json:"l"`
}

// unreadableEpoch is no database's: a cursor that cannot be read means reset.
const unreadableEpoch = "unreadable"

// syncCall is one caller that waits.
type syncCall struct {
	user   uuid.UUID
	cursor cursor
	size   int32
	gone   <-chan struct{}
	done   chan syncAnswer
}

type syncAnswer struct {
	resp *messagingv1.SyncResponse
	err  error
}

// Sync implements the RPC. Callers that come together are answered together.
func (s *Service) Sync(ctx context.Context, req *messagingv1.SyncRequest) (*messagingv1.SyncResponse, error) {
	user := identity.From(ctx).UserID
	call := &syncCall{user: user, size: page.Size(req.GetPageSize(), 100, 500), gone: ctx.Done(), done: make(chan syncAnswer, 1)}
	switch position, err := page.Decode[cursor](syncCursor, req.GetCursor(), user); {
	// PostgreSQL takes no zero byte: the query of everybody beside would fail.
	case err != nil, position != nil && strings.ContainsRune(position.Epoch, 0):
		call.cursor.Epoch = unreadableEpoch
	case position != nil:
		call.cursor = *position
	}
	if err := refusal(s.syncs.queue.add(call), errTooManySyncs); err != nil {
		return nil, err
	}
	select {
	case a := <-call.done:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// syncer answers Syncs in batches.
type syncer struct {
	queue   *gatherer[*syncCall]
	queries *db.Queries
	recent  *recent
	metrics *metrics
	epoch   int64 // the operator's number
}

func newSyncer(queries *db.Queries, r *recent, m *metrics, epoch int64) *syncer {
	size := func(c *syncCall) int { return int(c.size) }
	return &syncer{queue: newGatherer(syncBatch, syncRows, syncQueue, size), queries: queries, recent: r, metrics: m, epoch: epoch}
}

// run works until ctx has ended and every caller is answered.
func (y *syncer) run(ctx context.Context) error {
	y.queue.work(ctx, y.process)
	return nil
}

func (y *syncer) process(ctx context.Context, batch []*syncCall) {
	calls := make([]*syncCall, 0, len(batch))
	for _, c := range batch {
		select {
		case <-c.gone: // nobody reads the answer
		default:
			calls = append(calls, c)
		}
	}
	if len(calls) == 0 {
		return
	}
	y.metrics.syncBatch.Record(ctx, int64(len(calls)))
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	responses, err := y.answer(ctx, calls)
	for i, c := range calls {
		if err != nil {
			c.done <- syncAnswer{err: err}
			continue
		}
		c.done <- syncAnswer{resp: responses[i]}
	}
}

// answer finds the changes of all callers in one snapshot, and then reads the
// conversations. They may be newer than the snapshot: the cursor is not, so
// whatever changed meanwhile is told again.
func (y *syncer) answer(ctx context.Context, calls []*syncCall) ([]*messagingv1.SyncResponse, error) {
	changes, err := y.changes(ctx, calls)
	if err != nil {
		return nil, err
	}
	responses := make([]*messagingv1.SyncResponse, len(calls))
	var wanted db.ConversationSeenParams
	told := make([][]uuid.UUID, len(calls))
	for i, rows := range changes {
		if len(rows) == 0 {
			return nil, fmt.Errorf("read changes: no row for caller %d of %d", i+1, len(calls))
		}
		if responses[i], told[i], err = toPage(calls[i], rows); err != nil {
			return nil, err
		}
		for _, id := range told[i] {
			wanted.ViewerIds = append(wanted.ViewerIds, calls[i].user)
			wanted.ConversationIds = append(wanted.ConversationIds, id)
		}
	}
	if len(wanted.ViewerIds) == 0 {
		return responses, nil
	}
	seen, err := y.recent.see(ctx, wanted)
	if err != nil {
		return nil, err
	}
	for i, c := range calls {
		for _, id := range told[i] {
			if one, ok := seen[place{id, c.user}]; ok { // always: member rows are never deleted
				responses[i].Conversations = append(responses[i].Conversations, one)
			}
		}
	}
	return responses, nil
}

// changes returns the rows of each caller, in its order.
func (y *syncer) changes(ctx context.Context, calls []*syncCall) ([][]db.SyncChangesRow, error) {
	params := db.SyncChangesParams{OperatorEpoch: y.epoch}
	for _, c := range calls {
		params.UserIds = append(params.UserIds, c.user)
		params.Epochs = append(params.Epochs, c.cursor.Epoch)
		params.Since = append(params.Since, c.cursor.Since)
		params.Next = append(params.Next, c.cursor.Next)
		params.PageXids = append(params.PageXids, c.cursor.PageXID)
		params.PageIds = append(params.PageIds, c.cursor.PageLast)
		params.PageSizes = append(params.PageSizes, c.size)
	}
	rows, err := y.queries.SyncChanges(ctx, params)
	if err != nil {
		return nil, fmt.Errorf("read changes: %w", err)
	}
	byCall := make([][]db.SyncChangesRow, len(calls))
	for _, r := range rows {
		byCall[r.Ord-1] = append(byCall[r.Ord-1], r) // ord counts from 1
	}
	return byCall, nil
}

// toPage makes an answer without its conversations, which it names. Without any
// change there is one row, with no id.
func toPage(c *syncCall, rows []db.SyncChangesRow) (*messagingv1.SyncResponse, []uuid.UUID, error) {
	resp := &messagingv1.SyncResponse{Reset_: rows[0].Reset}
	next := cursor{Epoch: rows[0].Epoch, Since: rows[0].Next}
	if len(rows) > int(c.size) {
		rows = rows[:c.size]
		last := rows[len(rows)-1]
		resp.HasMore = true
		next = cursor{Epoch: last.Epoch, Since: last.Since, Next: last.Next, PageXID: last.Changed, PageLast: last.ID}
	}
	var ids []uuid.UUID
	for _, r := range rows {
		if r.ID != uuid.Nil {
			ids = append(ids, r.ID)
		}
	}
	var err error
	resp.NextCursor, err = page.Encode(syncCursor, next, c.user)
	return resp, ids, err
}
