package user

import (
	"archive/zip"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"regexp"
	"time"

	"github.com/google/uuid"

	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
)

const (
	// archiveFormat rises when a reader of archives has to be changed.
	archiveFormat = 1
	// archivePiece is the most that one message to the person carries, in bytes.
	archivePiece = 64 << 10
	// maxArchiveFiles bounds the manifest and the directory of the zip, which are kept in memory.
	maxArchiveFiles = 1000
)

// fileName is what a service may call a file: no folder, nothing that a person's system would run.
var fileName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}\.(json|ndjson)$`)

var errBadPart = errors.New("a service sent a part that makes no archive")

// archive writes a zip into a stream while it is made. Only the list of the files is kept in memory.
type archive struct {
	out      *bufio.Writer
	zip      *zip.Writer
	at       time.Time
	dir      string
	file     io.Writer // nil before the first file of a folder
	digest   hash.Hash
	names    map[string]bool
	manifest manifest
}

// manifest is the last file of the archive.
type manifest struct {
	Format     int            `json:"format"`
	UserID     string         `json:"user_id"`
	ExportedAt time.Time      `json:"exported_at"`
	Services   []string       `json:"services"`
	Files      []manifestFile `json:"files"`
}

type manifestFile struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// sendFunc hands on a piece, which is not used again.
type sendFunc func(data []byte) error

// Write implements io.Writer.
func (f sendFunc) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := min(len(rest), archivePiece)
		if err := f(append([]byte(nil), rest[:n]...)); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(data), nil
}

func newArchive(user uuid.UUID, at time.Time, send sendFunc) *archive {
	out := bufio.NewWriterSize(send, archivePiece)
	return &archive{
		out: out, zip: zip.NewWriter(out), at: at, names: map[string]bool{},
		manifest: manifest{Format: archiveFormat, UserID: user.String(), ExportedAt: at.UTC()},
	}
}

// folder begins the files of a service.
func (a *archive) folder(service string) {
	a.seal()
	a.dir, a.file = service, nil
	a.manifest.Services = append(a.manifest.Services, service)
}

// add takes the next part of a service's stream.
func (a *archive) add(part *portabilityv1.ExportPersonResponse) error {
	switch part := part.GetPart().(type) {
	case *portabilityv1.ExportPersonResponse_File:
		if !fileName.MatchString(part.File.GetName()) {
			return fmt.Errorf("%w: a file of %s is called %q", errBadPart, a.dir, part.File.GetName())
		}
		return a.begin(path.Join(a.dir, part.File.GetName()))
	case *portabilityv1.ExportPersonResponse_Data:
		if a.file == nil {
			return fmt.Errorf("%w: %s sends data without a file", errBadPart, a.dir)
		}
		n, err := a.file.Write(part.Data)
		a.manifest.Files[len(a.manifest.Files)-1].Bytes += int64(n)
		return err
	default:
		return fmt.Errorf("%w: %s sends what this release does not know", errBadPart, a.dir)
	}
}

func (a *archive) begin(name string) error {
	a.seal()
	if a.names[name] || len(a.names) >= maxArchiveFiles {
		return fmt.Errorf("%w: %s comes twice, or there are more than %d files", errBadPart, name, maxArchiveFiles)
	}
	a.names[name] = true
	file, err := a.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: a.at})
	if err != nil {
		return fmt.Errorf("begin %s: %w", name, err)
	}
	a.digest = sha256.New()
	a.file = io.MultiWriter(file, a.digest)
	a.manifest.Files = append(a.manifest.Files, manifestFile{Name: name})
	return nil
}

// seal notes the digest of the file before.
func (a *archive) seal() {
	if a.digest != nil {
		a.manifest.Files[len(a.manifest.Files)-1].SHA256 = hex.EncodeToString(a.digest.Sum(nil))
		a.digest = nil
	}
}

// close adds the manifest and the end of the archive, without which no program opens it.
func (a *archive) close() error {
	a.seal()
	text, err := json.MarshalIndent(a.manifest, "", "  ")
	if err != nil {
		return fmt.Errorf("write the manifest: %w", err)
	}
	file, err := a.zip.CreateHeader(&zip.FileHeader{Name: "manifest.json", Method: zip.Deflate, Modified: a.at})
	if err == nil {
		_, err = file.Write(append(text, '\n'))
	}
	if err == nil {
		err = a.zip.Close()
	}
	if err == nil {
		err = a.out.Flush()
	}
	if err != nil {
		return fmt.Errorf("end the archive: %w", err)
	}
	return nil
}
