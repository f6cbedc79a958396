package manifests_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/parleychat/parley/tools/manifests/tree"
)

type field struct {
	Name             string
	Required, Secret bool
}

type program struct {
	Fields []field
	Faults string
}

// probe is the program of testdata/probe with all services of the tree in it,
// built in the workspace. TestMain removes it.
var probe = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	domains, err := tree.Domains(root)
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS("testdata/probe")); err != nil {
		return "", fmt.Errorf("copy the probe: %w", err)
	}
	var source strings.Builder
	source.WriteString("package main\n\nimport (\n\t\"github.com/parleychat/parley/gateway\"\n\t\"github.com/parleychat/parley/pkg/service\"\n")
	for _, d := range domains {
		fmt.Fprintf(&source, "\t%q\n", "github.com/parleychat/parley/services/"+d)
	}
	source.WriteString(")\n\nfunc gatewaySettings() []any { return []any{&gateway.ProcessConfig{}, &gateway.Config{}} }\n\n")
	source.WriteString("func definitions() []service.Definition {\n\treturn []service.Definition{\n")
	for _, d := range domains {
		fmt.Fprintf(&source, "\t\t%s.Definition(),\n", d)
	}
	source.WriteString("\t}\n}\n")
	if err := os.WriteFile(filepath.Join(dir, "domains.go"), []byte(source.String()), 0o600); err != nil {
		return "", fmt.Errorf("write the list of services: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", fmt.Errorf("list the probe: %w", err)
	}
	workspace, err := filepath.Abs(filepath.Join(root, "go.work"))
	if err != nil {
		return "", fmt.Errorf("find the workspace: %w", err)
	}
	binary := filepath.Join(dir, "probe")
	build := exec.Command("go", append([]string{"build", "-o", binary}, files...)...) //nolint:gosec // G204: our own files
	build.Dir, build.Env = root, append(os.Environ(), "GOWORK="+workspace)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binary, err := probe(); err == nil {
		_ = os.RemoveAll(filepath.Dir(binary)) // a folder of temporary files
	}
	os.Exit(code)
}

// ask runs the probe.
func ask(t *testing.T, command string, question, answer any) {
	t.Helper()
	binary, err := probe()
	require.NoError(t, err)
	in, err := json.Marshal(question)
	require.NoError(t, err)
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, command) //nolint:gosec // G204: our own program
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errOut
	require.NoError(t, cmd.Run(), errOut.String())
	require.NoError(t, json.Unmarshal(out.Bytes(), answer))
}

// environment is what the one container of a deployment gets: values, those from
// secrets included where the overlay has them, and the names of the secret ones.
func environment(t *testing.T, o overlay, name string) (values map[string]string, secret map[string]bool) {
	t.Helper()
	values, secret = map[string]string{}, map[string]bool{}
	c := find[*appsv1.Deployment](t, o, name).Spec.Template.Spec.Containers[0]
	for _, from := range c.EnvFrom {
		switch {
		case from.ConfigMapRef != nil:
			config := find[*corev1.ConfigMap](t, o, from.ConfigMapRef.Name)
			for variable, value := range config.Data {
				values[variable] = value
			}
		case from.SecretRef != nil:
			for variable, value := range secretData(t, o, from.SecretRef.Name) {
				assert.NotContains(t, values, variable, "%s: a secret hides a value of the ConfigMap", name)
				values[variable], secret[variable] = value, true
			}
		}
	}
	for _, e := range c.Env {
		if e.Name != "GOMEMLIMIT" { // Go's own
			values[e.Name] = e.Value
		}
	}
	return values, secret
}

func secretData(t *testing.T, o overlay, name string) map[string]string {
	t.Helper()
	for _, s := range o.sealed {
		if s.Name == name {
			return s.Spec.EncryptedData
		}
	}
	data := map[string]string{}
	for variable, value := range find[*corev1.Secret](t, o, name).Data {
		data[variable] = string(value)
	}
	return data
}

// The programs start with what the overlay for development gives them.
func TestSettingsOfDevelopmentAreTaken(t *testing.T) {
	t.Parallel()
	o := overlays(t)["dev"]
	question := map[string]map[string]string{}
	for _, name := range append(domains(t), "gateway") {
		question[name], _ = environment(t, o, name)
	}
	var answer map[string]program
	ask(t, "settings", question, &answer)
	for name := range question {
		require.Contains(t, answer, name)
		assert.Empty(t, answer[name].Faults, name)
	}
}

// Production names every setting that has to be there and none that the program
// does not know; what is secret is in a secret, whose values are not in this tree.
func TestSettingsOfProductionAreComplete(t *testing.T) {
	t.Parallel()
	o := overlays(t)["production"]
	var answer map[string]program
	ask(t, "settings", map[string]any{}, &answer)
	for _, name := range append(domains(t), "gateway") {
		values, secret := environment(t, o, name)
		known := map[string]bool{}
		for _, f := range answer[name].Fields {
			known[f.Name] = true
			if f.Required {
				assert.Contains(t, values, f.Name, "%s does not start without it", name)
			}
			if _, set := values[f.Name]; f.Secret && set {
				assert.True(t, secret[f.Name], "%s belongs into a secret", f.Name)
			}
		}
		for variable := range values {
			assert.True(t, known[variable], "%s does not know %s and refuses to start", name, variable)
		}
	}
}

func TestProductionHoldsNoSecrets(t *testing.T) {
	t.Parallel()
	o := overlays(t)["production"]
	assert.Empty(t, all[*corev1.Secret](o))
	require.NotEmpty(t, o.sealed)
	for _, s := range o.sealed {
		assert.Equal(t, s.Name, s.Spec.Template.Name)
		for key, value := range s.Spec.EncryptedData {
			assert.Empty(t, value, "%s of %s", key, s.Name)
		}
	}
	for _, text := range o.texts {
		assert.NotContains(t, text, "CLOCK_OFFSET", "for tests only")
		assert.NotContains(t, text, "INSECURE", "for tests only")
	}
}

// The kernel kills only who has had all the time that the program gives itself.
func TestShutdownFitsTheGracePeriod(t *testing.T) {
	t.Parallel()
	const phases, slack = 5, 3 * time.Second // of pkg/lifecycle and pkg/service
	o := overlays(t)["production"]
	for _, name := range domains(t) {
		values, _ := environment(t, o, name)
		prefix := "PARLEY_" + strings.ToUpper(name) + "_"
		delay, err := time.ParseDuration(values[prefix+"DRAIN_DELAY"])
		require.NoError(t, err, name)
		stop, err := time.ParseDuration(values[prefix+"STOP_TIMEOUT"])
		require.NoError(t, err, name)
		pod := find[*appsv1.Deployment](t, o, name).Spec.Template.Spec
		grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
		assert.GreaterOrEqual(t, grace, delay+phases*(stop+slack), name)
		// Callers look names up every five seconds and names are cached for as long.
		assert.GreaterOrEqual(t, delay, 10*time.Second, name)
	}
}
