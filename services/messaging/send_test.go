package messaging

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	waitFor = 10 * time.Second
	tick    = time.Millisecond
)

func TestSendAnswer(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, c := range map[string]struct {
		first        answer
		same         outcome // of one with the same content
		judgedAnew   bool    // one with another content is
		otherOutcome outcome
	}{
		"Appended":   {answer{outcome: outcomeAppended, seq: 7}, outcomeRepeated, false, outcomeReused},
		"Repeated":   {answer{outcome: outcomeRepeated, seq: 7}, outcomeRepeated, false, outcomeReused},
		"Reused":     {answer{outcome: outcomeReused}, outcomeReused, true, 0},
		"Closed":     {answer{outcome: outcomeClosed}, outcomeClosed, true, 0},
		"NotAllowed": {answer{outcome: outcomeNotAllowed}, outcomeNotAllowed, true, 0},
		"Failed":     {answer{outcome: outcomeFailed, err: away}, outcomeFailed, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newSend := func(content string) *send {
				return &send{hash: []byte(content), done: make(chan answer, 1)}
			}
			first, same, other := newSend("x"), newSend("x"), newSend("y")
			first.followers = []*send{same, other}
			again := first.answer(c.first)
			require.Equal(t, c.first, <-first.done)
			got := <-same.done
			require.Equal(t, c.same, got.outcome)
			require.Equal(t, c.first.seq, got.seq)
			require.Equal(t, c.first.err, got.err)
			if c.judgedAnew {
				require.Equal(t, []*send{other}, again)
				require.Empty(t, other.done)
				return
			}
			require.Empty(t, again)
			require.Equal(t, c.otherOutcome, (<-other.done).outcome)
		})
	}
}
