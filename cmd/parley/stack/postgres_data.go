package stack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// reachableRoot is where the database of root lies when the folder that was asked for is closed to the
// server's user, as everything below a 0700 home is.
const reachableRoot = "/var/lib/parley"

// postgresHome returns the folder for the database files, the password and the log: below dir, or a fixed
// other place, said in the log, when the account cannot reach dir.
func postgresHome(ctx context.Context, dir string, as account, log *slog.Logger) (string, error) {
	home := filepath.Join(dir, "postgres")
	if !as.reaches(ctx, dir) {
		home = movedHome(dir)
		log.WarnContext(ctx, "the data folder is closed to the user that PostgreSQL runs as; its data lies elsewhere",
			"asked", dir, "used", home, "user", as.name)
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return "", fmt.Errorf("create the PostgreSQL folder: %w", err)
	}
	if err := as.own(home); err != nil {
		return "", err
	}
	if !as.reaches(ctx, home) {
		return "", fmt.Errorf("%s cannot reach %s: open its parent folders (chmod o+x) or choose another data folder", as.name, home)
	}
	return home, nil
}

func movedHome(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(reachableRoot, hex.EncodeToString(sum[:8]))
}

// Wipe removes everything that stacks kept for dir, also what had to be kept elsewhere.
//
// Errors: ErrInUse while a stack runs on the folder.
func Wipe(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolve the data folder: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(dir, "postgres"), filepath.Join(dir, "nats"), movedHome(dir)} {
		if errRemove := os.RemoveAll(path); errRemove != nil {
			err = errors.Join(err, fmt.Errorf("wipe the data folder: %w", errRemove))
		}
	}
	return errors.Join(err, unlockDir(lock))
}

// initialise makes the database cluster when there is none and returns the superuser's password.
//
// A crash half-way is safe: initdb writes beside the final place, and the rename comes after the password
// file, so a cluster in its place always has its password.
func (c cluster) initialise(ctx context.Context) (string, error) {
	if _, err := os.Stat(c.data()); err == nil {
		raw, err := os.ReadFile(c.passFile())
		if err != nil {
			return "", fmt.Errorf("read the PostgreSQL password: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for the database files: %w", err)
	}
	password, err := c.writePassword()
	if err != nil {
		return "", err
	}
	fresh := c.data() + ".new"
	// C.UTF-8 sorts by bytes and still knows upper and lower case; not every system has it.
	out, err := c.initdb(ctx, fresh, "C.UTF-8")
	if err != nil && strings.Contains(out, "locale") {
		out, err = c.initdb(ctx, fresh, "C")
	}
	if err != nil {
		return "", fmt.Errorf("create the database files with initdb: %w: %s", err, out)
	}
	if !c.volatile {
		if out, err := c.layLogAhead(ctx, fresh); err != nil {
			return "", fmt.Errorf("lay the PostgreSQL log ahead: %w: %s", err, out)
		}
	}
	if err := os.Rename(fresh, c.data()); err != nil {
		return "", fmt.Errorf("put the database files in place: %w", err)
	}
	return password, nil
}

func (c cluster) writePassword() (string, error) {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails, by its documentation
	password := hex.EncodeToString(secret)
	if err := os.WriteFile(c.passFile(), []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the PostgreSQL password: %w", err)
	}
	// initdb reads the file as the server's user.
	return password, c.as.own(c.passFile())
}

func (c cluster) initdb(ctx context.Context, target, locale string) (string, error) {
	if err := os.RemoveAll(target); err != nil {
		return "", err
	}
	args := []string{
		"-D", target, "-U", superuser, "-A", "scram-sha-256", "--pwfile", c.passFile(),
		"--encoding", "UTF8", "--locale", locale,
	}
	if c.volatile {
		args = append(args, "--no-sync")
	}
	out, err := c.as.attach(exec.CommandContext(ctx, filepath.Join(c.bin, "initdb"), args...)).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// layLogAhead fills the files of the write-ahead log that a young server would make while it serves: the commit
// that needs the next one waits until 16 MB of zeros are on disk, 30 to 60 ms, and whoever commits waits with it.
// Files that were used are kept for the next round by the checkpoint that ends this single-user server; an older
// server always has some.
func (c cluster) layLogAhead(ctx context.Context, target string) (string, error) {
	args := append([]string{"--single", "-D", target, "-c", "exit_on_error=on"}, c.logSettings()...)
	cmd := c.as.attach(exec.CommandContext(ctx, filepath.Join(c.bin, "postgres"), append(args, "postgres")...))
	cmd.Stdin = strings.NewReader(fmt.Sprintf( // a file that nothing was written to is not left for the next
		"SELECT pg_logical_emit_message(false, 'ahead', ''), pg_switch_wal() FROM generate_series(1, %d)\n", logAheadFiles))
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// endOrphan stops a postmaster that outlived its stack (a kill -9 where the kernel cannot pass it on, or one
// that is still stopping). The caller holds the folder's lock, so whoever runs here is nobody's.
func (c cluster) endOrphan(ctx context.Context) error {
	lines := c.pidFile()
	if len(lines) == 0 {
		return c.forgetPID()
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil || pid <= 1 || !c.isPostmaster(ctx, pid) {
		// The number belongs to nobody or to somebody else. Left alone, PostgreSQL would refuse to start when a
		// process of the same user carries it, as it happens in containers where numbers repeat.
		return c.forgetPID()
	}
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	_ = syscall.Kill(pid, syscall.SIGINT)
	for c.isPostmaster(ctx, pid) {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return c.forgetPID()
		}
	}
	return nil
}

// forgetPID removes the lock files of a server that has gone: its pid file and those of its sockets, which lie in
// the same folder. PostgreSQL believes them as long as a process of that number exists, be it a zombie.
func (c cluster) forgetPID() error {
	stale, err := filepath.Glob(filepath.Join(c.data(), ".s.PGSQL.*"))
	for _, path := range append(stale, filepath.Join(c.data(), "postmaster.pid")) {
		if errRemove := os.Remove(path); errRemove != nil && !errors.Is(errRemove, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove a stale PostgreSQL lock file: %w", errRemove))
		}
	}
	return err
}

// isPostmaster says whether pid is a server that was started on these database files.
func (c cluster) isPostmaster(ctx context.Context, pid int) bool {
	var command []byte
	var err error
	if runtime.GOOS == "linux" {
		command, err = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	} else {
		command, err = exec.CommandContext(ctx, "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	}
	return err == nil && strings.Contains(string(command), c.data())
}
