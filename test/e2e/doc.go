// Package e2e tells a user's story to the whole product, in both of its shapes:
// everything in one process, and separate processes with replicas (package
// system).
//
// It owns no code of the product and sees it only from outside: HTTP and
// WebSockets through the gateways, signals to processes, the network between
// them. Whether a story went well is judged by package history over all that its
// people sent and saw, never by a look into the database.
//
// The stories that `make test` tells are bounded to a few minutes; with
// PARLEY_E2E_FULL=1 (`make verify-full`) all of them are told, in every shape
// where they mean something. A story that is not told is not registered, so
// that nothing is ever skipped.
//
// The programs are built from the sources as they are now; under `go test -race`
// (`make test-e2e RACE=1`, `make verify-full`) they watch for data races themselves,
// and a report in a log fails the story.
// PARLEY_E2E_PROGRAMS names a folder with programs that were built before.
package e2e
