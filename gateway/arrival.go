package gateway

import (
	"bufio"
	"net"
	"net/http"
	"syscall"
)

// readBuffer is per socket and for life, so it is small; a frame that does not
// fit is read in pieces. The library takes no smaller one than 257 bytes.
const readBuffer = 512

// arrival waits for what a client sends next, on a stack that is as shallow as
// it can be. The library's own read waits nine calls deep: that needs a stack of
// 4 KiB, twice the smallest, for as long as a socket is silent.
type arrival struct {
	buffer *bufio.Reader // the library's; nil: it waits by itself
	conn   syscall.RawConn
}

// wait returns when there is something to read or the socket has failed, which
// the next read tells. It may return too early; it never waits while there is
// something in the buffer or in the kernel.
func (a arrival) wait() {
	if a.buffer == nil || a.buffer.Buffered() > 0 {
		return
	}
	waited := false
	// The poller tells changes only. What came before it was asked, and was left
	// behind by a read that filled the buffer, has to be looked for.
	_ = a.conn.Read(func(fd uintptr) bool {
		if waited || readable(fd) {
			return true
		}
		waited = true
		return false
	})
}

// hijacker hands the library a reader of the right size that we can look into.
type hijacker struct {
	http.ResponseWriter
	arrival arrival
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (conn net.Conn, rw *bufio.ReadWriter, err error) {
	conn, rw, err = http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil || rw.Reader.Buffered() > 0 { // sent before the handshake: the library refuses it
		return conn, rw, err //nolint:wrapcheck // the library's caller wraps it
	}
	rw.Reader = bufio.NewReaderSize(conn, readBuffer)
	h.arrival.buffer = rw.Reader
	if raw, ok := conn.(syscall.Conn); ok {
		h.arrival.conn, err = raw.SyscallConn()
	}
	if h.arrival.conn == nil || err != nil {
		h.arrival = arrival{}
	}
	return conn, rw, nil
}
