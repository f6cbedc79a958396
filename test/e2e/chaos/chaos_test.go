package chaos_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/test/e2e/chaos"
)

// The variables of `make chaos`.
const (
	// envDuration makes the run a long one; without it the short plan is played.
	envDuration = "PARLEY_CHAOS_DURATION"
	// envSeed chooses the rounds, the victims and the moments.
	envSeed = "PARLEY_CHAOS_SEED"
	// envResult names a file for the raw result.
	envResult = "PARLEY_CHAOS_RESULT"
)

// longOutage is from how long on a run can afford NATS to be away for longAway.
const longOutage, longAway = 15 * time.Minute, 5 * time.Minute

// TestChaos breaks the system round by round while people talk. Every day that is
// the short plan, with deadlines that bear a busy machine.
func TestChaos(t *testing.T) {
	t.Parallel()
	var results []chaos.Result
	cfg := chaos.Config{
		// Another plan every day; a failure tells its seed.
		Seed: uint64(time.Now().Unix() / 86400), Pairs: 20, Rate: 120, IdleInterval: 10 * time.Second, RecoverWithin: time.Minute,
		Result: func(r chaos.Result) {
			t.Log(r)
			results = append(results, r)
		},
	}
	var err error
	if raw := os.Getenv(envSeed); raw != "" {
		cfg.Seed, err = strconv.ParseUint(raw, 10, 64)
		require.NoError(t, err, envSeed)
	}
	if raw := os.Getenv(envDuration); raw != "" {
		cfg.Duration, err = time.ParseDuration(raw)
		require.NoError(t, err, envDuration)
		cfg.RecoverWithin = 15 * time.Second // the promise
		if cfg.Duration >= longOutage {
			cfg.LongAway = longAway
		}
	}
	command := fmt.Sprintf("make chaos DURATION=%s SEED=%d", cfg.Duration, cfg.Seed)
	if cfg.Duration == 0 {
		command = "the short plan of make test"
	}
	t.Cleanup(func() { // also if the system never got ready again
		raw := chaos.NewReport(cfg, command, results).JSON()
		t.Log(raw)
		if file := os.Getenv(envResult); file != "" {
			if err := os.WriteFile(file, []byte(raw+"\n"), 0o644); err != nil {
				t.Errorf("keep the raw result: %v", err)
			}
		}
	})
	chaos.Run(t, cfg)
}
