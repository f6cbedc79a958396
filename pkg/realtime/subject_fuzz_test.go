package realtime

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// FuzzSubject holds that a subject names at most one person, who is subscribed
// on no other, and that no id makes a subject for many.
func FuzzSubject(f *testing.F) {
	id := uuid.NewString()
	for _, subject := range []string{"user." + id, "user." + strings.ToUpper(id), "user.{" + id + "}", "user.urn:uuid:" + id, "user.*", "user.>", "user.", "x." + id} {
		f.Add(subject)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		user, ok := userOf(subject)
		if !ok {
			return
		}
		require.Equal(t, strings.ToLower(subject), Subject(user))
		require.NotContains(t, Subject(user), "*")
	})
}
