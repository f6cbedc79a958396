//go:build !linux

package system

import "syscall"

// attributes keep the terminal's Ctrl-C from a process: the test ends it in its
// own order. Other kernels than Linux cannot end it with its parent.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
