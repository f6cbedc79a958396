package messaging

import "time"

// settings are the variables PARLEY_MESSAGING_… beside those that every service has.
type settings struct {
	// One: what comes while it commits makes the next batch larger, and a message
	// of a large batch costs a third of one of a small batch.
	Committers  int `env:"COMMITTERS" default:"1" min:"1" max:"16" doc:"Transactions of sends that one replica runs at once. More than one pays only where the database is far away and has many cores."`
	CommitBatch int `env:"COMMIT_BATCH" default:"256" min:"1" max:"1024" doc:"The most sends in one transaction."`
	CommitQueue int `env:"COMMIT_QUEUE" default:"2048" min:"1" max:"1000000" doc:"The most sends that wait for one committer; beyond it OVERLOADED. About half a second's worth: who waits longer has given up."`
	// At most a second: so long may a receipt be lost in a crash.
	ReceiptInterval time.Duration `env:"RECEIPT_INTERVAL" default:"500ms" min:"1ms" max:"1s" doc:"For how long watermarks are gathered before they are stored."`
	// An operator raises it after restoring a backup that no other sign of the
	// database tells: every client then starts Sync from the beginning.
	SyncEpoch     int64 `env:"SYNC_EPOCH" default:"0" min:"0" doc:"Raise it by one after restoring a backup into the same database cluster."`
	TypingMembers int   `env:"TYPING_MEMBERS" default:"100" min:"2" max:"1000" doc:"In conversations of more members nobody is told who is writing."`
}
