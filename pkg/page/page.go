// Package page owns the opaque tokens with which clients walk through lists.
//
// A token holds the position after the last item of a page and a digest of the
// query that it belongs to, so that a token of one conversation, filter or
// person is refused for another. It is not signed and not secret: a position is
// input like any other, and the query that uses it checks access by itself.
package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"

	"connectrpc.com/connect"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

const (
	// version is the first byte of every token. A later format takes the next
	// number and is refused by older replicas, which a client answers by
	// starting over.
	version byte = 1

	digestBytes = 8

	// maxTokenBytes bounds what is decoded, and so what is made. Positions are a
	// few ids and times.
	maxTokenBytes = 1024
)

// Encode returns the token of the page that follows position. kind names the
// list ("messaging.messages"); query holds everything else that makes the list
// what it is (ids, filters, order), in a fixed order and as Decode gets it.
// Position is kept as JSON: exported fields of ids, times and numbers.
func Encode[P any](kind string, position P, query ...any) (string, error) {
	body, err := json.Marshal(position)
	if err != nil {
		return "", fmt.Errorf("encode the position of a %s page: %w", kind, err)
	}
	raw := make([]byte, 0, 1+digestBytes+len(body))
	raw = append(raw, version)
	raw = append(raw, digest(kind, query)...)
	raw = append(raw, body...)
	token := base64.RawURLEncoding.EncodeToString(raw)
	if len(token) > maxTokenBytes {
		// Better no page than a token that Decode would refuse.
		return "", fmt.Errorf("encode the position of a %s page: it has %d bytes, more than a token holds", kind, len(body))
	}
	return token, nil
}

// Decode returns the position in token, or nil for the empty token: the first
// page. Anything that Encode did not make for the same kind and query is
// answered with the code invalid_argument and REASON_PAGE_TOKEN_INVALID.
func Decode[P any](kind, token string, query ...any) (*P, error) {
	if token == "" {
		return nil, nil //nolint:nilnil // no token is no position: the first page
	}
	if len(token) > maxTokenBytes {
		return nil, invalid()
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) < 1+digestBytes || raw[0] != version {
		return nil, invalid()
	}
	if !bytes.Equal(raw[1:1+digestBytes], digest(kind, query)) {
		return nil, invalid()
	}
	position := new(P)
	dec := json.NewDecoder(bytes.NewReader(raw[1+digestBytes:]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(position); err != nil {
		return nil, invalid()
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, invalid()
	}
	return position, nil
}

// Size returns the number of items to read for a request that asks for
// requested: preset when it asks for none, never more than limit.
func Size(requested, preset, limit int32) int32 {
	if requested <= 0 {
		requested = preset
	}
	return min(requested, limit)
}

// digest tells queries apart. Every part is written with its length, so that
// ("ab", "c") and ("a", "bc") differ.
func digest(kind string, query []any) []byte {
	h := sha256.New()
	write := func(s string) { _, _ = fmt.Fprintf(h, "%d:%s", len(s), s) } // a hash takes every write
	write(kind)
	for _, part := range query {
		write(fmt.Sprint(part))
	}
	return h.Sum(nil)[:digestBytes]
}

func invalid() error {
	err := connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the page token does not belong to this query"))
	info := &errorv1.ErrorInfo{Reason: errorv1.Reason_REASON_PAGE_TOKEN_INVALID}
	if detail, detailErr := connect.NewErrorDetail(info); detailErr == nil {
		err.AddDetail(detail)
	}
	return err
}
