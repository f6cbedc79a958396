package config_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/testkit"
)

// FuzzLoad holds that a value either becomes a setting within its bounds or stops
// the start with an error that names the variable, and that a secret is never told.
func FuzzLoad(f *testing.F) {
	for _, c := range [][2]string{
		{"NAME", "parley"},
		{"NAME", "\x00"},
		{"RATE", "NaN"},
		{"RATE", "0.25"},
		{"RATE", "-Inf"},
		{"RATIO", "+Inf"},
		{"RATIO", "0x1p-2"},
		{"BURST", "1_0"},
		{"WAIT", "1h1m"},
		{"WAIT", "9223372036854775807ns"},
		{"WAIT", "2562048h"},
		{"DEBUG", "T"},
		{"PORT", "65536"},
		{"ORIGINS", ",a,, b ,"},
		{"KEY", "_-8AAQ=="},
		{"KEY", "====="},
		{"KEY", "secret\nkey"},
		{"PEERS", "a=1,b==2"},
		{"PEERS", "a=1,a=2"},
		{"LEVEL", "DEBUG+7"},
		{"LEVEL", "info+x"},
		{"PUBLIC_URL", "https://[::1"},
		{"PUBLIC_URL", "mailto:a@b"},
		{"HOME_URL", "//x"},
		{"DATABASE_URL", "postgres://me:very-secret@host/db"},
		{"MAIL_HOST", ""},
		{"", "x"},
		{"NO_SUCH", "1"},
		{"KEY", "not base64 but very-secret"},
	} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		type settings struct {
			everything
			Ratio float64 `env:"RATIO"`
		}
		var got settings
		var err error
		testkit.Bounded(t, 1<<20+256*uint64(len(name)+len(value)), func() {
			err = config.Load("X_", &got, []string{"X_DATABASE_URL=postgres://h/d", "X_" + name + "=" + value})
		})
		if err != nil {
			variable, _, _ := strings.Cut("X_"+name+"="+value, "=")
			require.Contains(t, err.Error(), variable)
			if secret := name == "KEY"; secret && len(value) >= 8 {
				require.NotContains(t, err.Error(), value)
			}
			return
		}
		require.LessOrEqual(t, len(got.Name), 10)
		require.False(t, math.IsNaN(got.Rate) || got.Rate < 0 || got.Rate > 1, "%v", got.Rate)
		require.False(t, math.IsNaN(got.Ratio) || math.IsInf(got.Ratio, 0), "%v", got.Ratio)
		require.True(t, got.Burst >= 1 && got.Burst <= 100)
		require.True(t, got.Wait >= time.Second && got.Wait <= time.Minute)
		require.True(t, got.Key == nil || len(got.Key) >= 4)
		require.NotEmpty(t, got.URL)
		for _, origin := range got.Origins {
			require.NotEmpty(t, strings.TrimSpace(origin))
			require.NotContains(t, origin, ",")
		}
		for key := range got.Peers {
			require.NotEmpty(t, key)
		}
		if got.Public != nil {
			require.NotEmpty(t, got.Public.Scheme)
		}
	})
}
