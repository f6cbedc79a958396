package manifests_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

var (
	listener = regexp.MustCompile(`event\.On(?:\[[^\]]*\])?\(\s*"([a-z_]+)"`)
	source   = regexp.MustCompile(`\bSource:\s*"([a-z_]+)"`)
	// What pkg/erasure hides: who forgets listens to user, who keeps the ledger to all.
	forgets  = regexp.MustCompile(`erasure\.Listener\(`)
	reports  = regexp.MustCompile(`erasure\.Reported\(`)
	userLine = regexp.MustCompile(`(?m)^\s*user:\s*([a-z_]+)\s*$`)
)

// sources are the domains that a service listens to, by its code.
func sources(t *testing.T, domain string) []string {
	t.Helper()
	names := []string{}
	for _, path := range glob(t, "services/"+domain+"/*.go") {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		if reports.Match(text) {
			names = append(names, domains(t)...) // whoever forgets people reports it
		}
		if forgets.Match(text) {
			names = append(names, "user") // of user.deleted
		}
		for _, match := range slices.Concat(listener.FindAllStringSubmatch(string(text), -1), source.FindAllStringSubmatch(string(text), -1)) {
			names = append(names, match[1])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// mailers are the services that send mails, by their code: each has a queue of its own.
func mailers(t *testing.T) []string {
	t.Helper()
	names := []string{}
	for _, domain := range domains(t) {
		for _, path := range glob(t, "services/"+domain+"/*.go") {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			if strings.Contains(string(text), "/pkg/mail\"\n") && !slices.Contains(names, domain) {
				names = append(names, domain)
			}
		}
	}
	return names
}

// A real server takes the permissions; each login does what its program does, and
// is refused what is another's.
func TestLoginsOfNATS(t *testing.T) {
	t.Parallel()
	listening := map[string][]string{"gateway": {}}
	for _, name := range domains(t) {
		listening[name] = sources(t, name)
	}
	permissions := read(t, "deploy/nats/permissions.conf")
	var users []string
	for _, match := range userLine.FindAllStringSubmatch(permissions, -1) {
		users = append(users, match[1])
	}
	assert.ElementsMatch(t, append(domains(t), "gateway", "operator"), users, "one login each")
	var faults []string
	ask(t, "nats", map[string]any{"Permissions": permissions, "Sources": listening, "Mailers": mailers(t)}, &faults)
	assert.Empty(t, faults)
}

// What the durability of events in production rests on.
func TestProductionNATSIsDurable(t *testing.T) {
	t.Parallel()
	o := overlays(t)["production"]
	server := find[*appsv1.StatefulSet](t, o, "nats")
	assert.Equal(t, int32(3), *server.Spec.Replicas)
	assert.NotEmpty(t, server.Spec.Template.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
	config := find[*corev1.ConfigMap](t, o, "nats").Data
	assert.Regexp(t, `(?m)^\s*sync_interval: always$`, config["nats.conf"])
	assert.Regexp(t, `(?m)^include permissions.conf$`, config["nats.conf"])
	assert.Equal(t, read(t, "deploy/nats/permissions.conf"), config["permissions.conf"])
	for _, name := range domains(t) {
		values, _ := environment(t, o, name)
		assert.Equal(t, "3", values["PARLEY_"+strings.ToUpper(name)+"_NATS_REPLICAS"], name)
	}
}

// provision.sql says in SQL what EnsureService says in Go.
func TestProvisionMatchesEnsureService(t *testing.T) {
	t.Parallel()
	code := read(t, filepath.Join("pkg", "postgres", "provision.go"))
	script := read(t, "deploy/postgres/provision.sql")
	settings := regexp.MustCompile(`\{"(\w+)", "(\w+)"\}`).FindAllStringSubmatch(code, -1)
	require.NotEmpty(t, settings)
	for _, s := range settings {
		assert.Contains(t, script, "SET "+s[1]+" = '"+s[2]+"';")
	}
	assert.Equal(t, len(settings)+1, strings.Count(script, `ALTER ROLE :"role" SET `), "the limits and search_path")
}
