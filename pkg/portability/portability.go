// Package portability writes what a domain stores about a person as files into
// the stream of PortabilityService.ExportPerson.
//
// Invariant: memory is bounded by one piece, whatever the size of a file; whoever
// reads slowly slows the writer down and holds no database connection, as long as
// the writer reads page by page.
package portability

import (
	"encoding/json"
	"fmt"

	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
)

// pieceSize is the most that one message of the stream carries, in bytes.
const pieceSize = 64 << 10

// Files writes files one after the other. It is not safe for concurrent use. After
// an error nothing more may be written.
type Files struct {
	send  func(*portabilityv1.ExportPersonResponse) error
	piece []byte
}

// To writes into a stream: send is its Send. What send is given is not used again.
func To(send func(*portabilityv1.ExportPersonResponse) error) *Files {
	return &Files{send: send}
}

// Begin ends the file before, if any, and starts one of that name ("account.json").
func (f *Files) Begin(name string) error {
	if err := f.Flush(); err != nil {
		return err
	}
	return f.send(&portabilityv1.ExportPersonResponse{
		Part: &portabilityv1.ExportPersonResponse_File{File: &portabilityv1.ExportFile{Name: name}},
	})
}

// Line adds a value as one line of JSON to the file.
func (f *Files) Line(value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write as JSON: %w", err)
	}
	return f.add(append(text, '\n'))
}

// JSON writes a whole file that holds one value, in readable form.
func (f *Files) JSON(name string, value any) error {
	if err := f.Begin(name); err != nil {
		return err
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write as JSON: %w", err)
	}
	return f.add(append(text, '\n'))
}

func (f *Files) add(text []byte) error {
	for len(text) > 0 {
		n := min(len(text), pieceSize-len(f.piece))
		f.piece = append(f.piece, text[:n]...)
		text = text[n:]
		if len(f.piece) == pieceSize {
			if err := f.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush sends what is left. Call it after the last file.
func (f *Files) Flush() error {
	if len(f.piece) == 0 {
		return nil
	}
	piece := f.piece
	f.piece = nil // the stream may still be reading it
	return f.send(&portabilityv1.ExportPersonResponse{Part: &portabilityv1.ExportPersonResponse_Data{Data: piece}})
}
