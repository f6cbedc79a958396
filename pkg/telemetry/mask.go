package telemetry

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"
)

const masked = "[masked]"

// secretWords are parts of keys whose values never reach a log: credentials, and
// what says who a person is or what they wrote.
var secretWords = []string{
	"password", "passwd", "secret", "token", "authorization", "cookie", "credential", "private_key", "apikey", "api_key",
	"email", "phone", "otp", "body_text", "message_text",
}

// harmless are keys that contain such a word and tell nothing.
var harmless = map[string]bool{"token_id": true, "token_kind": true, "page_token_kind": true, "tokens": true}

// secretValue finds, within any text: a JWT, a bearer credential, a password in a
// URL, an e-mail address.
var secretValue = regexp.MustCompile(
	`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*` +
		`|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{8,}` +
		`|://[^/\s:@]*:[^/\s@]+@` +
		`|[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}`)

// Mask returns s with everything masked that looks like a credential or an
// e-mail address.
func Mask(s string) string {
	// The pattern needs one of these; most lines have neither.
	if !strings.ContainsAny(s, "@.") && !strings.Contains(strings.ToLower(s), "bearer") {
		return s
	}
	return secretValue.ReplaceAllStringFunc(s, func(hit string) string {
		if strings.HasPrefix(hit, "://") {
			return "://" + masked + "@"
		}
		return masked
	})
}

// maskAttr is the ReplaceAttr of every logger. slog calls it for each attribute
// that is not a group, and for the message.
func maskAttr(_ []string, a slog.Attr) slog.Attr {
	switch a.Key {
	case slog.TimeKey, slog.LevelKey, slog.SourceKey:
		return a
	}
	if isSecret(a.Key) {
		return slog.String(a.Key, masked)
	}
	switch a.Value.Kind() {
	case slog.KindString:
		return slog.String(a.Key, Mask(a.Value.String()))
	case slog.KindAny:
		return slog.Attr{Key: a.Key, Value: maskAny(a.Value.Any())}
	default:
		return a
	}
}

// maskAny renders what could hide a secret. A proto message is told by its name
// only: requests and events hold personal data.
func maskAny(v any) slog.Value {
	switch v := v.(type) {
	case nil:
		return slog.AnyValue(nil)
	case proto.Message:
		return slog.StringValue("proto:" + string(v.ProtoReflect().Descriptor().FullName()))
	case error:
		return slog.StringValue(Mask(v.Error()))
	case fmt.Stringer:
		return slog.StringValue(Mask(v.String()))
	default:
		return slog.StringValue(Mask(fmt.Sprintf("%+v", v)))
	}
}

func isSecret(key string) bool {
	key = strings.ToLower(key)
	if harmless[key] {
		return false
	}
	for _, word := range secretWords {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}
