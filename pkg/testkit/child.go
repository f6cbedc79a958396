package testkit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startWithin is how long a child may take to be ready, on a machine that is busy with other tests.
	startWithin = 90 * time.Second
	// stopWithin is how long it may take to end.
	stopWithin = 20 * time.Second
	stackMain  = "./stack/cmd/parley-stack"
)

// child is a running `parley stack`.
type child struct {
	endpoints endpoints

	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *os.File
}

// startChild builds the stack program when needed, starts it with args and waits until its servers are ready.
func startChild(args ...string) (*child, error) {
	program, err := stackProgram()
	if err != nil {
		return nil, err
	}
	// A file, not a pipe: a pipe needs a goroutine, and an inherited one would keep `go test` waiting.
	stderr, err := os.CreateTemp("", "parley-stack-stderr-")
	if err != nil {
		return nil, fmt.Errorf("create a file for the stack's messages: %w", err)
	}
	_ = os.Remove(stderr.Name()) // the open file stays usable, and nothing stays behind
	cmd := exec.Command(program, args...)
	cmd.Stderr = stderr
	// In a process group of its own, so that the kernel wakes a child that a test has paused and hangs up on it
	// when this process is killed: a stopped process cannot see that its standard input has ended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("connect to the stack: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("connect to the stack: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the stack: %w", err)
	}
	c := &child{cmd: cmd, stdin: stdin, stderr: stderr}
	late := time.AfterFunc(startWithin, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &c.endpoints)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("the stack did not become ready (%w): %s", err, c.messages())
	}
	return c, nil
}

// messages is what the child wrote to its standard error.
func (c *child) messages() string {
	raw, err := io.ReadAll(io.NewSectionReader(c.stderr, 0, 1<<20))
	if err != nil {
		return "its messages cannot be read: " + err.Error()
	}
	return strings.TrimSpace(string(raw))
}

// stop ends the child in order and waits for it. Stopping a child that has ended is not an error.
func (c *child) stop() error {
	_ = c.stdin.Close()
	return c.reap()
}

// reap waits until the child has ended, and kills it when it takes too long. Its exit code is of no interest:
// a child that was killed has a bad one.
func (c *child) reap() error {
	tooLong := time.AfterFunc(stopWithin, func() { _ = c.cmd.Process.Kill() })
	_ = c.cmd.Wait()
	err := c.stderr.Close()
	_ = c.stdin.Close()
	if !tooLong.Stop() {
		return errors.Join(fmt.Errorf("the stack did not end within %s and was killed", stopWithin), err)
	}
	return err
}

// signal sends s to the process with the embedded servers.
func (c *child) signal(s syscall.Signal) error { return signalProcess(c.cmd.Process, s) }

// signalProcess sends s to a child of this process. After SIGSTOP it returns when all threads of the
// child stand still: until then one of them may answer what was sent after the signal.
func signalProcess(p *os.Process, s syscall.Signal) error {
	if err := p.Signal(s); err != nil || s != syscall.SIGSTOP {
		return err
	}
	var status syscall.WaitStatus
	for {
		switch _, err := syscall.Wait4(p.Pid, &status, syscall.WUNTRACED, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait until the process stands still: %w", err)
		case status.Stopped():
			return nil
		default:
			return fmt.Errorf("the process ended with status %d instead of standing still", status)
		}
	}
}

// stackProgram builds the stack into bin/ of the repository and returns its path. Test binaries that start
// at the same time build one after the other; all but the first find it done by the build cache.
var stackProgram = sync.OnceValues(func() (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("create bin/: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(bin, "parley-stack.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("open the build lock: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("take the build lock: %w", err)
	}
	program := filepath.Join(bin, "parley-stack")
	// Without the stamp of the commit, which would force a new link after each one.
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, stackMain)
	cmd.Dir = filepath.Join(root, "cmd", "parley")
	cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the stack: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return program, nil
})

// repositoryRoot is the nearest folder above the test's that holds go.work.
func repositoryRoot() (string, error) {
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
