package cache_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/testkit"
)

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]string{
		"Scheme":           "http://:hunter2@host/",
		"UnknownParameter": "redis://:hunter2@host/?tls=1",
		"Cluster":          "redis://:hunter2@host/?cluster=yes",
		"ClusterDatabase":  "redis://:hunter2@host/2?cluster=1",
		"Database":         "redis://:hunter2@host/second",
		"CertsWithoutTLS":  "redis://:hunter2@host/?ca=/ca.pem",
		"NoAuthorities":    "rediss://:hunter2@host/?ca=/does/not/exist",
		"NoCertificate":    "rediss://:hunter2@host/?cert=/does/not/exist&key=/does/not/exist",
		"Escapes":          "redis://:hunter2@host/?db=%zz",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := cache.Open(bad, "test")
			require.Error(t, err)
			require.NotErrorIs(t, err, cache.ErrAway)
			require.Nil(t, c)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func ping(t *testing.T, c rueidis.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return c.Do(ctx, c.B().Set().Key("a").Value("1").Ex(time.Minute).Build()).Error()
}

// A cluster that is away when the process starts is used when it comes. Its first
// address is a proxy that is not there yet.
func TestClusterAwayAndBack(t *testing.T) {
	t.Parallel()
	nodes, err := url.Parse(testkit.RedisCluster(t))
	require.NoError(t, err)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())

	c, err := cache.Open("redis://"+address+"?cluster=1", "test")
	require.ErrorIs(t, err, cache.ErrAway)
	require.NotNil(t, c)
	defer c.Close()
	require.Error(t, ping(t, c))
	early := c.B().Get().Key("a").Build() // made while it is away

	proxy(t, address, nodes.Host)
	require.Eventually(t, func() bool { return ping(t, c) == nil }, patience, often, "it connects")
	require.Len(t, c.Nodes(), 3, "the masters")
	_ = c.Do(t.Context(), early).Error() // may fail, and must do nothing worse
	s := newSource(map[string]int{"a": 1, "b": 2, "c": 3})
	hot := newCache(t, c, numbers(s))
	for range 2 {
		got, err := hot.GetMany(t.Context(), []string{"a", "b", "c"})
		require.NoError(t, err)
		require.Len(t, got, 3)
	}
	require.EqualValues(t, 3, s.keys.Load())
}

// proxy forwards what comes to one address to another, until the test ends.
func proxy(t *testing.T, from, to string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", from)
	require.NoError(t, err)
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { forward(ctx, in, to) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		conns.Wait()
	})
}

func forward(ctx context.Context, in net.Conn, to string) {
	var d net.Dialer
	out, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		_ = in.Close()
		return
	}
	closeBoth := sync.OnceFunc(func() { _ = in.Close(); _ = out.Close() })
	defer context.AfterFunc(ctx, closeBoth)()
	defer closeBoth()
	var copying sync.WaitGroup
	copying.Go(func() { defer closeBoth(); _, _ = io.Copy(out, in) })
	_, _ = io.Copy(in, out)
	closeBoth()
	copying.Wait()
}

func TestTLSAndLogin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	testkit.PrivateRedis(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert,
		"--user", "alice", "on", ">secret", "~*", "+@all")

	good := "rediss://alice:secret@127.0.0.1:" + port + "/1?ca=" + url.QueryEscape(cert) + "&cert=" + url.QueryEscape(cert) + "&key=" + url.QueryEscape(key)
	c := open(t, good)
	require.NoError(t, ping(t, c))
	list, err := c.Do(t.Context(), c.B().Arbitrary("CLIENT", "INFO").Build()).ToString()
	require.NoError(t, err)
	require.Contains(t, list, "user=alice")
	require.Contains(t, list, "db=1")
	require.Contains(t, list, "name=test")

	away, err := cache.Open("rediss://alice:secret@127.0.0.1:"+port+"/", "test")
	require.ErrorIs(t, err, cache.ErrAway, "the authority is not one of the system's")
	away.Close()
}

// selfSigned makes a certificate for 127.0.0.1 that is its own authority.
func selfSigned(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	rawKey, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}), 0o600))
	return certFile, keyFile
}
