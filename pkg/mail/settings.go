package mail

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"os"
	"strconv"
	"time"
)

// Settings say how mail leaves the house: a section of the service's own settings,
//
//	Mail mail.Settings `env:"MAIL"`
//
// which makes them PARLEY_<SERVICE>_MAIL_…. Without a host no mail is sent.
type Settings struct {
	Host string `env:"HOST" max:"253" doc:"The SMTP server that takes our mails; empty: none are sent, and what needs them says UNAVAILABLE."`
	Port uint16 `env:"PORT" doc:"Its port; 0: 587, or 465 with MAIL_SECURITY=tls."`
	// Security is checked by Check: an empty one means starttls.
	Security string        `env:"SECURITY" default:"starttls" doc:"starttls (required, not just tried), tls (from the first byte) or none."`
	CAFile   string        `env:"CA_FILE" doc:"PEM of the authorities that the server's certificate may come from; empty: the system's."`
	User     string        `env:"USER" doc:"The login at the server; empty: none."`
	Password string        `env:"PASSWORD" secret:"true" doc:"Its password."`
	From     string        `env:"FROM" max:"320" doc:"Whom mails are from: chat@example.org or Chat <chat@example.org>. Needed with MAIL_HOST."`
	Product  string        `env:"PRODUCT" default:"Parley" max:"64" doc:"What the mails call the product."`
	Hello    string        `env:"HELLO" max:"253" doc:"The name that is said to the server; empty: the domain of MAIL_FROM."`
	Timeout  time.Duration `env:"TIMEOUT" default:"20s" min:"1s" max:"45s" doc:"The most that the delivery of one mail to the server takes."`
}

const (
	securityStartTLS = "starttls"
	securityTLS      = "tls"
	securityNone     = "none"
)

// Enabled tells whether there is a server to send with.
func (s Settings) Enabled() bool { return s.Host != "" }

// Check tells what the tags cannot; prefix names the variables: "PARLEY_AUTH_MAIL_".
func (s Settings) Check(prefix string) error {
	var faults []error
	fault := func(name, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s%s: %s", prefix, name, fmt.Sprintf(format, args...)))
	}
	switch s.Security {
	case securityStartTLS, securityTLS, securityNone, "":
	default:
		fault("SECURITY", "%q is not starttls, tls or none", s.Security)
	}
	if !s.Enabled() {
		return errors.Join(faults...)
	}
	if s.From == "" {
		fault("FROM", "missing; it has to be set with %sHOST", prefix)
	} else if _, err := netmail.ParseAddress(s.From); err != nil {
		fault("FROM", "%q is no address", s.From)
	}
	if (s.User == "") != (s.Password == "") {
		fault("PASSWORD", "USER and PASSWORD belong together")
	}
	if s.Security == securityNone && s.User != "" {
		fault("SECURITY", "a password is not sent over a connection that anybody can read")
	}
	if _, err := s.tlsConfig(); err != nil {
		fault("CA_FILE", "%v", err)
	}
	return errors.Join(faults...)
}

// address is host:port.
func (s Settings) address() string {
	port := s.Port
	switch {
	case port != 0:
	case s.Security == securityTLS:
		port = 465
	default:
		port = 587
	}
	return net.JoinHostPort(s.Host, strconv.Itoa(int(port)))
}

func (s Settings) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{ServerName: s.Host, MinVersion: tls.VersionTLS12}
	if s.CAFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the authorities: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("it holds no certificate")
	}
	return cfg, nil
}
