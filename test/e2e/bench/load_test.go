package bench

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFoldersAreLeftOut(t *testing.T) {
	t.Parallel()
	require.Equal(t, `load --users-file pairs --data=data --url ws://127.0.0.1:1/v1/ws {"command":"parley load"}`,
		withoutFolders(`load --users-file /tmp/a/b/pairs --data=/tmp/x/data --url ws://127.0.0.1:1/v1/ws {"command":"/tmp/y/parley load"}`))
}
