package mail

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// envelope is a message in the queue.
type envelope struct {
	To       string            `json:"to"`
	Template string            `json:"template"`
	Locale   string            `json:"locale,omitempty"`
	Data     map[string]string `json:"data,omitempty"`
	SentAt   time.Time         `json:"sent_at"`
	// ExpiresAt is when the mail has lost its use.
	ExpiresAt time.Time `json:"expires_at"`
}

// sealer closes envelopes: whoever reads the stream's files or its backups learns
// neither addresses nor codes. The key is derived, so that the service's key
// encryption key can be given for it without serving two purposes.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte, service string) (sealer, error) {
	if len(key) < 32 {
		return sealer{}, errors.New("the key of the mail queue has less than 32 bytes")
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "parley mail queue "+service, 32)
	if err != nil {
		return sealer{}, fmt.Errorf("derive the key of the mail queue: %w", err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return sealer{}, fmt.Errorf("key of the mail queue: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealer{}, fmt.Errorf("key of the mail queue: %w", err)
	}
	return sealer{aead}, nil
}

// seal binds the envelope to its id: bytes cannot be moved to another message.
func (s sealer) seal(id uuid.UUID, e envelope) ([]byte, error) {
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode mail: %w", err)
	}
	return s.aead.Seal(nil, nil, raw, id[:]), nil //nolint:gosec // this AEAD makes its own random nonce
}

func (s sealer) open(id uuid.UUID, sealed []byte) (envelope, error) {
	raw, err := s.aead.Open(nil, nil, sealed, id[:])
	if err != nil {
		return envelope{}, errors.New("it was sealed with another key, or changed")
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return envelope{}, fmt.Errorf("decode mail: %w", err)
	}
	return e, nil
}
