//go:build race

package system

const watchesRaces = true
