package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// installed is a server that is a program of the machine, not of this repository.
type installed struct {
	// program is its name; env names the folder that holds it when the path does not; ensure installs it.
	program, env, ensure string
}

// find returns the program's path, or fails the test with the command that installs it.
func (i installed) find(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(i.env); dir != "" {
		return filepath.Join(dir, i.program)
	}
	if path, err := exec.LookPath(i.program); err == nil {
		return path
	}
	// Debian keeps some servers out of the path of people who are not root.
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin"} {
		if path := filepath.Join(dir, i.program); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	t.Fatalf("no %s on this machine: run %s, as `make test` does, or set %s to its folder", i.program, i.ensure, i.env)
	return ""
}

// server is a running one.
type server struct {
	cmd    *exec.Cmd
	output *os.File
	ended  chan struct{}
}

// launch starts a program in a folder. It ends with this process, however that ends: the signal that Linux
// sends for it is tied to the thread that started the child, hence a thread of its own.
func launch(dir, path string, as *syscall.Credential, args ...string) (*server, error) {
	output, err := os.CreateTemp(dir, "output-")
	if err != nil {
		return nil, fmt.Errorf("create a file for its messages: %w", err)
	}
	s := &server{cmd: exec.Command(path, args...), output: output, ended: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, output, output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: as}
	dieWithParent(s.cmd)
	started := make(chan error, 1)
	go func() {
		defer close(s.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // it is killed, or its messages tell why it ended
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", path, err), output.Close())
	}
	return s, nil
}

// await polls until ready returns nil, or returns why it does not.
func (s *server) await(ready func() error) error {
	deadline := time.NewTimer(startWithin)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("it has ended: %s", s.messages())
		case <-deadline.C:
			return fmt.Errorf("it did not become ready (%w): %s", err, s.messages())
		case <-tick.C:
		}
	}
}

func (s *server) messages() string {
	raw, err := io.ReadAll(io.NewSectionReader(s.output, 0, 1<<20))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte("; ")))
}

// stop ends it in order, and kills it when that takes too long.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGCONT) // a paused process cannot stop in order
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	tooLong := time.AfterFunc(stopWithin, func() { _ = s.cmd.Process.Kill() })
	defer tooLong.Stop()
	<-s.ended
	_ = s.output.Close()
}

// kill ends it at once: nothing that such a server holds outlives the test.
func (s *server) kill() {
	_ = s.cmd.Process.Kill() // an error says that it has ended
	<-s.ended
	_ = s.output.Close()
}

// serverDir makes a folder that other accounts can enter, and removes it after the test.
func serverDir(t testing.TB) string {
	t.Helper()
	dir, err := privateDir()
	if err != nil {
		t.Fatalf("make a folder for a server: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the folder of a server: %v", err)
		}
	})
	return dir
}

// notRoot is the account of a server that refuses to run as root; nil where we are not root.
func notRoot() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // no other account is needed
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("there is no account postgres or nobody to run it as")
}

// inOrder joins lines of a configuration file.
func inOrder(lines ...string) []byte { return []byte(strings.Join(lines, "\n") + "\n") }
