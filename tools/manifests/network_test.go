package manifests_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

var callersOption = regexp.MustCompile(`internal_callers\)\s*=\s*"([a-z_]+)"`)

// callers are the services that may call a domain, by the protos: the closed list.
func callers(t *testing.T, domain string) []string {
	t.Helper()
	var names []string
	for _, path := range glob(t, "proto/parley/"+domain+"/v1/*.proto") {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, match := range callersOption.FindAllStringSubmatch(string(text), -1) {
			names = append(names, match[1])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// open tells whether the policies let the pods of one program reach a port of
// another's: the way out and the way in have both to be open.
func open(t *testing.T, o overlay, from, to string, port int32) bool {
	t.Helper()
	out, in := ways(t, o, from, to, port)
	return out && in
}

func ways(t *testing.T, o overlay, from, to string, port int32) (out, in bool) {
	t.Helper()
	source, target := podLabels(t, o, from), podLabels(t, o, to)
	for _, policy := range all[*networkingv1.NetworkPolicy](o) {
		if selects(t, &policy.Spec.PodSelector, source) {
			for _, rule := range policy.Spec.Egress {
				out = out || (ports(rule.Ports, port) && peers(t, rule.To, target))
			}
		}
		if selects(t, &policy.Spec.PodSelector, target) {
			for _, rule := range policy.Spec.Ingress {
				in = in || (ports(rule.Ports, port) && (len(rule.From) == 0 || peers(t, rule.From, source)))
			}
		}
	}
	return out, in
}

func podLabels(t *testing.T, o overlay, name string) labels.Set {
	t.Helper()
	for _, s := range all[*appsv1.StatefulSet](o) {
		if s.Name == name {
			return s.Spec.Template.Labels
		}
	}
	return find[*appsv1.Deployment](t, o, name).Spec.Template.Labels
}

func selects(t *testing.T, selector *metav1.LabelSelector, set labels.Set) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	require.NoError(t, err)
	return s.Matches(set)
}

func ports(rules []networkingv1.NetworkPolicyPort, port int32) bool {
	return slices.ContainsFunc(rules, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == port })
}

func peers(t *testing.T, list []networkingv1.NetworkPolicyPeer, set labels.Set) bool {
	t.Helper()
	return slices.ContainsFunc(list, func(p networkingv1.NetworkPolicyPeer) bool {
		return p.NamespaceSelector == nil && p.PodSelector != nil && selects(t, p.PodSelector, set)
	})
}

// Networks, addresses and keys follow the closed list of the protos.
func TestNetworkIsTheClosedList(t *testing.T) {
	t.Parallel()
	o := overlays(t)["production"]
	names := domains(t)
	edge, _ := environment(t, o, "gateway")
	for _, callee := range names {
		assert.True(t, open(t, o, "gateway", callee, 8080), "the gateway routes to %s", callee)
		assert.Contains(t, pairs(edge["PARLEY_GATEWAY_BACKENDS"]), callee)
		allowed := callers(t, callee)
		own, secret := environment(t, o, callee)
		keys := "PARLEY_" + strings.ToUpper(callee) + "_SERVICE_PUBLIC_KEYS"
		_, listed := own[keys]
		assert.Equal(t, len(allowed) > 0, listed || secret[keys], "%s: set where the protos name internal_callers", keys)
		for _, caller := range names {
			values, _ := environment(t, o, caller)
			may := slices.Contains(allowed, caller)
			backends := pairs(values["PARLEY_"+strings.ToUpper(caller)+"_BACKENDS"])
			assert.Equal(t, may, slices.Contains(backends, callee), "BACKENDS of %s and internal_callers of %s", caller, callee)
			// Everybody fetches the key set of auth.
			out, in := ways(t, o, caller, callee, 8080)
			assert.Equal(t, may || callee == "auth", out, "network.yaml of %s: egress to %s", caller, callee)
			assert.Equal(t, may || callee == "auth", in, "network.yaml of %s: ingress from %s", callee, caller)
		}
	}
}

// user has every service forget who is deleted, and asks every one for exports: what
// it is told are the services that there are.
func TestUserKnowsAllServices(t *testing.T) {
	t.Parallel()
	for name, o := range overlays(t) {
		values, _ := environment(t, o, "user")
		assert.Equal(t, domains(t), strings.Split(values["PARLEY_USER_SERVICES"], ","), "%s: deploy/k8s/base/user/config.env", name)
	}
}

func pairs(setting string) []string {
	var names []string
	for pair := range strings.SplitSeq(setting, ",") {
		if name, _, ok := strings.Cut(pair, "="); ok {
			names = append(names, name)
		}
	}
	return names
}

func TestNetworkDeniesByDefault(t *testing.T) {
	t.Parallel()
	for name, o := range overlays(t) {
		deny := find[*networkingv1.NetworkPolicy](t, o, "deny")
		assert.Equal(t, metav1.LabelSelector{}, deny.Spec.PodSelector, name)
		assert.Len(t, deny.Spec.PolicyTypes, 2, name)
		assert.Empty(t, deny.Spec.Ingress, name)
		assert.Empty(t, deny.Spec.Egress, name)
		for _, program := range append(domains(t), "gateway") {
			assert.True(t, open(t, o, program, "nats", 4222), "%s: %s reaches NATS", name, program)
			if name == "dev" {
				assert.Equal(t, program != "gateway", open(t, o, program, "postgres", 5432), "%s and PostgreSQL", program)
			}
		}
	}
}

// One variable of the ConfigMap of each program says where it listens, if any: the
// ports of the manifests are the defaults.
func TestPortsAreTheDefaults(t *testing.T) {
	t.Parallel()
	for _, o := range overlays(t) {
		for _, config := range all[*corev1.ConfigMap](o) {
			for variable := range config.Data {
				assert.NotRegexp(t, `_LISTEN$`, variable)
			}
		}
	}
}
