package manifests_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// One Dockerfile for all services: they differ in the name alone.
func TestDockerfilesAreOfOneForm(t *testing.T) {
	t.Parallel()
	form := func(name string) string {
		text := read(t, filepath.Join("services", name, "Dockerfile"))
		return regexp.MustCompile(`\b`+regexp.QuoteMeta(name)+`\b`).ReplaceAllString(text, "NAME")
	}
	names := domains(t)
	for _, name := range names {
		assert.Equal(t, form(names[0]), form(name), name)
	}

	// The gateway's differs by its module: no folder of services around it.
	service := instructions(form(names[0]))
	service = strings.NewReplacer("services/NAME", "NAME", "-C services", "-C NAME", "services/go", "NAME/go", "services/", "NAME/", "./NAME/cmd", "./cmd").Replace(service)
	gateway := strings.ReplaceAll(instructions(read(t, "gateway/Dockerfile")), "gateway", "NAME")
	assert.Equal(t, service, gateway)
}

// instructions leaves out comments and empty lines.
func instructions(dockerfile string) string {
	var kept strings.Builder
	for line := range strings.Lines(dockerfile) {
		if text := strings.TrimSpace(line); text != "" && !strings.HasPrefix(text, "#") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestDockerfileIsSafe(t *testing.T) {
	t.Parallel()
	goVersion := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(read(t, "go.work"))
	require.NotNil(t, goVersion)
	for _, path := range append(glob(t, "services/*/Dockerfile"), filepath.Join(root, "gateway/Dockerfile")) {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		text := instructions(string(raw))
		assert.Contains(t, text, "golang:"+goVersion[1]+"-", "%s: another Go than go.work", path)
		_, final, ok := strings.Cut(text, "\nFROM scratch\n")
		require.True(t, ok, path)
		assert.NotContains(t, final, "RUN ", "%s: there is no shell", path)
		assert.Contains(t, final, "\nUSER 65532:65532\n", path)
		assert.Contains(t, text, "GOWORK=off", path)
		assert.Contains(t, text, "CGO_ENABLED=0", path)
		assert.Contains(t, text, "-trimpath", path)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	require.NoError(t, err)
	return paths
}
