// Package cache opens the connection to Redis (Open) and keeps values of a source
// in it (Cache).
//
// Redis holds nothing that cannot be lost: every key has a TTL and can be read
// again from PostgreSQL or be made anew. A process therefore starts and runs
// without it; a command that cannot reach Redis returns an error at once and its
// caller goes to the tables.
//
// Invariants: nothing is kept without a TTL; every command is about one key, so
// that all of it runs in a Redis Cluster; a value that was invalidated is not
// served again (see Cache for what that rests on).
//
// It keeps nothing in the memory of the process, and never makes a write depend on
// Redis.
package cache

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const (
	dialTimeout = 2 * time.Second
	// A write that Redis has not taken after this long counts as lost. Callers
	// have a deadline of their own; this one frees the connection.
	writeTimeout = 5 * time.Second
)

// parameters are all that a URL may have; another one is a mistake.
var parameters = []string{
	"addr", "cluster", "db", "protocol", "client_cache", "client_name", "dial_timeout", "write_timeout", "ca", "cert", "key",
}

// Open returns a client for a URL:
//
//	redis://USER:PASSWORD@HOST:PORT/DB     rediss:// for TLS
//
// with these parameters, all optional:
//
//	addr=HOST:PORT     one more node of a Redis Cluster; may be repeated
//	cluster=1          a Redis Cluster that is named by one address, as a service
//	                   of Kubernetes names it
//	db=N               as in the path; a cluster has only 0
//	ca=FILE            PEM of the authorities that a server's certificate is
//	                   checked with, instead of the system's
//	cert=FILE key=FILE PEM of this client's certificate
//	dial_timeout=2s write_timeout=5s
//	client_name=NAME   shown by CLIENT LIST; name by default
//	protocol=2 client_cache=0   for servers without RESP3 and client-side caching
//
// When Redis is away, Open returns a client that connects as soon as it can,
// together with an error that wraps ErrAway. Any other error comes without a
// client: the URL is wrong.
func Open(rawURL, name string) (rueidis.Client, error) {
	opt, cluster, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	if opt.ClientName == "" {
		opt.ClientName = name
	}
	if cluster {
		return openCluster(opt)
	}
	// One address, one client: it is what makes NewClient return a client that
	// reconnects even when the first dial fails.
	opt.ForceSingleClient = true
	client, err := rueidis.NewClient(opt)
	switch {
	case err != nil && client != nil:
		return client, fmt.Errorf("%w: %w", ErrAway, err)
	case err != nil:
		return nil, fmt.Errorf("open Redis: %w", err)
	}
	return client, nil
}

// ErrAway tells that Redis could not be reached.
var ErrAway = errors.New("redis is away")

// parse reads a URL. No error quotes it: it holds a password.
func parse(raw string) (opt rueidis.ClientOption, cluster bool, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return opt, false, errors.New("the URL of Redis does not parse")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return opt, false, errors.New("the parameters in the URL of Redis do not parse")
	}
	for parameter := range query {
		if !slices.Contains(parameters, parameter) {
			return opt, false, fmt.Errorf("the URL of Redis has a parameter %q; known are %s", parameter, strings.Join(parameters, ", "))
		}
	}
	if u.Path == "/" {
		u.Path = "" // no database rather than one without a name
	}
	if opt, err = rueidis.ParseURL(u.String()); err != nil {
		return opt, false, errors.New("the URL of Redis does not parse") // the cause may quote the password
	}
	switch query.Get("cluster") {
	case "":
		cluster = len(opt.InitAddress) > 1
	case "1":
		cluster = true
	default:
		return opt, false, errors.New("the URL of Redis: cluster is 1 or not there")
	}
	if cluster && opt.SelectDB != 0 {
		return opt, false, errors.New("the URL of Redis: a cluster has database 0 only")
	}
	opt.DisableCache = opt.DisableCache || opt.AlwaysRESP2
	if opt.Dialer.Timeout == 0 {
		opt.Dialer.Timeout = dialTimeout
	}
	if opt.ConnWriteTimeout == 0 {
		opt.ConnWriteTimeout = writeTimeout
	}
	err = secure(&opt, query)
	return opt, cluster, err
}

// secure fills in what the files of a URL say about TLS.
func secure(opt *rueidis.ClientOption, query url.Values) error {
	ca, cert, key := query.Get("ca"), query.Get("cert"), query.Get("key")
	if ca == "" && cert == "" && key == "" {
		return nil
	}
	if opt.TLSConfig == nil {
		return errors.New("the URL of Redis names certificates but is not rediss://")
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return fmt.Errorf("read the authorities of Redis: %w", err)
		}
		opt.TLSConfig.RootCAs = x509.NewCertPool()
		if !opt.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("read the authorities of Redis: %s holds no certificate", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("read the certificate for Redis: %w", err)
		}
		opt.TLSConfig.Certificates = []tls.Certificate{pair}
	}
	return nil
}
