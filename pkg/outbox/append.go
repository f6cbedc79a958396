package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Append writes events into a transaction that somebody else commits: it is how
// a listener emits from its Handle, with the ctx that it was given. They are
// published after that commit; called elsewhere they wait for the relay. Without
// events there is no row.
//
// The events belong to the outbox from then on.
func (o *Outbox) Append(ctx context.Context, tx pgx.Tx, events ...*eventv1.Event) error {
	if len(events) == 0 {
		return nil
	}
	row, err := o.Row(ctx, events)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, insertSQL, row.ID, row.CreatedAt, row.Envelopes); err != nil {
		return fmt.Errorf("insert into outbox: %w", err)
	}
	event.AfterCommit(ctx, func() { o.Committed(row, nil) })
	return nil
}
