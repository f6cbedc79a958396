package messaging

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
)

const (
	// permissionLife is for how long the answer of privacy counts: nothing else ends
	// it. The column permission_version is there for whoever will mark it stale.
	permissionLife = 5 * time.Minute
	// mostChecks are asked at once. After an outage thousands of conversations wait,
	// which would be one question of two checks each.
	mostChecks = 200
)

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

// errUnanswered: it cannot be told which answer is whose.
var errUnanswered = errors.New("privacy did not answer every check")

// bounded asks in questions of at most mostChecks, one after the other.
type bounded struct{ Permissions }

// CheckBatch implements Permissions.
func (b bounded) CheckBatch(ctx context.Context, checks []PermissionCheck) ([]bool, error) {
	allowed := make([]bool, 0, len(checks))
	for part := range slices.Chunk(checks, mostChecks) {
		answers, err := b.Permissions.CheckBatch(ctx, part)
		if err != nil {
			return nil, err //nolint:wrapcheck // as the one who was asked says it
		}
		if len(answers) != len(part) {
			return nil, errUnanswered
		}
		allowed = append(allowed, answers...)
	}
	return allowed, nil
}
