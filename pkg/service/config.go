package service

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/parleychat/parley/pkg/config"
)

// Prefix returns the beginning of the environment variables of a service:
// "PARLEY_AUTH_".
func Prefix(name string) string { return "PARLEY_" + strings.ToUpper(name) + "_" }

// Config is what every service that runs alone reads from its environment, beside
// its own settings. What has neither a default nor "may be empty" has to be set:
// there are no keys and no addresses that work without being chosen.
type Config struct {
	DatabaseURL      string `env:"DATABASE_URL" required:"true" secret:"true" doc:"PostgreSQL, with the service's own role; may go through PgBouncer."`
	MigrateURL       string `env:"MIGRATE_DATABASE_URL" secret:"true" doc:"The same role over a direct connection, for migrate. DATABASE_URL when empty."`
	DatabaseMaxConns int32  `env:"DATABASE_MAX_CONNS" default:"20" min:"2" max:"1000" doc:"The size of the pool."`
	DatabaseExecMode string `env:"DATABASE_EXEC_MODE" default:"cache_statement" doc:"cache_describe behind PgBouncer in transaction mode."`

	NATSURL         string `env:"NATS_URL" required:"true" secret:"true" doc:"NATS with JetStream; several addresses separated by commas."`
	NATSCredentials string `env:"NATS_CREDENTIALS" doc:"The path of a NATS credentials file."`
	NATSReplicas    int    `env:"NATS_REPLICAS" default:"1" min:"1" max:"5" doc:"The replicas of this domain's event stream; 3 in production."`
	RedisURL        string `env:"REDIS_URL" secret:"true" doc:"Redis; empty: none. See pkg/cache for the parameters."`

	Listen      string `env:"LISTEN" default:":8080" doc:"Where RPCs are served: h2c and HTTP/1.1."`
	AdminListen string `env:"ADMIN_LISTEN" default:":9090" doc:"Where health, metrics and profiles are served."`

	JWKSURL       string `env:"JWKS_URL" required:"true" doc:"The key set of auth, for people's tokens."`
	TokenIssuer   string `env:"TOKEN_ISSUER" default:"parley" doc:"The issuer of people's tokens."`
	TokenAudience string `env:"TOKEN_AUDIENCE" default:"parley" doc:"The audience of people's tokens."`
	// TokenLife has to be at least what auth gives its tokens.
	TokenLife time.Duration `env:"TOKEN_LIFE" default:"15m" min:"1m" max:"24h" doc:"How long a revocation is remembered: the life of access tokens."`

	ServiceKey        []byte            `env:"SERVICE_KEY" required:"true" secret:"true" doc:"The Ed25519 key (32 byte seed, base64) that signs this service's calls to others."`
	ServicePublicKeys map[string]string `env:"SERVICE_PUBLIC_KEYS" doc:"The public keys (base64) of the services that may call: user=…,messaging=…."`
	Services          []string          `env:"SERVICES" doc:"The names of all services of the deployment: auth,user,messaging. Only user needs it: without it nobody is deleted and nothing exported."`
	Backends          map[string]string `env:"BACKENDS" doc:"Where the other services are: auth=http://auth:8080,…; calls are spread over all addresses of a name, and over several URLs separated by semicolons."`

	LogLevel     slog.Level `env:"LOG_LEVEL" default:"info" doc:"debug, info, warn or error."`
	LogFormat    string     `env:"LOG_FORMAT" default:"json" doc:"json or text."`
	OTLPEndpoint string     `env:"OTLP_ENDPOINT" doc:"Where traces go by OTLP over HTTP; empty: nowhere."`
	SampleRatio  float64    `env:"TRACE_SAMPLE_RATIO" default:"0.01" min:"0" max:"1" doc:"The part of the traces that is sampled: exported, and shown on /debug/traces of the admin port."`
	KeepSpans    int        `env:"TRACE_KEEP_SPANS" default:"2000" min:"0" max:"100000" doc:"How many sampled spans are kept in memory for /debug/traces, about 1 KiB each; 0: none."`

	SentryDSN         string `env:"SENTRY_DSN" secret:"true" doc:"A project of any Sentry-compatible server, to which errors are reported, masked; empty: none."`
	SentryEnvironment string `env:"SENTRY_ENVIRONMENT" default:"production" doc:"The deployment, in the reports of errors."`

	DrainDelay  time.Duration `env:"DRAIN_DELAY" default:"5s" max:"5m" doc:"From not ready to the end of intake: as long as balancers take to notice."`
	StopTimeout time.Duration `env:"STOP_TIMEOUT" default:"15s" min:"1s" max:"5m" doc:"The most that each phase of the shutdown takes."`
	ClockOffset time.Duration `env:"CLOCK_OFFSET" doc:"Moves the clock of this process; for tests of clock jumps only."`
}

// Describe lists the environment variables of a service that runs alone, for the
// reference page and for the checks of the manifests.
func Describe(def Definition) ([]config.Field, error) {
	fields, err := config.Describe(Prefix(def.Name), &Config{})
	if err != nil || def.Settings == nil {
		return fields, err
	}
	own, err := config.Describe(Prefix(def.Name), def.Settings)
	return append(fields, own...), err
}

// readConfig fills a Config from src and decodes its keys.
func readConfig(name string, src *config.Source) (Config, keys, error) {
	var c Config
	if err := src.Load(&c); err != nil {
		return c, keys{}, err
	}
	k := keys{public: map[string]ed25519.PublicKey{}}
	var faults []error
	var err error
	if k.private, err = ParsePrivateKey(c.ServiceKey); err != nil {
		faults = append(faults, fmt.Errorf("%sSERVICE_KEY: %w", Prefix(name), err))
	}
	for caller, text := range c.ServicePublicKeys {
		if k.public[caller], err = ParsePublicKey(text); err != nil {
			faults = append(faults, fmt.Errorf("%sSERVICE_PUBLIC_KEYS: %s: %w", Prefix(name), caller, err))
		}
	}
	if c.LogFormat != "json" && c.LogFormat != "text" {
		faults = append(faults, fmt.Errorf("%sLOG_FORMAT: %q is neither json nor text", Prefix(name), c.LogFormat))
	}
	return c, k, errors.Join(faults...)
}

type keys struct {
	private ed25519.PrivateKey
	public  map[string]ed25519.PublicKey
}

// ParsePrivateKey reads an Ed25519 key: the seed of 32 bytes, or seed and public
// key (64 bytes). The error does not show the key.
func ParsePrivateKey(raw []byte) (ed25519.PrivateKey, error) {
	switch len(raw) {
	case ed25519.SeedSize:
		return ed25519.NewKeyFromSeed(raw), nil
	case ed25519.PrivateKeySize:
		key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
		if !key.Equal(ed25519.PrivateKey(raw)) {
			return nil, errors.New("the public half of the key does not belong to its seed")
		}
		return key, nil
	default:
		return nil, fmt.Errorf("an Ed25519 key has 32 bytes, this one %d", len(raw))
	}
}

// ParsePublicKey reads the base64 text of an Ed25519 public key.
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	raw, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("not base64")
	}
	if len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("an Ed25519 public key has 32 bytes, this one %d", len(raw))
	}
	return raw, nil
}
