// Package realtime carries client events from the service that committed them to
// the gateways that hold the sockets of the people concerned.
//
// It owns the routing: which subject of core NATS stands for a person, and what
// a message on it holds. Services name people, gateways subscribe people; neither
// knows a subject. So routing can change (cells, topics of large groups) here
// alone.
//
// Invariants: the payload of a message is exactly one binary
// parley.realtime.v1.ServerFrame with a push, encoded once for all receivers and
// sent to sockets as it is. Messages of one person reach a gateway in the order
// in which one process published them. A subscriber that may have missed
// something says so (Loss), always after its subscriptions stand again. Within one
// process a push may be a call instead (Loopback); nothing else changes by that.
//
// It never stores anything and promises no delivery: a push is a hint, Postgres
// is the truth, and clients repair by sequence numbers and Sync.
package realtime

import (
	"strings"

	"github.com/google/uuid"
)

// subjectPrefix and a user id make the subject of a person.
const subjectPrefix = "user."

// SubjectWildcard covers the subjects of everybody; the permissions of NATS
// logins name it.
const SubjectWildcard = subjectPrefix + "*"

// Subject is the core NATS subject on which a person's frames travel.
func Subject(user uuid.UUID) string {
	return subjectPrefix + user.String()
}

// userOf is the reverse of Subject.
func userOf(subject string) (uuid.UUID, bool) {
	id, found := strings.CutPrefix(subject, subjectPrefix)
	if !found {
		return uuid.Nil, false
	}
	if len(id) != len("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
		return uuid.Nil, false // the parser takes other spellings too; nobody subscribes those
	}
	user, err := uuid.Parse(id)
	return user, err == nil
}
