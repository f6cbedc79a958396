package stack

import (
	"os/exec"
	"syscall"
)

// childrenEndWithUs says whether dieWithParent does anything.
const childrenEndWithUs = true

// dieWithParent makes the kernel send the child SIGINT when this process dies, also by kill -9. SIGINT is
// PostgreSQL's fast stop.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
}
