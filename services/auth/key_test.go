package auth

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKeyPlan(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	policy := keyPolicy{rotateEvery: 30 * day, tokenLife: 10 * time.Minute}
	begin := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	key := func(generation int64, from time.Duration) signingKey {
		return signingKey{kid: string(rune('a' + generation - 1)), generation: generation, activeFrom: begin.Add(from)}
	}
	first, second, third := key(1, 0), key(2, 30*day), key(3, 60*day)
	expiry := policy.tokenLife + keyLinger

	for name, c := range map[string]struct {
		keys []signingKey
		at   time.Duration
		want keyPlan
	}{
		"FirstKeySignsAtOnce":              {nil, 0, keyPlan{create: true, generation: 1, activeFrom: begin}},
		"NothingInBetween":                 {[]signingKey{first}, 29 * day, keyPlan{}},
		"NextIsAnnouncedBeforeItsTime":     {[]signingKey{first}, 30*day - keyAnnounce, keyPlan{create: true, generation: 2, activeFrom: begin.Add(30 * day)}},
		"LateRotationStillAnnounces":       {[]signingKey{first}, 45 * day, keyPlan{create: true, generation: 2, activeFrom: begin.Add(45*day + keyAnnounce)}},
		"AnnouncedOnceOnly":                {[]signingKey{first, second}, 30 * day, keyPlan{}},
		"OldKeyStaysWhileItsTokensMayLive": {[]signingKey{first, second}, 30*day + expiry, keyPlan{}},
		"OldKeyGoesAfterItsTokens":         {[]signingKey{first, second}, 30*day + expiry + time.Second, keyPlan{expired: []string{"a"}}},
		"NewestNeverGoes":                  {[]signingKey{third}, 61 * day, keyPlan{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, policy.plan(c.keys, begin.Add(c.at)))
		})
	}

	t.Run("AnnouncedKeyDoesNotSignYet", func(t *testing.T) {
		t.Parallel()
		keys := []signingKey{first, second}
		require.Equal(t, "a", signer(keys, begin.Add(30*day-time.Microsecond)).kid)
		require.Equal(t, "b", signer(keys, begin.Add(30*day)).kid)
		require.Nil(t, signer(keys, begin.Add(-time.Second)))
	})
}

func TestSettings(t *testing.T) {
	t.Parallel()
	good := settings{BcryptCost: 12, SessionLife: 2 * time.Hour, SessionIdle: time.Hour, GatewayNetworks: []string{"10.0.0.0/8"}}
	require.NoError(t, good.check())
	for name, c := range map[string]struct {
		variable string
		spoil    func(*settings)
	}{
		"CostBelowTheAllowed": {"PARLEY_AUTH_BCRYPT_COST", func(s *settings) { s.BcryptCost = 9 }},
		"IdleLongerThanLife":  {"PARLEY_AUTH_SESSION_IDLE", func(s *settings) { s.SessionIdle = 3 * time.Hour }},
		"NetworkThatIsNotOne": {"PARLEY_AUTH_GATEWAY_NETWORKS", func(s *settings) { s.GatewayNetworks = []string{"10.0.0.0"} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := good
			c.spoil(&bad)
			require.ErrorContains(t, bad.check(), c.variable)
		})
	}
	t.Run("LowCostForTestsIsSaidAloud", func(t *testing.T) {
		t.Parallel()
		low := good
		low.BcryptCost, low.InsecureHashing = 4, true
		require.NoError(t, low.check())
	})
}
