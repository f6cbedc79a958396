package auth

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the format of the list; nothing is protected by it
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/text/unicode/norm"
)

// commonPasswords were written for Parley by hand: the keyboard walks, sequences, names and phrases that open every
// ranking, as far as they have the eight characters that the API asks for anyway.
//
//go:embed common_passwords.txt
var commonPasswords string

// leakedPasswords are the ones of eight and more characters among the 47,000 most frequent of ten million that were
// leaked (Mark Burnett's collection), as the password meter zxcvbn ships them. tools/leaked-passwords makes the file
// from the Go module that leaked_passwords.LICENSE names.
//
//go:embed leaked_passwords.txt
var leakedPasswords string

// builtInPasswords is both lists, folded, read once for the process.
var builtInPasswords = sync.OnceValue(func() map[string]struct{} {
	known := map[string]struct{}{}
	for _, list := range []string{commonPasswords, leakedPasswords} {
		for line := range strings.Lines(list) {
			known[foldPassword(strings.TrimSpace(line))] = struct{}{}
		}
	}
	return known
})

// breached knows passwords from breaches: the lists above, and a file of the operator's choice. It asks nobody over
// the network.
type breached struct{ file *breachFile }

// openBreached takes the path of a file in the format of Pwned Passwords, or none.
func openBreached(path string) (breached, error) {
	if path == "" {
		return breached{}, nil
	}
	file, err := openBreachFile(path)
	if err != nil {
		return breached{}, fmt.Errorf("PARLEY_AUTH_BREACHED_PASSWORDS_FILE: %w", err)
	}
	return breached{file}, nil
}

// contains looks for a password as it is and without its capital letters. It fails if the file cannot be read any
// more: what cannot be looked up is not let through.
func (b breached) contains(password string) (bool, error) {
	folded := foldPassword(password)
	if _, known := builtInPasswords()[folded]; known {
		return true, nil
	}
	if b.file == nil {
		return false, nil
	}
	for _, form := range []string{norm.NFC.String(password), folded} {
		if known, err := b.file.contains(form); known || err != nil {
			return known, err
		}
	}
	return false, nil
}

// breachLine bounds a line of the file: 40 digits, a colon, a count, an end of line.
const breachLine = 96

// breachFile is a list of SHA-1 sums on disk, in ascending order. It is searched where it lies: the whole of Pwned
// Passwords has 40 GB, and a search reads some 35 blocks of it.
type breachFile struct {
	file io.ReaderAt
	size int64
}

// openBreachFile checks that the file is what it should be, at both ends. It stays open as long as the process lives.
func openBreachFile(path string) (*breachFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	f := &breachFile{file: file, size: info.Size()}
	if err := f.check(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return f, nil
}

func (f *breachFile) check() error {
	if f.size == 0 {
		return errors.New("the file is empty")
	}
	first, _, _, err := f.lineAt(0)
	if err != nil {
		return err
	}
	last, _, _, err := f.lineAt(f.size - 1)
	if err != nil {
		return err
	}
	if first > last {
		return errors.New("the file is not in ascending order")
	}
	return nil
}

func (f *breachFile) contains(password string) (bool, error) {
	sum := sha1.Sum([]byte(password)) //nolint:gosec // as above
	want := strings.ToUpper(hex.EncodeToString(sum[:]))
	low, high := int64(0), f.size
	for low < high {
		got, start, next, err := f.lineAt(low + (high-low)/2)
		switch {
		case err != nil:
			return false, err
		case got == want:
			return true, nil
		case got < want:
			low = next
		default:
			high = start
		}
	}
	return false, nil
}

// lineAt returns the sum in the line that the byte at offset is part of, where the line starts and where the next
// one does.
func (f *breachFile) lineAt(offset int64) (sum string, start, next int64, err error) {
	from := max(offset-breachLine, 0)
	block := make([]byte, 2*breachLine)
	n, err := f.file.ReadAt(block, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", 0, 0, fmt.Errorf("read the breached passwords: %w", err)
	}
	block, at := block[:n], int(offset-from)
	if at >= n {
		return "", 0, 0, errors.New("the file of breached passwords became shorter")
	}
	begin := bytes.LastIndexByte(block[:at], '\n') + 1
	end := len(block)
	if i := bytes.IndexByte(block[at:], '\n'); i >= 0 {
		end = at + i + 1
	}
	digits, _, _ := bytes.Cut(bytes.TrimSpace(block[begin:end]), []byte(":"))
	if _, err := hex.DecodeString(string(digits)); err != nil || len(digits) != 2*sha1.Size {
		return "", 0, 0, fmt.Errorf("the file of breached passwords holds no SHA-1 at byte %d", from+int64(begin))
	}
	return strings.ToUpper(string(digits)), from + int64(begin), from + int64(end), nil
}
