//go:build unix

package gateway

import "syscall"

// readable says whether reading from a socket would not wait: there are bytes, or
// the end, or an error.
func readable(fd uintptr) bool {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
	return err != syscall.EAGAIN && err != syscall.EINTR
}
