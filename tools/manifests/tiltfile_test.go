package manifests_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
)

// call is one call of a function of Tilt.
type call struct {
	args  []string
	named map[string]starlark.Value
}

// runTiltfile runs the Tiltfile with functions that only note their calls. It
// proves the syntax, the names and what is told to Tilt, and nothing of Tilt.
func runTiltfile(t *testing.T) map[string][]call {
	t.Helper()
	calls := map[string][]call{}
	predeclared := starlark.StringDict{}
	for _, name := range []string{"allow_k8s_contexts", "docker_build", "k8s_resource", "k8s_yaml", "kustomize", "local"} {
		predeclared[name] = starlark.NewBuiltin(name, func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			c := call{named: map[string]starlark.Value{}}
			for _, a := range args {
				if s, ok := starlark.AsString(a); ok {
					c.args = append(c.args, s)
				}
			}
			for _, kw := range kwargs {
				c.named[string(kw[0].(starlark.String))] = kw[1] //nolint:forcetypeassert // names are strings
			}
			calls[b.Name()] = append(calls[b.Name()], c)
			return starlark.String(fmt.Sprint(c.args)), nil
		})
	}
	_, err := starlark.ExecFileOptions(&syntax.FileOptions{}, &starlark.Thread{Name: "Tiltfile"}, "Tiltfile", read(t, "Tiltfile"), predeclared)
	require.NoError(t, err)
	return calls
}

func TestTiltfile(t *testing.T) {
	t.Parallel()
	calls := runTiltfile(t)
	images, resources := map[string]call{}, map[string]call{}
	for _, c := range calls["docker_build"] {
		images[c.args[0]] = c
	}
	for _, c := range calls["k8s_resource"] {
		resources[c.args[0]] = c
	}
	programs := append(domains(t), "gateway")
	for _, name := range programs {
		require.Contains(t, images, "parley/"+name, "the Tiltfile has no line for it")
		require.Contains(t, resources, name)
		dockerfile, _ := starlark.AsString(images["parley/"+name].named["dockerfile"])
		checkOnly(t, images["parley/"+name], read(t, dockerfile))
	}
	assert.Len(t, images, len(programs))
	for _, c := range resources {
		for _, dep := range strs(c.named["resource_deps"]) {
			assert.Contains(t, resources, dep)
		}
	}

	// Each workload is a resource under its own name, and nothing else is.
	o := overlays(t)["dev"]
	var workloads []string
	for _, d := range all[*appsv1.Deployment](o) {
		workloads = append(workloads, d.Name)
	}
	for _, s := range all[*appsv1.StatefulSet](o) {
		workloads = append(workloads, s.Name)
	}
	for _, j := range all[*batchv1.Job](o) {
		workloads = append(workloads, j.Name)
	}
	for name := range resources {
		assert.Contains(t, workloads, name)
	}
	assert.Len(t, resources, len(workloads))
	assert.NotEmpty(t, calls["allow_k8s_contexts"])
}

// checkOnly compares what Tilt sends to the build with what the Dockerfile copies.
func checkOnly(t *testing.T, image call, dockerfile string) {
	t.Helper()
	var copied []string
	for line := range strings.Lines(dockerfile) {
		words := strings.Fields(line)
		if len(words) > 2 && words[0] == "COPY" && !strings.HasPrefix(words[1], "--from") {
			for _, source := range words[1 : len(words)-1] {
				copied = append(copied, filepath.Clean(source))
			}
		}
	}
	only := strs(image.named["only"])
	covered := func(path string, by []string) bool {
		return slices.ContainsFunc(by, func(b string) bool { return path == b || strings.HasPrefix(path, b+"/") })
	}
	for _, path := range copied {
		assert.True(t, covered(path, only), "%s is not sent", path)
	}
	for _, path := range only {
		assert.True(t, covered(path, copied), "%s is sent for nothing", path)
	}
}

func strs(v starlark.Value) []string {
	list, ok := v.(*starlark.List)
	if !ok {
		return nil
	}
	var out []string
	for e := range list.Elements() {
		if s, ok := starlark.AsString(e); ok {
			out = append(out, s)
		}
	}
	return out
}
