package stack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// redisReadyWithin bounds a start: it reads nothing from disk.
	redisReadyWithin = 15 * time.Second
	// redisLog is the name of the file with what a redis-server says.
	redisLog = "redis.log"
)

// findRedis returns the redis-server of this machine that runs, or nothing. PARLEY_REDIS_BIN, when set, is the only
// folder that counts; Debian keeps servers out of the path of people who are not root.
func findRedis(ctx context.Context) string {
	const program = "redis-server"
	candidates := []string{program, "/usr/local/sbin/" + program, "/usr/sbin/" + program}
	if dir := os.Getenv("PARLEY_REDIS_BIN"); dir != "" {
		candidates = []string{filepath.Join(dir, program)}
	}
	for _, candidate := range candidates {
		path, err := exec.LookPath(candidate)
		if err == nil && exec.CommandContext(ctx, path, "--version").Run() == nil {
			return path
		}
	}
	return ""
}

// startRedisServer starts a child, again when another process took the free port first.
func startRedisServer(ctx context.Context, program, logPath string, port int) (*Redis, error) {
	ctx, cancel := context.WithTimeout(ctx, redisReadyWithin)
	defer cancel()
	for {
		chosen, err := portOrFree(port)
		if err != nil {
			return nil, err
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(chosen))
		child, err := startRedisOnce(ctx, program, logPath, addr, chosen)
		if err == nil {
			return &Redis{Addr: addr, URL: "redis://" + addr + "/0", child: child}, nil
		}
		if port != 0 || ctx.Err() != nil || !strings.Contains(err.Error(), "Address already in use") {
			return nil, err
		}
	}
}

func startRedisOnce(ctx context.Context, program, logPath, addr string, port int) (*process, error) {
	logFile, err := os.Create(logPath)
	if err != nil {
		return nil, fmt.Errorf("create the log of redis-server: %w", err)
	}
	defer logFile.Close()
	// ctx bounds the start; the child goes on after it and ends by stop, in order.
	cmd := account{}.attach(exec.CommandContext(context.WithoutCancel(ctx), program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port),
		"--save", "", "--appendonly", "no", "--loglevel", "warning"))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	dieWithParent(cmd)
	child, err := launch(cmd)
	if err != nil {
		return nil, fmt.Errorf("start redis-server: %w", err)
	}
	ready := func() bool { return answersAs(ctx, addr, child.pid) }
	if err := child.await(ctx, "redis-server", ready, logPath); err != nil {
		return nil, err
	}
	return child, nil
}

// answersAs says whether the redis-server at addr is that process, and not another one that has the port. It asks by
// hand: no client needs to be linked for it.
func answersAs(ctx context.Context, addr string, pid int) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("INFO server\r\n")); err != nil {
		return false
	}
	// One answer, "$LENGTH", then lines of NAME:VALUE. Whatever else the port says ends by the deadline.
	for lines := bufio.NewScanner(io.LimitReader(conn, 16<<10)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "process_id:"); ok {
			return value == strconv.Itoa(pid)
		}
	}
	return false
}
