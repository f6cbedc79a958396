// Command printvalidate prints buf/validate/validate.proto, the annotations of
// protovalidate, from the descriptor inside the Go module that the services
// link. The file that the protos are compiled against is therefore always the
// one that validates at run time, and nothing is fetched from a schema registry.
//
// Usage: printvalidate FILE
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: printvalidate FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "printvalidate:", err)
		os.Exit(1)
	}
}

// write leaves the file untouched when its content is already right, so that
// make does not rebuild what hangs on it.
func write(path string) error {
	var out bytes.Buffer
	// SortElements stays off: the order of the source is the readable one.
	if err := (&protoprint.Printer{}).PrintProtoFile(validate.File_buf_validate_validate_proto, &out); err != nil {
		return fmt.Errorf("print validate.proto: %w", err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, out.Bytes()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}
