package user

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"golang.org/x/text/cases"
	"golang.org/x/text/language"
	"golang.org/x/text/unicode/norm"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

const (
	// maxDisplayName and maxBio count characters (code points after NFC).
	maxDisplayName = 64
	maxBio         = 500
	maxLocale      = 35 // what RFC 5646, section 4.4.1, asks to have room for
)

var (
	errDisplayName = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_DISPLAY_NAME_INVALID,
		"a name has 1 to %d characters, one of them visible, and no line breaks, control characters or changes of direction", maxDisplayName)
	errBio = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_BIO_INVALID,
		"this text has up to %d characters and no control characters or changes of direction", maxBio)
	errLocale = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_LOCALE_INVALID, "a locale is a BCP 47 language tag")
)

// cleanDisplayName brings a name to the form that is stored: composed (NFC), so that
// equal looks are equal bytes, and without white space at its ends.
func cleanDisplayName(raw string) (string, error) {
	name := strings.TrimSpace(norm.NFC.String(raw))
	if !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxDisplayName ||
		strings.ContainsFunc(name, forbidden) || !strings.ContainsFunc(name, visible) {
		return "", errDisplayName
	}
	return name, nil
}

// displayNameOr is for names that auth took before anybody looked at them: one that
// breaks the rules gives way to the user name.
func displayNameOr(raw, username string) string {
	name, err := cleanDisplayName(raw)
	if err != nil {
		return username
	}
	return name
}

// cleanBio is cleanDisplayName for a text of several lines, which may be empty.
func cleanBio(raw string) (string, error) {
	bio := strings.TrimSpace(norm.NFC.String(strings.ReplaceAll(raw, "\r\n", "\n")))
	invalid := func(r rune) bool { return r != '\n' && forbidden(r) }
	if !utf8.ValidString(bio) || utf8.RuneCountInString(bio) > maxBio || strings.ContainsFunc(bio, invalid) {
		return "", errBio
	}
	return bio, nil
}

// cleanLocale returns the tag in its canonical form; empty stays empty.
func cleanLocale(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	tag, err := language.Parse(raw)
	if err != nil || tag == language.Und || len(tag.String()) > maxLocale {
		return "", errLocale
	}
	return tag.String(), nil
}

// forbidden characters change what stands around them, or hide in it: controls and
// line breaks, unassigned and private ones, and those that turn the direction of
// the text after them, by which one name can be made to look like another. The
// joiners stay allowed: some scripts and most composed emoji need them.
func forbidden(r rune) bool {
	switch {
	case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r), unicode.Is(unicode.Co, r):
		return true
	case unicode.Is(unicode.Bidi_Control, r):
		return true
	case r == '\uFEFF', r == '\u2060', r == '\u200B', r == '\u00AD', r == utf8.RuneError:
		return true
	}
	// What this Unicode version does not know cannot be judged.
	return !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.Cf)
}

// visible characters leave a mark by themselves. The fillers are letters that do not.
func visible(r rune) bool {
	switch r {
	case '\u115F', '\u1160', '\u3164', '\uFFA0', '\u2800':
		return false
	}
	return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S)
}

// fold is the form in which names are searched: without regard to case, accents and
// the widths of letters; runs of anything but letters, digits and the marks of user
// names are one space.
func fold(text string) string {
	var out strings.Builder
	space := false
	for _, r := range norm.NFKD.String(cases.Fold().String(norm.NFKC.String(text))) {
		switch {
		case unicode.Is(unicode.Mn, r):
		case unicode.In(r, unicode.L, unicode.N, unicode.Mc), strings.ContainsRune("._-", r):
			if space && out.Len() > 0 {
				out.WriteByte(' ')
			}
			space = false
			out.WriteRune(r)
		default:
			space = true
		}
	}
	return norm.NFC.String(out.String())
}

// searchText is what the search looks through for one person. The space in front
// lets every word, also the first, be found by its beginning.
func searchText(username, displayName string) string {
	return " " + fold(username) + " " + fold(displayName)
}

// likePrefix makes the pattern that finds a word by its beginning, also one after a
// mark inside a user name.
func likePrefix(typed string) string {
	return "% " + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(typed) + "%"
}

// searchable says whether a folded query has enough in it: two letters or digits,
// the first at its beginning. With less, the index would be read from end to end.
func searchable(typed string) bool {
	count := 0
	for i, r := range typed {
		if unicode.In(r, unicode.L, unicode.N) {
			count++
		} else if i == 0 {
			return false
		}
	}
	return count >= 2
}
