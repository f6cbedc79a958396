package system

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// readyWithin is how long a start may take on a machine that is busy with other
	// tests, recovery of a database included.
	readyWithin = 90 * time.Second
	// endWithin is how long an orderly end may take before it counts as hung.
	endWithin = 45 * time.Second
	// logTail is how much of a log a failed test shows, in bytes.
	logTail = 6000
)

// Process is one program of the product. It keeps its ports, its environment and
// its log file over restarts. Its methods may be called from one goroutine at a
// time, the test's.
type Process struct {
	// Name tells replicas apart: "messaging-2".
	Name string

	t     testing.TB
	path  string
	args  []string
	env   []string
	admin string // host:port of the admin port
	log   string // path of the log file
	// tells says that the process prints something on its standard output as its
	// very last step of starting. That goes to the file out.
	tells bool
	out   string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process of cmd is gone
	how   string        // its exit, set before ended is closed
}

// newProcess prepares a process and ends it after the test. It does not start it.
func newProcess(t testing.TB, dir, name, path string, args, env []string, admin string) *Process {
	t.Helper()
	p := &Process{
		Name: name, t: t, path: path, args: args, admin: admin,
		log: filepath.Join(dir, name+".log"), out: filepath.Join(dir, name+".out"),
		// Nothing of the caller's own settings reaches the product, save where the
		// programs of PostgreSQL are.
		env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "PGBIN=" + os.Getenv("PGBIN"), "GOCOVERDIR=" + coverage()}, env...),
	}
	t.Cleanup(func() {
		p.Kill9()
		p.judgeLog()
	})
	return p
}

// pin has the process run on one CPU; taskset becomes it, so it keeps its PID.
func (p *Process) pin(cpu string) {
	if cpu != "" {
		p.path, p.args = "taskset", append([]string{"-c", cpu, p.path}, p.args...)
	}
}

// PID is the process's id, 0 while it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Admin is the base URL of the admin port.
func (p *Process) Admin() string { return "http://" + p.admin }

// Set adds variables to the environment of the next start; a later value wins.
func (p *Process) Set(env ...string) { p.env = append(p.env, env...) }

// SetClock moves the clock of the next start.
func (p *Process) SetClock(offset time.Duration) { p.Set(clocks(offset)...) }

// Start starts the process and waits until it says that it is ready.
func (p *Process) Start() {
	p.t.Helper()
	p.Launch()
	p.AwaitReady()
}

// Launch starts the process and does not wait.
func (p *Process) Launch() {
	p.t.Helper()
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatalf("open the log of %s: %v", p.Name, err)
	}
	defer func() { _ = file.Close() }() // the child has its own
	out, err := os.Create(p.out)        // empty: nothing told yet
	if err != nil {
		p.t.Fatalf("open the output of %s: %v", p.Name, err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.env, out, file, attributes()
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	ended := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.t.Fatalf("%s was started while it runs", p.Name)
	}
	p.cmd, p.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // told by the state
		p.mu.Lock()
		defer p.mu.Unlock()
		p.how = cmd.ProcessState.String()
		close(ended)
	}()
}

// AwaitReady waits until the admin port answers that the process is ready.
func (p *Process) AwaitReady() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), readyWithin)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		if p.answersReady(ctx) && p.hasTold() {
			return
		}
		select {
		case <-tick.C:
		case <-p.gone():
			p.t.Fatalf("%s ended (%s) instead of getting ready:\n%s", p.Name, p.exit(), p.tail())
		case <-ctx.Done():
			p.t.Fatalf("%s is not ready after %s:\n%s", p.Name, readyWithin, p.tail())
		}
	}
}

func (p *Process) answersReady(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

func (p *Process) hasTold() bool {
	if !p.tells {
		return true
	}
	out, err := os.Stat(p.out)
	return err == nil && out.Size() > 0
}

// Run runs a command of the program to its end, with the process's environment.
func (p *Process) Run(args ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), readyWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env, cmd.SysProcAttr = p.env, attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s %s: %v\n%s", p.Name, strings.Join(args, " "), err, out)
	}
}

// Kill9 kills the process and returns when it has gone. Killing what does not
// run does nothing.
func (p *Process) Kill9() { p.end(syscall.SIGKILL) }

// Stop ends the process in order. It fails the test if that takes too long.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

// Pause freezes the process: its connections stay and nothing answers.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Running says whether the process has been started and has not ended, in any way.
func (p *Process) Running() bool {
	select {
	case <-p.gone():
		return false
	default:
		return true
	}
}

func (p *Process) end(with syscall.Signal) {
	p.mu.Lock()
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	p.signal(with)
	late := time.NewTimer(endWithin)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		p.t.Errorf("%s did not end within %s of %s:\n%s", p.Name, endWithin, with, p.tail())
		_ = cmd.Process.Kill()
		<-ended
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = nil
	if with == syscall.SIGTERM && !cmd.ProcessState.Success() {
		p.t.Errorf("%s ended with %s after %s", p.Name, p.how, with)
	}
}

func (p *Process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it may have ended in this moment
	}
}

// gone is closed when the process has ended; also when it was never started.
func (p *Process) gone() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return p.ended
}

func (p *Process) exit() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.how
}

// neverInLogs are the marks of a defect, whatever the tests say.
var neverInLogs = regexp.MustCompile(`(?m)^(WARNING: DATA RACE|panic: |fatal error: |.*level=ERROR msg="?panic).*$`)

// judgeLog shows the log of a failed test, and fails a test whose log tells of a
// defect that the story did not see.
func (p *Process) judgeLog() {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return // never started
	}
	if defect := neverInLogs.Find(raw); defect != nil {
		p.t.Errorf("%s logged: %s", p.Name, defect)
	}
	if p.t.Failed() {
		p.t.Logf("the end of the log of %s:\n%s", p.Name, p.tail())
	}
}

func (p *Process) tail() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Sprintf("no log: %v", err)
	}
	return string(raw[max(0, len(raw)-logTail):])
}
