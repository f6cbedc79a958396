package messaging_test

import (
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/messaging"
)

func TestPermission(t *testing.T) {
	t.Parallel()
	one := append([]string{"PARLEY_MESSAGING_COMMITTERS=1"}, quick...)
	ctx := t.Context()

	t.Run("IsAskedOnceInFiveMinutes", func(t *testing.T) {
		t.Parallel()
		p := &policy{}
		w := start(t, servicetest.Options{}, p)
		a, b, id := w.friends()
		for range 5 {
			a.say(id, "hi")
			b.say(id, "ho")
		}
		require.Equal(t, 1, p.questions())
		w.Clock.Advance(5*time.Minute - time.Second)
		a.say(id, "still")
		require.Equal(t, 1, p.questions())
		w.Clock.Advance(2 * time.Second)
		a.say(id, "again")
		require.Equal(t, 2, p.questions())
	})
	t.Run("HoldsForOneDirection", func(t *testing.T) {
		t.Parallel()
		p := &policy{}
		w := start(t, servicetest.Options{}, p)
		a, b, id := w.friends()
		p.set(func(p *policy) { p.denied = map[messaging.PermissionCheck]bool{{Actor: b.id, Target: a.id}: true} })
		a.say(id, "may")
		_, err := b.SendMessage(ctx, message(id, "may not"))
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED)
		a.say(id, "no hole")
		require.Equal(t, []string{"may", "no hole"}, texts(b.log(id)))
	})
	t.Run("NotKnownIsNeitherYesNorNo", func(t *testing.T) {
		t.Parallel()
		p := &policy{err: errors.New("privacy is away")}
		w := start(t, servicetest.Options{}, p)
		a, b, id := w.friends()
		req := message(id, "hello?")
		_, err := a.SendMessage(ctx, req)
		requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
		p.set(func(p *policy) { p.err = nil })
		_, err = a.SendMessage(ctx, req)
		require.NoError(t, err)
		require.Equal(t, []string{"hello?"}, texts(b.log(id)))
	})
	t.Run("MarkedStaleHoldsAtOnce", func(t *testing.T) {
		t.Parallel()
		p := &policy{}
		w := start(t, servicetest.Options{}, p)
		a, b, id := w.friends()
		a.say(id, "before")
		p.set(func(p *policy) { p.denied = map[messaging.PermissionCheck]bool{{Actor: a.id, Target: b.id}: true} })
		w.stale(id)
		_, err := a.SendMessage(ctx, message(id, "after"))
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED)
	})
	t.Run("AnAnswerThatIsOutdatedDoesNotCount", func(t *testing.T) {
		t.Parallel()
		p := &policy{gate: make(chan struct{}), enter: make(chan struct{}, 10)}
		w := start(t, servicetest.Options{Settings: one}, p)
		a, b, id := w.friends()
		sent := make(chan error, 1)
		go func() {
			_, err := a.SendMessage(ctx, message(id, "just in time?"))
			sent <- err
		}()
		p.entered(t) // privacy has said yes, but not told yet
		p.set(func(p *policy) { p.denied = map[messaging.PermissionCheck]bool{{Actor: a.id, Target: b.id}: true} })
		w.stale(id)
		close(p.gate)
		requireReason(t, <-sent, connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED)
		require.Empty(t, texts(b.log(id)))
	})
	t.Run("OthersGoOnMeanwhile", func(t *testing.T) {
		t.Parallel()
		p := &policy{enter: make(chan struct{}, 10)}
		w := start(t, servicetest.Options{Settings: one}, p)
		a, b, slow := w.friends()
		_, c, other := w.friends()
		c.say(other, "warm")
		p.entered(t)
		p.set(func(p *policy) { p.gate = make(chan struct{}) })

		const n = 4 // few: the question to privacy may take two seconds
		answers := make(chan error, n)
		for i := range n {
			go func() {
				_, err := a.SendMessage(ctx, message(slow, text(0, i)))
				answers <- err
			}()
			if i == 0 {
				p.entered(t)
			}
			c.say(other, "not held up")
		}
		require.Empty(t, answers)
		close(p.gate)
		for range n {
			require.NoError(t, <-answers)
		}
		require.Len(t, texts(b.log(slow)), n)
	})
}

// stale does what a listener of privacy's events does.
func (w *world) stale(conversation string) {
	w.t.Helper()
	w.exec("UPDATE conversation SET checked_at = NULL, permission_version = permission_version + 1 WHERE id = $1", conversation)
}
