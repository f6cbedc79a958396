package user

import "time"

// settings are the variables PARLEY_USER_… beside those that every service has.
type settings struct {
	ConfirmationAge time.Duration `env:"CONFIRMATION_AGE" default:"10m" min:"1m" max:"24h" doc:"How long ago a log-in or a confirmed password may be for a deletion or an export."`
	DeletionGrace   time.Duration `env:"DELETION_GRACE" default:"336h" max:"8784h" doc:"From the request to be deleted until it is done: so long the person may take it back."`
	ErasureLate     time.Duration `env:"ERASURE_LATE" default:"1h" min:"1m" max:"720h" doc:"After this time a service that has not forgotten a deleted person is called late, in the log and in user_erasures_late."`
	ErasureRepeat   time.Duration `env:"ERASURE_REPEAT" default:"24h" min:"1m" max:"720h" doc:"After this time user.deleted is told again while a service has not forgotten the person: the stream keeps an event for three days only."`
	ExportsPerDay   int64         `env:"EXPORTS_PER_DAY" default:"5" min:"1" max:"1000" doc:"Exports of data per person within 24 hours."`
	ExportPlaces    int           `env:"EXPORT_PLACES" default:"4" min:"1" max:"1000" doc:"Exports that one replica runs at once; beyond it OVERLOADED."`
	ExportStall     time.Duration `env:"EXPORT_STALL" default:"1m" min:"100ms" max:"30m" doc:"For how long the reader of an export may take nothing of it before it is broken off."`
	SearchLimit     int           `env:"SEARCH_LIMIT" default:"30" min:"1" max:"100000" doc:"Searches for people per person and minute."`

	UpdateLimit   int `env:"UPDATE_LIMIT" default:"20" min:"1" max:"100000" doc:"Changes of profile and of presence settings per person and minute: each is told to many."`
	LookLimit     int `env:"LOOK_LIMIT" default:"3000" min:"200" max:"1000000" doc:"People whose profile or presence one person may ask for per minute, at one replica."`
	StrangerLimit int `env:"STRANGER_LIMIT" default:"300" min:"200" max:"100000" doc:"Ids that nobody is known by whom one person may ask for per minute, at one replica: each is asked of auth."`

	PresenceGrace time.Duration `env:"PRESENCE_GRACE" default:"30s" max:"1h" doc:"For how long somebody without a connection still counts as online: longer than a reconnect to another gateway takes."`
}
