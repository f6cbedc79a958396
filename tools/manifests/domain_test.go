package manifests_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
)

func TestDomain(t *testing.T) {
	t.Parallel()
	production := overlays(t)["production"]
	for _, name := range append(domains(t), "gateway") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			deployment := find[*appsv1.Deployment](t, production, name)
			checkDeployment(t, deployment)
			checkService(t, find[*corev1.Service](t, production, name), deployment, name == "gateway")

			budget := find[*policyv1.PodDisruptionBudget](t, production, name)
			assert.Equal(t, deployment.Spec.Selector, budget.Spec.Selector)
			scaler := find[*autoscalingv2.HorizontalPodAutoscaler](t, production, name)
			assert.Equal(t, name, scaler.Spec.ScaleTargetRef.Name)
			assert.GreaterOrEqual(t, *scaler.Spec.MinReplicas, int32(2), "one replica is an outage at each release")
			policy := find[*networkingv1.NetworkPolicy](t, production, name)
			assert.Equal(t, *deployment.Spec.Selector, policy.Spec.PodSelector)
			assert.ElementsMatch(t, []networkingv1.PolicyType{"Ingress", "Egress"}, policy.Spec.PolicyTypes)
			account := find[*corev1.ServiceAccount](t, production, name)
			assert.False(t, *account.AutomountServiceAccountToken)

			if name != "gateway" {
				checkMigration(t, find[*batchv1.Job](t, production, name+"-migrate"), deployment, budget)
			}
		})
	}
}

func checkDeployment(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	pod := d.Spec.Template.Spec
	assert.Nil(t, d.Spec.Replicas, "the number is the autoscaler's")
	assert.Equal(t, int32(0), d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntVal)
	assert.Equal(t, d.Name, pod.ServiceAccountName)
	assert.NotEmpty(t, pod.TopologySpreadConstraints)
	assert.Equal(t, "run", d.Labels["parley/step"])
	require.Len(t, pod.Containers, 1)
	c := pod.Containers[0]
	assert.Equal(t, "parley/"+d.Name+":unset", c.Image, "there is no default image")

	for probe, path := range map[*corev1.Probe]string{c.StartupProbe: "/livez", c.LivenessProbe: "/livez", c.ReadinessProbe: "/readyz"} {
		require.NotNil(t, probe)
		require.NotNil(t, probe.HTTPGet)
		assert.Equal(t, path, probe.HTTPGet.Path)
		assert.Equal(t, "admin", probe.HTTPGet.Port.StrVal)
	}
	assert.Contains(t, c.Ports, corev1.ContainerPort{Name: "rpc", ContainerPort: 8080})
	assert.Contains(t, c.Ports, corev1.ContainerPort{Name: "admin", ContainerPort: 9090})
	assert.NotZero(t, c.Resources.Requests.Cpu().Value())
	assert.NotZero(t, c.Resources.Limits.Memory().Value())
}

func checkService(t *testing.T, s *corev1.Service, d *appsv1.Deployment, edge bool) {
	t.Helper()
	assert.Equal(t, d.Spec.Selector.MatchLabels, s.Spec.Selector)
	if edge {
		assert.Equal(t, corev1.ServiceTypeLoadBalancer, s.Spec.Type)
		return
	}
	assert.Equal(t, corev1.ClusterIPNone, s.Spec.ClusterIP, "callers balance over the addresses of the name")
	assert.False(t, s.Spec.PublishNotReadyAddresses)
}

func checkMigration(t *testing.T, job *batchv1.Job, d *appsv1.Deployment, budget *policyv1.PodDisruptionBudget) {
	t.Helper()
	pod := job.Spec.Template.Spec
	require.Len(t, pod.Containers, 1)
	assert.Equal(t, []string{"migrate"}, pod.Containers[0].Args)
	assert.Equal(t, d.Spec.Template.Spec.Containers[0].Image, pod.Containers[0].Image)
	assert.Equal(t, "migrate", job.Labels["parley/step"])
	for label, value := range budget.Spec.Selector.MatchLabels {
		assert.NotEqual(t, value, job.Spec.Template.Labels[label], "the Service would send calls to the migration")
	}
}

// pods are the templates of everything that runs, by kind and name.
func pods(o overlay) map[string]corev1.PodTemplateSpec {
	found := map[string]corev1.PodTemplateSpec{}
	for _, d := range all[*appsv1.Deployment](o) {
		found["Deployment "+d.Name] = d.Spec.Template
	}
	for _, s := range all[*appsv1.StatefulSet](o) {
		found["StatefulSet "+s.Name] = s.Spec.Template
	}
	for _, j := range all[*batchv1.Job](o) {
		found["Job "+j.Name] = j.Spec.Template
	}
	return found
}

// What the Pod Security Standard "restricted" of the namespace asks for, and more.
func TestPodsAreRestricted(t *testing.T) {
	t.Parallel()
	for overlay, o := range overlays(t) {
		assert.Equal(t, "restricted", find[*corev1.Namespace](t, o, "parley").Labels["pod-security.kubernetes.io/enforce"])
		for name, template := range pods(o) {
			what := overlay + ": " + name
			pod := template.Spec
			require.NotNil(t, pod.AutomountServiceAccountToken, what)
			assert.False(t, *pod.AutomountServiceAccountToken, what)
			require.NotNil(t, pod.EnableServiceLinks, what)
			assert.False(t, *pod.EnableServiceLinks, what)
			require.NotNil(t, pod.SecurityContext, what)
			assert.True(t, *pod.SecurityContext.RunAsNonRoot, what)
			assert.NotZero(t, *pod.SecurityContext.RunAsUser, what)
			assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type, what)
			for _, c := range append(pod.InitContainers, pod.Containers...) {
				require.NotNil(t, c.SecurityContext, what)
				assert.False(t, *c.SecurityContext.AllowPrivilegeEscalation, what)
				assert.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, what)
				assert.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop, what)
				assert.NotContains(t, c.Image, ":latest", what)
			}
		}
	}
}
