//go:build unix && !linux

package stack

import "os/exec"

const childrenEndWithUs = false

// dieWithParent does nothing: only Linux can tie a child's life to its parent's. The PostgreSQL that a kill -9 leaves
// running is ended by the next start on the same folder.
func dieWithParent(*exec.Cmd) {}
