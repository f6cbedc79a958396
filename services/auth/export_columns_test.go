package auth_test

import "testing"

// exported says of every column what an export does with it. A new one has to be
// decided here.
var exported = map[string]string{
	"account.id": "account.json", "account.username": "account.json", "account.email": "account.json",
	"account.username_key": "not: made from the name", "account.email_key": "not: made from the address",
	"account.display_name": "account.json", "account.role": "account.json", "account.created_at": "account.json",
	"account.password_hash": "not: a secret", "account.version": "not: a clock",
	"account.email_verified_at": "account.json", "account.password_changed_at": "account.json",
	"account.username_changed_at": "account.json", "account.suspended_at": "account.json",
	"account.suspended_until": "account.json", "account.suspension_note": "not: the admins' own words among themselves",

	"session.id": "sessions.ndjson", "session.account_id": "the person", "session.device_name": "sessions.ndjson",
	"session.token_hash": "not: a secret", "session.rotated_at": "sessions.ndjson", "session.created_at": "sessions.ndjson",
	"session.expires_at": "sessions.ndjson", "session.idle_expires_at": "sessions.ndjson, the earlier of both",
	"session.revoked_at": "sessions.ndjson", "session.address": "sessions.ndjson", "session.user_agent": "sessions.ndjson",
	"session.confirmed_at": "sessions.ndjson",

	"signing_key.kid": "not: about nobody", "signing_key.generation": "not: about nobody", "signing_key.public_key": "not: about nobody",
	"signing_key.sealed_seed": "not: a secret", "signing_key.created_at": "not: about nobody", "signing_key.active_from": "not: about nobody",

	"audit.id": "not: a key", "audit.at": "audit.ndjson and deeds.ndjson", "audit.account_id": "the person; whom a deed was done to is theirs",
	"audit.action": "audit.ndjson and deeds.ndjson", "audit.refused": "audit.ndjson and deeds.ndjson", "audit.actor": "audit.ndjson",
	"audit.actor_id": "the person, in deeds.ndjson", "audit.session_id": "deeds.ndjson", "audit.address": "audit.ndjson and deeds.ndjson",
	"audit.user_agent": "audit.ndjson and deeds.ndjson", "audit.details": "audit.ndjson, of what the person did",

	"one_time_code.account_id": "the person", "one_time_code.purpose": "pending.ndjson", "one_time_code.id": "not: a key",
	"one_time_code.code_hash": "not: a secret", "one_time_code.email": "pending.ndjson", "one_time_code.tries": "pending.ndjson",
	"one_time_code.created_at": "pending.ndjson", "one_time_code.expires_at": "pending.ndjson",

	"mail_notice.id": "not: a key", "mail_notice.account_id": "the person", "mail_notice.email": "notices.ndjson",
	"mail_notice.template": "notices.ndjson", "mail_notice.data": "notices.ndjson", "mail_notice.created_at": "notices.ndjson",

	"second_factor.account_id": "account.json, that there is one", "second_factor.sealed_secret": "not: a secret",
	"second_factor.created_at": "not: audit.ndjson has it", "second_factor.confirmed_at": "not: audit.ndjson has it",
	"second_factor.last_step":  "not: a clock",
	"recovery_code.account_id": "not: secrets", "recovery_code.code_hash": "not: a secret",

	"log_in_challenge.token_hash": "not: a secret", "log_in_challenge.account_id": "the person",
	"log_in_challenge.device_name": "pending.ndjson", "log_in_challenge.tries": "pending.ndjson", "log_in_challenge.expires_at": "pending.ndjson",

	"username_hold.username_key": "not: made from the name", "username_hold.account_id": "the person",
	"username_hold.username": "usernames.ndjson", "username_hold.held_until": "usernames.ndjson",

	"oauth_identity.id": "not: a key", "oauth_identity.account_id": "the person", "oauth_identity.provider": "identities.ndjson",
	"oauth_identity.issuer": "identities.ndjson", "oauth_identity.subject": "identities.ndjson", "oauth_identity.email": "identities.ndjson",
	"oauth_identity.linked_at": "identities.ndjson", "oauth_identity.last_used_at": "identities.ndjson",

	"oauth_flow.state_hash": "not: a secret of ten minutes", "oauth_flow.provider": "not: as before", "oauth_flow.redirect_uri": "not: as before",
	"oauth_flow.client_challenge": "not: as before", "oauth_flow.session_id": "not: as before", "oauth_flow.expires_at": "not: as before",

	"oauth_ticket.ticket_hash": "not: of somebody who has no account yet", "oauth_ticket.provider": "not: as before",
	"oauth_ticket.issuer": "not: as before", "oauth_ticket.subject": "not: as before", "oauth_ticket.email": "not: as before",
	"oauth_ticket.email_verified": "not: as before", "oauth_ticket.name": "not: as before", "oauth_ticket.expires_at": "not: as before",
}

func TestEveryColumnIsExportedOrDecided(t *testing.T) {
	t.Parallel()
	h, _ := start(t)
	h.ColumnsDecided("auth", exported)
}
