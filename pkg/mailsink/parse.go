package mailsink

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
)

// maxDepth bounds parts within parts.
const maxDepth = 5

// parse reads the headers and the bodies in both forms. Attachments are only in
// Raw.
func parse(raw []byte) (Mail, error) {
	msg, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return Mail{}, fmt.Errorf("read the headers: %w", err)
	}
	m := Mail{Raw: raw, MessageID: strings.Trim(msg.Header.Get("Message-Id"), "<>")}
	subject := msg.Header.Get("Subject")
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(subject); err != nil {
		m.Subject = subject // of an unknown character set: as it stands
	}
	err = m.part(msg.Header.Get, msg.Body, 0)
	return m, err
}

// part reads one part, or those within it.
func (m *Mail) part(header func(string) string, body io.Reader, depth int) error {
	if depth > maxDepth {
		return errors.New("parts within parts within parts")
	}
	kind, params, err := mime.ParseMediaType(header("Content-Type"))
	if err != nil {
		kind = "text/plain"
	}
	if strings.HasPrefix(kind, "multipart/") {
		parts := multipart.NewReader(body, params["boundary"])
		for {
			p, err := parts.NextRawPart()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read a part: %w", err)
			}
			if err := m.part(p.Header.Get, p, depth+1); err != nil {
				return err
			}
		}
	}
	switch strings.ToLower(header("Content-Transfer-Encoding")) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("read a body: %w", err)
	}
	plain := strings.ReplaceAll(string(text), "\r\n", "\n")
	switch {
	case kind == "text/plain" && m.Text == "":
		m.Text = plain
	case kind == "text/html" && m.HTML == "":
		m.HTML = plain
	}
	return nil
}
