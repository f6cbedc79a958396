package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the operating-system user that PostgreSQL runs as. A nil credential means: as ourselves.
type account struct {
	name       string
	credential *syscall.Credential
}

// serverAccount returns the caller's own account, or, as root, the user postgres, else nobody: PostgreSQL
// refuses to run as root.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: "the current user"}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID != nil || errGID != nil {
			continue
		}
		return account{name: "user " + name, credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, fmt.Errorf("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// own gives path to the account. As a normal user nothing is to be done.
func (a account) own(path string) error {
	if a.credential == nil {
		return nil
	}
	if err := os.Chown(path, int(a.credential.Uid), int(a.credential.Gid)); err != nil {
		return fmt.Errorf("give %s to %s: %w", path, a.name, err)
	}
	return nil
}

// reaches says whether the account can enter dir. The kernel is asked, not the mode bits, so ACLs count too.
func (a account) reaches(ctx context.Context, dir string) bool {
	if a.credential == nil {
		return true
	}
	return a.attach(exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$1"`, "sh", dir)).Run() == nil
}

// attach makes cmd run as the account, in its own process group (a Ctrl-C in the terminal reaches us, and we
// stop it in order), and with an environment in which no PG variable of the caller's shell has a say.
func (a account) attach(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: a.credential}
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	return cmd
}

// process is a started child. done is closed when it has ended; err is valid from then on.
type process struct {
	pid  int
	proc *os.Process
	done chan struct{}
	err  error
}

// launch starts cmd and waits for it in the background. The goroutine keeps its thread until the child has
// ended: the signal that Linux sends on the parent's death is tied to the thread that started the child.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.proc, p.pid = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

var errEnded = errors.New("no connection was accepted")

// await returns when ready says so. A child that is not ready before ctx ends is killed; an error ends with the last it
// has written to its log.
func (p *process) await(ctx context.Context, name string, ready func() bool, logPath string) error {
	for !ready() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while starting (%w): %s", name, errors.Join(p.err, errEnded), logTail(logPath))
		default:
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			_ = p.proc.Kill()
			<-p.done
			return fmt.Errorf("%s was not ready in time (%w): %s", name, err, logTail(logPath))
		}
	}
	return nil
}

func logTail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	const most = 2000
	raw = bytes.TrimSpace(raw)
	return string(raw[max(0, len(raw)-most):])
}

// stopGrace is how long a server may take to end in order before it is killed.
const stopGrace = 10 * time.Second

// stop ends the child by SIGINT, a server's fast stop, and kills it when that takes too long. It is safe to call twice.
func (p *process) stop(name string) error {
	// An error here means that it is gone already.
	_ = p.proc.Signal(syscall.SIGINT)
	timeout := time.NewTimer(stopGrace)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
	}
	_ = p.proc.Kill()
	<-p.done
	return fmt.Errorf("%s did not stop within %s and was killed", name, stopGrace)
}
