package auth

import (
	"context"
	"net/netip"
	"strings"
	"unicode"

	"connectrpc.com/connect"
)

// maxUserAgent is how much of what a client calls itself is kept, in bytes.
const maxUserAgent = 256

// origin is where a call comes from. Its address is that of clientAddress.
type origin struct {
	address   netip.Addr
	userAgent string
}

// originOf reads the call at hand; empty outside of one.
func (s *Service) originOf(ctx context.Context) origin {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return origin{}
	}
	return origin{
		address:   clientAddress(info.Peer().Addr, info.RequestHeader().Values("X-Forwarded-For"), s.gateways),
		userAgent: printable(info.RequestHeader().Get("User-Agent"), maxUserAgent),
	}
}

// addressText is empty for an unknown address.
func (o origin) addressText() string {
	if !o.address.IsValid() {
		return ""
	}
	return o.address.String()
}

// printable is text of a client's own as it may be stored and shown: valid, without control characters, not
// longer than limit bytes.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if len(text) <= limit {
		return text
	}
	// A character that the limit cuts in two goes as a whole.
	return strings.ToValidUTF8(text[:limit], "")
}
