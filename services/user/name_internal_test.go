package user

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCleanDisplayName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"Plain":              {"Anna Schmidt", "Anna Schmidt"},
		"EndsAreCut":         {"  Anna\u00A0", "Anna"},
		"IsComposed":         {"A\u030Angstro\u0308m", "Ångström"},
		"Emoji":              {"👩‍👩‍👧 Familie", "👩‍👩‍👧 Familie"},
		"PersianWithJoiner":  {"می\u200Cخواهم", "می\u200Cخواهم"},
		"Longest":            {strings.Repeat("ä", 64), strings.Repeat("ä", 64)},
		"TooLong":            {strings.Repeat("a", 65), ""},
		"Empty":              {"", ""},
		"OnlySpace":          {" \u3000\t ", ""},
		"OnlyInvisible":      {"\u200D\u3164", ""},
		"OnlyAMark":          {"\u0301", ""},
		"LineBreak":          {"An\nna", ""},
		"Nul":                {"An\x00na", ""},
		"Escape":             {"\x1b[31mAnna", ""},
		"RightToLeftOverrid": {"anna\u202Efdp.exe", ""},
		"Isolate":            {"a\u2066b", ""},
		"ZeroWidthSpace":     {"an\u200Bna", ""},
		"PrivateUse":         {"a\uE000", ""},
		"Unassigned":         {"a\u0378", ""},
		"NoUTF8":             {"a\xff", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := cleanDisplayName(c.in)
			require.Equal(t, c.want, got)
			if c.want == "" {
				require.Error(t, err)
				require.Equal(t, "anna", displayNameOr(c.in, "anna"))
			}
		})
	}
}

func TestCleanBio(t *testing.T) {
	t.Parallel()
	bio, err := cleanBio(" one\r\ntwo\n")
	require.NoError(t, err)
	require.Equal(t, "one\ntwo", bio)
	bio, err = cleanBio("")
	require.NoError(t, err)
	require.Empty(t, bio)
	for _, bad := range []string{strings.Repeat("x", 501), "a\tb", "a\u2028b", "\u202Ea", "\xc3"} {
		_, err := cleanBio(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestCleanLocale(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "de": "de", "pt_br": "pt-BR", "ZH-hans-cn": "zh-Hans-CN"} {
		got, err := cleanLocale(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"und", "x", "not a tag", "de-" + strings.Repeat("abcdefgh-", 8)} {
		_, err := cleanLocale(bad)
		require.Error(t, err, bad)
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Ångström": "angstrom", "STRAẞE": "strasse", "Ａnna": "anna", " a  B\tc ": "a b c", "O'Neil, Jr.": "o neil jr.",
		"anna_b.c-d": "anna_b.c-d", "Ελένη": "ελενη", "김민준": "김민준", "👋": "", "ﬁn": "fin",
	} {
		require.Equal(t, want, fold(in), in)
	}
	require.Equal(t, " anna93 anna schmidt", searchText("Anna93", "Änna Schmidt"))
	require.Equal(t, `% a\_b\%\\%`, likePrefix(`a_b%\`))
	for in, want := range map[string]bool{"an": true, "a": false, "": false, "_ab": false, "a.": false, "a.b": true, "민준": true} {
		require.Equal(t, want, searchable(in), in)
	}
}
