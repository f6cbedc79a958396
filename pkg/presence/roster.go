package presence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/rueidis"
)

// sweepPeople are taken back by one script, claimPeople are the most that one claims.
const sweepPeople, claimPeople = 500, 1000

// Roster is the roll as the user service reads it. Any number of replicas may work
// on it at once. Errors of its methods are Redis's.
type Roster struct {
	redis rueidis.Client
}

// NewRoster makes a roster.
func NewRoster(redis rueidis.Client) *Roster { return &Roster{redis: redis} }

// Claim is a person to look at.
type Claim struct {
	User uuid.UUID
	// Devices are those that are connected, over all gateways.
	Devices []Device
	// Again says that this person was taken before, by somebody who did not settle:
	// what was decided then may not have been told to everybody.
	Again bool
	// LeftAt is since when no device is connected, as Wait said; zero if it never
	// did.
	LeftAt time.Time

	score string
}

// Claim takes up to a number of people of a shard who are due, claimPeople at most, for so long.
func (r *Roster) Claim(ctx context.Context, shard int, now time.Time, hold time.Duration, most int) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	keys := keysOf(shard)
	score := score(now.Add(hold))
	rows, err := claimScript.Exec(ctx, r.redis, []string{keys.due()},
		[]string{timeText(now), score, strconv.Itoa(min(most, claimPeople)), keys.user(), milliseconds(rollLife)}).ToArray()
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	claims := make([]Claim, 0, len(rows))
	for _, row := range rows {
		c, err := parseClaim(row)
		if err != nil {
			return nil, err
		}
		c.score = score
		claims = append(claims, c)
	}
	return claims, nil
}

func parseClaim(row rueidis.RedisMessage) (Claim, error) {
	parts, err := row.ToArray()
	if err != nil || len(parts) != 2 {
		return Claim{}, fmt.Errorf("a claim of %d parts: %w", len(parts), err)
	}
	id, err := parts[0].ToString()
	if err != nil {
		return Claim{}, fmt.Errorf("id of a claim: %w", err)
	}
	c := Claim{}
	if c.User, err = uuid.Parse(id); err != nil {
		return Claim{}, fmt.Errorf("id of a claim: %w", err)
	}
	fields, err := parts[1].AsStrSlice()
	if err != nil {
		return Claim{}, fmt.Errorf("fields of a claim: %w", err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		switch field, value := fields[i], fields[i+1]; field {
		case "c":
			c.Again = true
		case "l":
			if ms, err := strconv.ParseInt(value, 10, 64); err == nil {
				c.LeftAt = time.UnixMilli(ms).UTC()
			}
		default:
			c.Devices = decodeDevices(c.Devices, value)
		}
	}
	return c, nil
}

// Verdict is what became of a claim.
type Verdict struct {
	Claim
	// LookAgain is when the person is due again although nothing changed; zero for
	// never. LeftAt is kept until then.
	LookAgain time.Time
}

// Settle ends claims, all of the same Claim. Who has changed meanwhile is due again
// at once.
func (r *Roster) Settle(ctx context.Context, shard int, verdicts []Verdict) error {
	if len(verdicts) == 0 {
		return nil
	}
	keys := keysOf(shard)
	args := append(make([]string, 0, 2+3*len(verdicts)), keys.user(), verdicts[0].score)
	for _, v := range verdicts {
		var again, left string
		if !v.LookAgain.IsZero() {
			again, left = timeText(v.LookAgain), timeText(v.LeftAt)
		}
		args = append(args, v.User.String(), again, left)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := settleScript.Exec(ctx, r.redis, []string{keys.due()}, args).Error(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	return nil
}

// Doubt makes people due at a moment, as Again.
func (r *Roster) Doubt(ctx context.Context, at time.Time, users ...uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	var execs []rueidis.LuaExec
	for shard, of := range byShard(users) {
		if len(of) == 0 {
			continue
		}
		keys := keysOf(shard)
		execs = append(execs, rueidis.LuaExec{
			Keys: []string{keys.due()},
			Args: append([]string{keys.user(), timeText(at), milliseconds(rollLife)}, of...),
		})
	}
	if len(execs) == 0 {
		return nil
	}
	var errs []error
	for _, res := range doubtScript.ExecMulti(ctx, r.redis, execs...) {
		if err := res.Error(); err != nil {
			errs = append(errs, fmt.Errorf("doubt: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Missing returns those of users of whom the roll knows nothing at all, as far as
// Redis answers; the error says that it did not for all.
func (r *Roster) Missing(ctx context.Context, users []uuid.UUID) ([]uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	commands := make(rueidis.Commands, 0, len(users))
	for _, user := range users {
		commands = append(commands, r.redis.B().Exists().Key(keysOf(ShardOf(user)).user()+user.String()).Build())
	}
	var missing []uuid.UUID
	var failed error
	for i, res := range r.redis.DoMulti(ctx, commands...) {
		switch there, err := res.AsInt64(); {
		case err != nil:
			failed = fmt.Errorf("look for people: %w", err)
		case there == 0:
			missing = append(missing, users[i])
		}
	}
	return missing, failed
}

// Sweep takes back what stands under leases of a shard that have ended. Those
// people are due then. It returns how many they were; fewer than there are, if it
// is many: call it again until it returns 0.
func (r *Roster) Sweep(ctx context.Context, shard int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	keys := keysOf(shard)
	n, err := sweepScript.Exec(ctx, r.redis, []string{keys.leases(), keys.due()},
		[]string{keys.lease(""), keys.of(""), keys.user(), strconv.Itoa(sweepPeople), milliseconds(rollLife)}).AsInt64()
	if err != nil {
		return 0, fmt.Errorf("sweep: %w", err)
	}
	return int(n), nil
}

func byShard(users []uuid.UUID) [Shards][]string {
	var out [Shards][]string
	for _, user := range users {
		out[ShardOf(user)] = append(out[ShardOf(user)], user.String())
	}
	return out
}

// timeText is a moment as it stands in the roll: milliseconds since 1970.
func timeText(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

// score is the moment until which a claim holds. It also tells claims apart, so it
// is of microseconds, which a float64 of this size still holds.
func score(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMicro())/1000, 'f', 3, 64)
}
