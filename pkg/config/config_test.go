package config_test

import (
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/config"
)

type limits struct {
	Rate  float64 `env:"RATE" default:"0.5" min:"0" max:"1"`
	Burst int     `env:"BURST" default:"10" min:"1" max:"100"`
}

type everything struct {
	limits

	Name    string            `env:"NAME" default:"parley" max:"10" doc:"What it is called."`
	URL     string            `env:"DATABASE_URL" required:"true" secret:"true"`
	Public  *url.URL          `env:"PUBLIC_URL"`
	Home    url.URL           `env:"HOME_URL" default:"https://example.org/a"`
	Wait    time.Duration     `env:"WAIT" default:"30s" min:"1s" max:"1m"`
	Debug   bool              `env:"DEBUG"`
	Port    uint16            `env:"PORT"`
	Origins []string          `env:"ORIGINS"`
	Key     []byte            `env:"KEY" secret:"true" min:"4"`
	Peers   map[string]string `env:"PEERS"`
	Level   slog.Level        `env:"LEVEL" default:"info"`
	Mail    struct {
		Host string `env:"HOST" default:"localhost"`
	} `env:"MAIL"`
	Untagged string
}

func TestLoadFillsEveryType(t *testing.T) {
	t.Parallel()
	var got everything
	require.NoError(t, config.Load("X_", &got, []string{
		"X_DATABASE_URL=postgres://a:b@c/d", "X_PUBLIC_URL=https://chat.example.org", "X_WAIT=5s", "X_DEBUG=true",
		"X_PORT=8080", "X_ORIGINS=https://a, https://b,", "X_KEY=_-8AAQ==", "X_PEERS=auth=k1=,user=k2", "X_LEVEL=warn",
		"X_MAIL_HOST=mail", "X_BURST=3", "OTHER=1", "XY=1", "X_NAME=",
	}))
	require.Equal(t, "parley", got.Name)
	require.Equal(t, "postgres://a:b@c/d", got.URL)
	require.Equal(t, "chat.example.org", got.Public.Host)
	require.Equal(t, "/a", got.Home.Path)
	require.Equal(t, 5*time.Second, got.Wait)
	require.True(t, got.Debug)
	require.Equal(t, uint16(8080), got.Port)
	require.Equal(t, []string{"https://a", "https://b"}, got.Origins)
	require.Equal(t, []byte{0xff, 0xef, 0, 1}, got.Key)
	require.Equal(t, map[string]string{"auth": "k1=", "user": "k2"}, got.Peers)
	require.Equal(t, slog.LevelWarn, got.Level)
	require.Equal(t, "mail", got.Mail.Host)
	require.InDelta(t, 0.5, got.Rate, 0)
	require.Equal(t, 3, got.Burst)
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ env, says string }{
		"an unknown variable":   {"X_DATABSE_URL=1", "X_DATABSE_URL: no such setting"},
		"a bad duration":        {"X_WAIT=soon", `X_WAIT: "soon" is not a valid duration`},
		"too short a duration":  {"X_WAIT=1ms", "X_WAIT: \"1ms\" is not a valid duration: it has to be at least 1s"},
		"too long a duration":   {"X_WAIT=1h", "it has to be at most 1m"},
		"a bad number":          {"X_BURST=ten", `X_BURST: "ten" is not a valid int: invalid syntax`},
		"too small a number":    {"X_BURST=0", "it has to be at least 1"},
		"too large a number":    {"X_BURST=101", "it has to be at most 100"},
		"a number out of range": {"X_PORT=70000", "X_PORT: \"70000\" is not a valid int: value out of range"},
		"a negative port":       {"X_PORT=-1", "X_PORT"},
		"a bad float":           {"X_RATE=1.5", "it has to be at most 1"},
		"a bad bool":            {"X_DEBUG=maybe", "X_DEBUG"},
		"a URL without scheme":  {"X_PUBLIC_URL=example.org", "X_PUBLIC_URL"},
		"too long a string":     {"X_NAME=12345678901", "it has to be at most 10"},
		"a bad map":             {"X_PEERS=auth", `it has to look like "a=1,b=2"`},
		"a key twice":           {"X_PEERS=a=1,a=2", "a is there twice"},
		"a bad level":           {"X_LEVEL=loud", "X_LEVEL"},
		"a bad nested one":      {"X_MAIL_PORT=1", "X_MAIL_PORT: no such setting"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := config.Load("X_", &everything{}, []string{"X_DATABASE_URL=x", c.env})
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestLoadTellsAllFaultsAtOnceAndNoSecret(t *testing.T) {
	t.Parallel()
	err := config.Load("X_", &everything{}, []string{"X_KEY=hunter2!", "X_WAIT=no", "X_NOPE=1"})
	require.ErrorContains(t, err, "X_DATABASE_URL: missing")
	require.ErrorContains(t, err, "X_KEY: not a valid base64")
	require.ErrorContains(t, err, "X_WAIT")
	require.ErrorContains(t, err, "X_NOPE")
	require.NotContains(t, err.Error(), "hunter2")

	err = config.Load("X_", &everything{}, []string{"X_DATABASE_URL=x", "X_KEY=c2s="})
	require.ErrorContains(t, err, "X_KEY", "too short a secret")
	require.NotContains(t, err.Error(), "c2s")
}

func TestSourceSharesAPrefix(t *testing.T) {
	t.Parallel()
	src := config.NewSource("X_", []string{"X_A=1", "X_B=2", "X_C=3"})
	var a struct {
		A int `env:"A"`
	}
	var b struct {
		B int `env:"B"`
	}
	require.NoError(t, src.Load(&a))
	require.NoError(t, src.Load(&b))
	require.EqualError(t, src.Unknown(), "X_C: no such setting")
	require.Equal(t, 3, a.A+b.B)
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	fields, err := config.Describe("X_", &everything{})
	require.NoError(t, err)
	byName := map[string]config.Field{}
	for _, f := range fields {
		byName[f.Name] = f
	}
	require.Equal(t, "What it is called.", byName["X_NAME"].Doc)
	require.True(t, byName["X_DATABASE_URL"].Required)
	require.True(t, byName["X_DATABASE_URL"].Secret)
	require.Equal(t, "duration", byName["X_WAIT"].Type)
	require.Equal(t, "localhost", byName["X_MAIL_HOST"].Default)
	require.Equal(t, "100", byName["X_BURST"].Max)
	require.Len(t, fields, 14)
}

func TestUnsupportedTypeIsAnError(t *testing.T) {
	t.Parallel()
	var c struct {
		C chan int `env:"C"`
	}
	require.ErrorContains(t, config.Load("X_", &c, nil), "cannot be of type chan int")
	require.Error(t, config.Load("X_", c, nil))
	require.Error(t, config.Load("X_", nil, nil))
}
