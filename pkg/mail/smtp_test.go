package mail_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/mailsink"
)

func split(t *testing.T, address string) (host string, port uint16) {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	require.NoError(t, err)
	n, err := strconv.ParseUint(text, 10, 16)
	require.NoError(t, err)
	return host, uint16(n)
}

// certificate is one for 127.0.0.1 and the file that says to trust it.
func certificate(t *testing.T) (*tls.Config, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		// Real time: TLS knows no other.
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, path
}

func TestSecurity(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server   mailsink.Options
		security string
	}{
		"StartTLS":    {security: "starttls"},
		"ImplicitTLS": {security: "tls", server: mailsink.Options{ImplicitTLS: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ca string
			c.server.TLS, ca = certificate(t)
			c.server.Logins = map[string]string{"parley": "hunter2"}
			p := open(t, c.server, func(cfg *mail.Config) {
				cfg.Settings.Security, cfg.Settings.CAFile = c.security, ca
				cfg.Settings.User, cfg.Settings.Password = "parley", "hunter2"
			})
			p.send(code("anna@example.org"))
			require.Contains(t, p.inbox.Next("anna@example.org").Text, "482913")
		})
	}
}

// What the operator has set wrong costs no mail: it waits, and comes once all is right.
func TestFaultsOfTheOperatorKeepMails(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]func(*mail.Settings){
		"a wrong password":          func(s *mail.Settings) { s.Password = "hunter3" },
		"no password":               func(s *mail.Settings) { s.User, s.Password = "", "" },
		"an unknown authority":      func(s *mail.Settings) { s.CAFile = "" },
		"TLS where STARTTLS is due": func(s *mail.Settings) { s.Security = "tls" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, ca := certificate(t)
			right := func(s *mail.Settings) {
				s.Security, s.CAFile, s.User, s.Password = "starttls", ca, "parley", "hunter2"
			}
			p := prepare(t, mailsink.Options{TLS: config, Logins: map[string]string{"parley": "hunter2"}}, func(c *mail.Config) {
				right(&c.Settings)
				wrong(&c.Settings)
			})
			tried := make(chan struct{})
			var once sync.Once
			p.cfg.Backoff = func(int) time.Duration { once.Do(func() { close(tried) }); return tick }
			var err error
			p.Queue, err = mail.New(p.cfg)
			require.NoError(t, err)
			p.run()
			p.send(code("anna@example.org"))
			<-tried
			p.stop()
			require.Empty(t, p.inbox.Mails())
			right(&p.cfg.Settings)
			p.Queue, err = mail.New(p.cfg)
			require.NoError(t, err)
			p.run()
			p.inbox.Next("anna@example.org")
		})
	}
}

func TestSTARTTLSIsNotOptional(t *testing.T) {
	t.Parallel()
	tried := make(chan struct{})
	var once sync.Once
	p := open(t, mailsink.Options{}, func(c *mail.Config) {
		c.Settings.Security = "starttls"
		c.Backoff = func(int) time.Duration { once.Do(func() { close(tried) }); return tick }
	})
	p.send(code("anna@example.org"))
	<-tried
	require.Empty(t, p.inbox.Mails())
}

func TestSettings(t *testing.T) {
	t.Parallel()
	good := mail.Settings{Host: "mail.example.org", From: "Chat <chat@example.org>", Security: "starttls"}
	require.NoError(t, good.Check("P_"))
	require.NoError(t, mail.Settings{}.Check("P_"), "mail is optional")
	for says, change := range map[string]func(*mail.Settings){
		"P_FROM: missing":             func(s *mail.Settings) { s.From = "" },
		"P_FROM: \"nobody\"":          func(s *mail.Settings) { s.From = "nobody" },
		"P_SECURITY: \"ssl\"":         func(s *mail.Settings) { s.Security = "ssl" },
		"P_PASSWORD":                  func(s *mail.Settings) { s.User = "parley" },
		"P_SECURITY: a password":      func(s *mail.Settings) { s.Security, s.User, s.Password = "none", "a", "b" },
		"P_CA_FILE: read the authori": func(s *mail.Settings) { s.CAFile = "/nonexistent" },
	} {
		s := good
		change(&s)
		require.ErrorContains(t, s.Check("P_"), says)
	}
}
