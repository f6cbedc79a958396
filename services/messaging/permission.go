package messaging

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// permissionLife is for how long the answer of privacy counts. Events that change
// it mark it stale at once; this bounds what a lost event can do.
const permissionLife = 5 * time.Minute

// PermissionCheck asks whether the actor may write to the target.
type PermissionCheck struct {
	Actor, Target uuid.UUID
}

// Permissions says who may write to whom. It is asked only when the state in a
// conversation's row is stale, once for many conversations, never for a single
// send.
//
// An error means that the answer is not known: the sends are answered with
// UNAVAILABLE, neither as permitted nor as refused.
type Permissions interface {
	// CheckBatch answers each check, in the order of the checks.
	CheckBatch(ctx context.Context, checks []PermissionCheck) ([]bool, error)
}

// openPolicy permits everything: what a deployment without the privacy service
// does. It is the answer "no rule forbids it", and not a fallback for an outage.
type openPolicy struct{}

func (openPolicy) CheckBatch(_ context.Context, checks []PermissionCheck) ([]bool, error) {
	allowed := make([]bool, len(checks))
	for i := range allowed {
		allowed[i] = true
	}
	return allowed, nil
}
