// Package chaos breaks a running system on purpose, again and again, while people
// talk, and judges after each time whether a promise was broken.
//
// It owns the faults (kill, freeze, cut, wipe, poison, a wrong clock), the plan
// that a seed makes of them, the steady load beside them and the report. The
// system is the one of package system in separate processes: two replicas of
// messaging, two gateways. Invariants: the same seed gives the same rounds; one
// fault has ended, and everything was judged, before the next begins; nothing is
// repaired by hand: what was killed is started, what was cut is healed, and the
// rest the system does by itself.
//
// What is judged after each round: package history over all that was ever sent,
// stored and shown; and the witness, a listener of mode once, which must have been
// told of each thing that happened exactly once. It never looks into a table of
// the product.
package chaos
