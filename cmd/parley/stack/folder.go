package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrInUse is returned when another running stack holds the data folder.
var ErrInUse = errors.New("the data folder is in use by another running stack")

const (
	lockName   = "stack.lock"
	tempPrefix = "parley-stack-"
	// memory is Linux' file system in memory; elsewhere it does not exist and is passed over.
	memory = "/dev/shm"
	// roomNeeded is the free space, in bytes, that a temporary folder in memory must offer.
	roomNeeded = 1 << 30
	// abandonedAfter keeps a sweep away from folders whose owner is between two starts.
	abandonedAfter = time.Hour
)

// lockDir creates dir and takes its lock. The kernel drops the lock when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	return f, nil
}

// unlockDir gives the folder up. It unlocks before it closes: a child that another goroutine is just starting
// holds a copy of the descriptor until its exec, and with it the lock.
func unlockDir(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	if err != nil {
		err = fmt.Errorf("unlock the data folder: %w", err)
	}
	return errors.Join(err, f.Close())
}

// TempDir makes a fresh folder for data that nobody needs tomorrow. It lies in memory (/dev/shm) when that is
// writable and has room and inMemory is set, else below TMPDIR. Every user may traverse it, because PostgreSQL runs as
// another user when the caller is root. Folders that killed processes left behind are removed on the way.
func TempDir(inMemory bool) (string, error) {
	sweep(memory)
	sweep(os.TempDir())
	parents := []string{os.TempDir()}
	if inMemory && hasRoom(memory) {
		parents = []string{memory, os.TempDir()}
	}
	var errs error
	for _, parent := range parents {
		dir, err := os.MkdirTemp(parent, tempPrefix)
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err == nil {
			return dir, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", fmt.Errorf("create a temporary data folder: %w", errs)
}

func hasRoom(dir string) bool {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return false
	}
	//nolint:unconvert // The types of the fields differ between platforms.
	return uint64(fs.Bavail)*uint64(fs.Bsize) >= roomNeeded
}

// sweep removes temporary folders whose owner is gone: old, and their lock is free. Best effort: what cannot
// be removed stays.
func sweep(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock := filepath.Join(dir, lockName)
		info, err := os.Stat(lock)
		if err != nil || time.Since(info.ModTime()) < abandonedAfter {
			continue
		}
		if f, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			_ = f.Close()
		}
	}
}
