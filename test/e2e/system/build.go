package system

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// programs are the main packages of the product, as folders of the repository.
var programs = []string{
	"./cmd/parley",
	"./services/auth/cmd/auth", "./services/user/cmd/user", "./services/messaging/cmd/messaging",
	"./gateway/cmd/gateway",
	"./test/e2e/bench/cmd/bare",
}

// envPrograms names a folder with programs that were built before, for example
// those of a release. Without it they are built from the sources as they are now;
// where the tests watch for data races, so do the programs.
const envPrograms = "PARLEY_E2E_PROGRAMS"

// envCover names a folder where the programs leave which code they have run, those
// that end in good order; envCoverPackages says of which packages. See `make cover`.
const (
	envCover         = "PARLEY_E2E_COVER"
	envCoverPackages = "PARLEY_E2E_COVERPKG"
)

func coverage() string { return os.Getenv(envCover) }

// Program returns the path of a program by its name.
func Program(t testing.TB, name string) string {
	t.Helper()
	return program(t, name)
}

func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatalf("build the programs: %v", err)
	}
	return filepath.Join(dir, name)
}

// built builds all programs once per test binary. Test binaries that start at the
// same moment build one after the other; the build cache makes that short.
var built = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(envPrograms); dir != "" {
		return dir, nil
	}
	root, err := repository()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bin", "e2e")
	args := []string{"build", "-buildvcs=false"} // a stamp of the commit would force a link after each one
	if watchesRaces {
		dir += "-race"
		args = append(args, "-race")
	}
	if coverage() != "" {
		dir += "-cover"
		args = append(args, "-cover", "-covermode=atomic", "-coverpkg="+os.Getenv(envCoverPackages))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create %s: %w", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("open the build lock: %w", err)
	}
	defer func() { _ = lock.Close() }() // releases the lock; nothing was written
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("take the build lock: %w", err)
	}
	cmd := exec.Command("go", append(append(args, "-o", dir+"/"), programs...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return dir, nil
})

// repository is the nearest folder above this one that holds go.work.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the repository: no go.work above the test's folder")
		}
		dir = parent
	}
}
