package portability_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/portability"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
)

func TestFiles(t *testing.T) {
	t.Parallel()

	t.Run("ComeWholeAndInBoundedPieces", func(t *testing.T) {
		t.Parallel()
		content, names := map[string]string{}, []string{}
		files := portability.To(func(res *portabilityv1.ExportPersonResponse) error {
			if file := res.GetFile(); file != nil {
				names = append(names, file.GetName())
				return nil
			}
			require.LessOrEqual(t, len(res.GetData()), 64<<10)
			content[names[len(names)-1]] += string(res.GetData())
			return nil
		})
		long := strings.Repeat("ä", 150_000)
		require.NoError(t, files.JSON("a.json", map[string]int{"n": 1}))
		require.NoError(t, files.Begin("empty.ndjson"))
		require.NoError(t, files.Begin("b.ndjson"))
		require.NoError(t, files.Line(long))
		require.NoError(t, files.Line(2))
		require.NoError(t, files.Flush())
		require.NoError(t, files.Flush(), "nothing is left")
		require.Equal(t, []string{"a.json", "empty.ndjson", "b.ndjson"}, names)
		require.Equal(t, map[string]string{"a.json": "{\n  \"n\": 1\n}\n", "b.ndjson": `"` + long + "\"\n2\n"}, content)
	})

	t.Run("StopAtTheFirstError", func(t *testing.T) {
		t.Parallel()
		gone := errors.New("the reader has gone")
		files := portability.To(func(*portabilityv1.ExportPersonResponse) error { return gone })
		require.ErrorIs(t, files.Begin("a.json"), gone)
		require.Error(t, files.JSON("b.json", func() {}))
	})
}
