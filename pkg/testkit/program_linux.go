package testkit

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill the child when this process dies, also by kill -9.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL }
