package authz_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
)

// tableFile is the one place that says who may call what. Its head explains it.
const tableFile = "testdata/authz.txt"

// The columns, in the order of the file.
const (
	anonymous = "anonymous"
	user      = "user"
	other     = "other"
	moderator = "moderator"
	admin     = "admin"
	service   = "service"
	stranger  = "stranger"
	expired   = "expired"
	revoked   = "revoked"
)

var columns = []string{anonymous, user, other, moderator, admin, service, stranger, expired, revoked}

// notAsked is the cell of a column that has no meaning for a method.
const notAsked = "-"

// row is what one method answers to whom.
type row struct {
	procedure string
	outside   bool
	cells     map[string]string // by column
	request   string            // JSON with placeholders
}

func (r row) String() string {
	line := fmt.Sprintf("%-62s %-7s", r.procedure, map[bool]string{true: "outside", false: "inside"}[r.outside])
	for _, column := range columns {
		line += fmt.Sprintf(" %-17s", r.cells[column])
	}
	return line + " " + r.request
}

func readTable(t testing.TB) []row {
	t.Helper()
	text, err := os.ReadFile(tableFile)
	require.NoError(t, err)
	var rows []row
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		before, request, _ := strings.Cut(line, "{")
		fields := strings.Fields(before)
		require.Len(t, fields, len(columns)+2, "%s: procedure, outside or inside, %s, request", line, strings.Join(columns, ", "))
		require.Contains(t, []string{"outside", "inside"}, fields[1], line)
		r := row{procedure: fields[0], outside: fields[1] == "outside", cells: map[string]string{}, request: "{" + request}
		for i, column := range columns {
			r.cells[column] = fields[i+2]
		}
		rows = append(rows, r)
	}
	return rows
}

// TestTable holds that the table and the protos speak of the same methods, and
// agree about which of them the world may see.
func TestTable(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range readTable(t) {
		require.False(t, seen[r.procedure], "%s has two rows", r.procedure)
		seen[r.procedure] = true
		method, ok := rpc.Methods()[r.procedure]
		require.True(t, ok, "no method for the row %s: take it out of %s", r.procedure, tableFile)
		require.Equal(t, method.Public(), r.outside, "%s: its access option says otherwise", r.procedure)
	}
	var missing []string
	for procedure := range rpc.Methods() {
		if !seen[procedure] {
			missing = append(missing, procedure)
		}
	}
	slices.Sort(missing)
	require.Empty(t, missing, "methods without a row in %s; TestMissingRows prints what to add", tableFile)
}
