package testkit

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// killTree kills the postmaster and its backends as one. The postmaster is stopped first, because it would
// otherwise see a backend die and start others. Without /proc only the postmaster is killed, and the backends
// follow by themselves a moment later.
func killTree(postmaster int) {
	_ = syscall.Kill(postmaster, syscall.SIGSTOP)
	for _, pid := range childrenOf(postmaster) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = syscall.Kill(postmaster, syscall.SIGKILL)
}

// childrenOf finds the processes whose parent is pid.
func childrenOf(parent int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var pids []int
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		// "pid (name) state ppid ...": the name may hold anything, so count from its closing parenthesis.
		fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
