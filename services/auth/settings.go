package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/service"
)

// settings are the variables PARLEY_AUTH_… beside those that every service has. Secrets have no default.
type settings struct {
	KeyEncryptionKey []byte `env:"KEY_ENCRYPTION_KEY" required:"true" secret:"true" min:"32" max:"32" doc:"AES-256 key (32 bytes, base64) that seals the private signing keys in the database."`
	RefreshSecret    []byte `env:"REFRESH_SECRET" required:"true" secret:"true" min:"32" max:"128" doc:"Key (32 bytes or more, base64) from which refresh tokens are derived."`
	PasswordPepper   []byte `env:"PASSWORD_PEPPER" required:"true" secret:"true" min:"32" max:"128" doc:"Key (32 bytes or more, base64) without which stored passwords cannot be compared. Never change it."`

	BcryptCost int `env:"BCRYPT_COST" default:"12" min:"4" max:"16" doc:"log2 of the rounds of bcrypt; below 10 only with INSECURE_PASSWORD_HASHING."`
	// InsecureHashing exists so that a test run of thousands of accounts does not spend its time in bcrypt.
	InsecureHashing bool `env:"INSECURE_PASSWORD_HASHING" doc:"Allows a BCRYPT_COST below 10; for tests only."`
	HashingPlaces   int  `env:"HASHING_PLACES" min:"0" max:"1024" doc:"How many passwords are hashed at once; 0: one per CPU."`

	Issuer   string `env:"TOKEN_ISSUER" default:"parley" doc:"The issuer of access tokens."`
	Audience string `env:"TOKEN_AUDIENCE" default:"parley" doc:"The audience of access tokens."`
	// AccessTokenLife must not pass TOKEN_LIFE of any service, which is how long revocations are remembered.
	AccessTokenLife time.Duration `env:"ACCESS_TOKEN_LIFE" default:"10m" min:"1m" max:"15m" doc:"How long an access token is good; at most TOKEN_LIFE of the services."`
	SessionLife     time.Duration `env:"SESSION_LIFE" default:"2160h" min:"1h" max:"8784h" doc:"The absolute end of a session, from its log in."`
	SessionIdle     time.Duration `env:"SESSION_IDLE" default:"720h" min:"30m" max:"8784h" doc:"The end of a session that nobody refreshes."`
	KeyRotation     time.Duration `env:"KEY_ROTATION" default:"720h" min:"2h" max:"8784h" doc:"How long a key signs access tokens."`

	LoginLimit        int `env:"LOGIN_LIMIT" default:"5" min:"0" max:"1000" doc:"Failed log ins per 15 minutes and account name; as many failures of passwords, codes and second factors of an account; 0: no limit."`
	LoginAddressLimit int `env:"LOGIN_ADDRESS_LIMIT" default:"5" min:"0" max:"100000" doc:"The same per client address; as many registrations there that meet a taken e-mail address; 0: no limit."`
	RegisterLimit     int `env:"REGISTER_LIMIT" default:"100" min:"0" max:"100000" doc:"Registrations per 15 minutes and client address; 0: no limit."`

	ActionLimit int `env:"ACTION_LIMIT" default:"300" min:"0" max:"100000" doc:"Changes that people make to their own account, per 15 minutes and session; log ins that succeed, per account and client address; 0: no limit. Logging out, and what ends a theft, is never limited."`
	// RefreshLimit: a device in use refreshes about twice in 15 minutes, and once more per lost answer.
	RefreshLimit int `env:"REFRESH_LIMIT" default:"60" min:"0" max:"100000" doc:"Refreshes per 15 minutes and session; as many of tokens that are not ours per client address; 0: no limit."`

	CodeSendLimit        int `env:"CODE_SEND_LIMIT" default:"5" min:"1" max:"1000" doc:"Mails with a code per 15 minutes and kind, for one account and to one mailbox."`
	CodeSendAddressLimit int `env:"CODE_SEND_ADDRESS_LIMIT" default:"20" min:"0" max:"100000" doc:"Mails with a code per 15 minutes and client address; 0: no limit."`

	SessionsPerAccount int           `env:"SESSIONS_PER_ACCOUNT" default:"50" min:"1" max:"1000" doc:"Live sessions of an account; the next log in ends the one used least recently."`
	AuditRetention     time.Duration `env:"AUDIT_RETENTION" default:"8760h" min:"24h" max:"87600h" doc:"How long the record of sensitive actions is kept."`
	SecondFactorIssuer string        `env:"SECOND_FACTOR_ISSUER" default:"Parley" max:"64" doc:"What authenticator apps call this deployment; without a colon."`
	BreachedPasswords  string        `env:"BREACHED_PASSWORDS_FILE" doc:"More passwords to refuse: SHA-1 in hexadecimal, a colon and a number per line, in ascending order, as Pwned Passwords is published. Empty: the built-in list alone."`

	UsernameEvery time.Duration `env:"USERNAME_CHANGE_EVERY" default:"720h" max:"87600h" doc:"How often an account may change its user name."`
	UsernameHold  time.Duration `env:"USERNAME_HOLD" default:"720h" max:"87600h" doc:"How long a user name that was given up stays reserved for its owner."`

	Mail  mail.Settings `env:"MAIL"`
	OAuth oauthSettings `env:"OAUTH"`

	RegisterAwait   []string `env:"REGISTER_AWAIT" default:"user,messaging" doc:"The services that Register waits for, up to two seconds; none: nobody."`
	GatewayNetworks []string `env:"GATEWAY_NETWORKS" default:"127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7" doc:"Where gateways call from: only their last X-Forwarded-For entry is believed."`
}

// leastCost is the lowest cost of bcrypt that OWASP ASVS 5.0 (appendix C) allows.
const leastCost = 10

// readSettings fills the settings and checks them.
func readSettings(rt *service.Runtime) (settings, error) {
	var cfg settings
	if err := rt.Config(&cfg); err != nil {
		return cfg, err
	}
	return cfg, cfg.check()
}

// check tells what the tags cannot.
func (s settings) check() error {
	var faults []error
	if s.BcryptCost < leastCost && !s.InsecureHashing {
		faults = append(faults, fmt.Errorf("PARLEY_AUTH_BCRYPT_COST: %d is below %d", s.BcryptCost, leastCost))
	}
	if s.SessionIdle > s.SessionLife {
		faults = append(faults, errors.New("PARLEY_AUTH_SESSION_IDLE: longer than SESSION_LIFE"))
	}
	if strings.Contains(s.SecondFactorIssuer, ":") {
		faults = append(faults, errors.New("PARLEY_AUTH_SECOND_FACTOR_ISSUER: holds a colon"))
	}
	if _, err := s.gateways(); err != nil {
		faults = append(faults, err)
	}
	faults = append(faults, s.Mail.Check("PARLEY_AUTH_MAIL_"), s.OAuth.check())
	return errors.Join(faults...)
}

// awaited lists the services that Register waits for. The word none stands for an empty list, since an empty
// variable means the default.
func (s settings) awaited() []string {
	if len(s.RegisterAwait) == 1 && s.RegisterAwait[0] == "none" {
		return nil
	}
	return s.RegisterAwait
}

func (s settings) gateways() ([]netip.Prefix, error) {
	networks := make([]netip.Prefix, 0, len(s.GatewayNetworks))
	for _, text := range s.GatewayNetworks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("PARLEY_AUTH_GATEWAY_NETWORKS: %q is no network", text)
		}
		networks = append(networks, network)
	}
	return networks, nil
}
