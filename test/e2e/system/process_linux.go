package system

import "syscall"

// attributes let a process die with the test binary, however that ends, and keep
// the terminal's Ctrl-C from it: the test ends it in its own order.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
