package gateway

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// The close codes that the gateway sends. docs/protocol.md says what a client
// does on each.
const (
	closeNormal      = websocket.CloseNormalClosure
	closeWrongType   = websocket.CloseUnsupportedData
	closeNotUTF8     = websocket.CloseInvalidFramePayloadData
	closeTooBig      = websocket.CloseMessageTooBig
	closeRestart     = websocket.CloseServiceRestart
	closeTryLater    = websocket.CloseTryAgainLater
	closeSlow        = 4008
	closeSilent      = 4009
	closeBadFrame    = 4400
	closeUnauthentic = 4401
	closeExpired     = 4402
	closeAuthTimeout = 4408
	closeTooMany     = 4429
)

// Reasons that stand in close frames: those of parley.error.v1 without prefix,
// and these.
const (
	reasonAuthTimeout = "AUTHENTICATION_TIMEOUT"
	reasonSilent      = "NO_SIGN_OF_LIFE"
	reasonBadFrame    = "BAD_FRAME"
)

// maxCloseReason is what fits into a control frame beside the code.
const maxCloseReason = 123

// comeBack is the reason of a close after which the client reconnects on our
// terms.
func comeBack(after time.Duration) string {
	reason, err := json.Marshal(struct {
		ReconnectMs int64 `json:"reconnect_ms"`
		Resume      bool  `json:"resume"`
	}{after.Milliseconds(), true})
	if err != nil {
		return "" // two plain fields: cannot happen, and a reason is only a hint
	}
	return string(reason)
}

// closePayload is the body of a close frame. A reason that is cut stays UTF-8, or
// the client would take the close itself for a fault (RFC 6455, section 8.1).
func closePayload(code int, reason string) []byte {
	reason = strings.ToValidUTF8(reason[:min(len(reason), maxCloseReason)], "")
	payload := binary.BigEndian.AppendUint16(nil, uint16(code))
	return append(payload, reason...)
}
