package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// What the record tells of. The names are part of the API (AuditEvent.action) and never change.
const (
	auditRegistered        = "account.registered"
	auditLogIn             = "session.started"
	auditChallenged        = "session.second_factor_asked"
	auditLogOut            = "session.ended"
	auditLogOutAll         = "session.all_ended"
	auditSessionRenamed    = "session.renamed"
	auditRefreshReused     = "session.refresh_token_reused"
	auditEmailVerified     = "email.verified"
	auditEmailCodeSent     = "email.change_started"
	auditEmailChanged      = "email.changed"
	auditPasswordChanged   = "password.changed"
	auditPasswordReset     = "password.reset"
	auditResetCodeSent     = "password.reset_requested"
	auditActionCodeSent    = "second_factor.code_mailed"
	auditFactorEnrolled    = "second_factor.enrolled"
	auditFactorOn          = "second_factor.on"
	auditFactorOff         = "second_factor.off"
	auditRecoveryRenewed   = "second_factor.recovery_codes_renewed"
	auditRoleSet           = "role.set"
	auditSuspended         = "account.suspended"
	auditUnsuspended       = "account.unsuspended"
	auditAccountRead       = "admin.account_read"
	auditRecordRead        = "admin.audit_read"
	auditVerificationAsked = "email.code_sent"
)

// The actors, as the table names them.
const (
	actorAnonymous = "anonymous"
	actorSelf      = "self"
	actorAdmin     = "admin"
	actorOperator  = "operator"
	actorSystem    = "system"
)

// auditEntry is one entry of the record. What it does not say is taken from the call at hand.
type auditEntry struct {
	action string
	// account is whom it is about; the zero id: a name that nobody has, or everybody.
	account uuid.UUID
	// session is the one that began or ended, if it is not that of the call.
	session uuid.UUID
	// actor is set where nobody calls (operator, system), and where an admin acts as one. It is never guessed from a
	// token of another account, which anybody may send along.
	actor string
	// admin is who acted as one at another service; of those who call here it is the caller.
	admin   uuid.UUID
	details map[string]string
	// from is set where the call is over.
	from origin
	// always: it is done whatever the limit says. Nobody is kept from logging out.
	always bool
	// nothing is set when nothing has changed: there is nothing to record.
	nothing bool
}

// audited are the refusals that leave an entry: somebody had no right to what they tried. Mistakes of form and
// limits leave none; the limits also bound how many entries a stranger can cause.
var audited = map[errorv1.Reason]bool{
	errorv1.Reason_REASON_CREDENTIALS_INVALID:   true,
	errorv1.Reason_REASON_CODE_INVALID:          true,
	errorv1.Reason_REASON_SECOND_FACTOR_INVALID: true,
	errorv1.Reason_REASON_CHALLENGE_INVALID:     true,
	errorv1.Reason_REASON_ACCOUNT_SUSPENDED:     true,
	errorv1.Reason_REASON_ACCESS_DENIED:         true,
	errorv1.Reason_REASON_OWN_ACCOUNT:           true,
	errorv1.Reason_REASON_LAST_ADMIN:            true,
}

// leavesEntry says whether a refusal is recorded. Of what admins try, every refusal is.
func (e auditEntry) leavesEntry(reason errorv1.Reason) bool {
	return audited[reason] || e.actor == actorAdmin && reason != errorv1.Reason_REASON_UNSPECIFIED
}

// act does something together with its entry in the record: both commit, or neither. do may complete the entry. If
// do refuses, nothing of it has happened, and the refusal is recorded by itself. What people do to their own account
// is limited by number, because each time leaves an entry.
func (s *Service) act(ctx context.Context, e *auditEntry, do func(queries *db.Queries, emit emitFunc) error) error {
	if !e.always && e.actor == "" {
		if err := s.attempts.count(ctx, s.actionSubject(ctx, e.account)); err != nil {
			return err
		}
	}
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		queries := db.New(tx)
		if err := do(queries, emit); err != nil {
			return err
		}
		if e.nothing {
			return nil
		}
		return s.audit(ctx, queries, *e, errorv1.Reason_REASON_UNSPECIFIED)
	})
	return s.refused(ctx, *e, err)
}

// actionSubject counts what is done to an account by who does it: the session, or the address for those who only come
// in. One count for the account would let a stolen session, or somebody who knows the password and not the second
// factor, use up what its owner needs to end the theft.
func (s *Service) actionSubject(ctx context.Context, account uuid.UUID) subject {
	caller := identity.From(ctx)
	if caller.Kind == identity.User && caller.UserID == account {
		return subject{key: "actions:session:" + caller.SessionID.String(), limit: s.actionLimit}
	}
	return subject{key: "actions:" + account.String() + ":" + s.originOf(ctx).addressText(), limit: s.actionLimit}
}

// refused records a refusal and returns it. Any other error, and nil, is just returned. It goes on after the
// caller has left: who hangs up early leaves a trace too. A refusal stays one if it cannot be recorded.
func (s *Service) refused(ctx context.Context, e auditEntry, err error) error {
	coded := (*connect.Error)(nil)
	if err == nil || !errors.As(err, &coded) || !e.leavesEntry(rpc.ReasonOf(err)) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if auditErr := s.audit(ctx, db.New(s.pool), e, rpc.ReasonOf(err)); auditErr != nil {
		s.log.ErrorContext(ctx, "a refusal is missing in the record", "action", e.action, "account_id", e.account, "error", auditErr)
	}
	return err
}

// audit writes an entry into the transaction that queries belongs to.
func (s *Service) audit(ctx context.Context, queries *db.Queries, e auditEntry, refusal errorv1.Reason) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an audit entry's id: %w", err)
	}
	from, caller := e.from, identity.From(ctx)
	if from == (origin{}) {
		from = s.originOf(ctx)
	}
	row := db.AuditAppendParams{
		ID: id, At: s.clock.Now(), AccountID: idOrNull(e.account), Action: e.action, Refused: reasonName(refusal),
		Actor: e.actor, SessionID: idOrNull(e.session), Address: from.addressText(), UserAgent: from.userAgent, Details: []byte("{}"),
	}
	switch row.Actor {
	case "":
		row.Actor, row.ActorID = actorOf(caller, e.account)
	case actorAdmin:
		row.ActorID = idOrNull(caller.UserID)
		if e.admin != uuid.Nil {
			row.ActorID = &e.admin
		}
	}
	if row.SessionID == nil && (row.Actor == actorSelf || row.Actor == actorAdmin) {
		row.SessionID = idOrNull(caller.SessionID)
	}
	if len(e.details) > 0 {
		if row.Details, err = json.Marshal(e.details); err != nil {
			return fmt.Errorf("encode an audit entry: %w", err)
		}
	}
	if err := queries.AuditAppend(ctx, row); err != nil {
		return fmt.Errorf("insert audit entry: %w", err)
	}
	return nil
}

// actorOf tells what a caller is for an account. Somebody else's token proves nothing here, so that its bearer is as
// good as nobody; admins may see whose it was.
func actorOf(caller identity.Caller, account uuid.UUID) (actor string, id *uuid.UUID) {
	switch {
	case caller.Kind == identity.Service:
		return actorSystem, nil
	case caller.Kind != identity.User:
		return actorAnonymous, nil
	case caller.UserID == account:
		return actorSelf, &caller.UserID
	default:
		return actorAnonymous, &caller.UserID
	}
}

// reasonName is empty for no reason.
func reasonName(reason errorv1.Reason) string {
	if reason == errorv1.Reason_REASON_UNSPECIFIED {
		return ""
	}
	return strings.TrimPrefix(reason.String(), "REASON_")
}

func idOrNull(id uuid.UUID) *uuid.UUID {
	if id == uuid.Nil {
		return nil
	}
	return &id
}

// auditPosition is the last entry of a page.
type auditPosition struct {
	At time.Time
	ID uuid.UUID
}

const (
	auditPageSize = 50
	auditMaxPage  = 200
)

// ListOwnAuditEvents implements the RPC.
func (s *Service) ListOwnAuditEvents(ctx context.Context, req *authv1.ListOwnAuditEventsRequest) (*authv1.ListOwnAuditEventsResponse, error) {
	me := identity.From(ctx).UserID
	rows, next, err := auditPage(ctx, db.New(s.pool), "auth.own_audit", me, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	res := &authv1.ListOwnAuditEventsResponse{NextPageToken: next}
	for _, row := range rows {
		ev, err := auditToProto(row)
		if err != nil {
			return nil, err
		}
		if ev.GetActor() != authv1.AuditActor_AUDIT_ACTOR_SELF {
			ev.ActorId = ""
			// Where an admin sits, and what they noted, is not the person's to know.
			if ev.GetActor() == authv1.AuditActor_AUDIT_ACTOR_ADMIN || ev.GetActor() == authv1.AuditActor_AUDIT_ACTOR_OPERATOR {
				ev.SessionId, ev.Address, ev.UserAgent, ev.Details = "", "", "", nil
			}
		}
		res.Events = append(res.Events, ev)
	}
	return res, nil
}

// auditPage reads a page of one account, or of all for the zero id.
func auditPage(ctx context.Context, queries *db.Queries, kind string, account uuid.UUID, size int32, token string) ([]db.Audit, string, error) {
	after, err := page.Decode[auditPosition](kind, token, account)
	if err != nil {
		return nil, "", err
	}
	limit := page.Size(size, auditPageSize, auditMaxPage)
	var beforeAt *time.Time
	var beforeID *uuid.UUID
	if after != nil {
		beforeAt, beforeID = &after.At, &after.ID
	}
	var rows []db.Audit
	// One more than asked for tells whether there is another page.
	if account == uuid.Nil {
		rows, err = queries.AuditOfAll(ctx, db.AuditOfAllParams{BeforeAt: beforeAt, BeforeID: beforeID, PageSize: limit + 1})
	} else {
		rows, err = queries.AuditOfAccount(ctx, db.AuditOfAccountParams{AccountID: account, BeforeAt: beforeAt, BeforeID: beforeID, PageSize: limit + 1})
	}
	if err != nil {
		return nil, "", fmt.Errorf("select audit entries: %w", err)
	}
	if len(rows) <= int(limit) {
		return rows, "", nil
	}
	rows = rows[:limit]
	last := rows[limit-1]
	next, err := page.Encode(kind, auditPosition{last.At, last.ID}, account)
	return rows, next, err
}

// pruneAudit deletes entries that are older than the retention.
func (s *Service) pruneAudit(ctx context.Context) error {
	before := s.clock.Now().Add(-s.auditRetention)
	return prune(func() (int64, error) {
		return db.New(s.pool).AuditPrune(ctx, db.AuditPruneParams{Before: before, Batch: pruneBatch})
	})
}

// prune repeats a deletion in batches until nothing is left of it.
func prune(batch func() (int64, error)) error {
	for {
		pruned, err := batch()
		if err != nil {
			return fmt.Errorf("prune: %w", err)
		}
		if pruned < pruneBatch {
			return nil
		}
	}
}

var auditActors = map[string]authv1.AuditActor{
	actorAnonymous: authv1.AuditActor_AUDIT_ACTOR_ANONYMOUS,
	actorSelf:      authv1.AuditActor_AUDIT_ACTOR_SELF,
	actorAdmin:     authv1.AuditActor_AUDIT_ACTOR_ADMIN,
	actorOperator:  authv1.AuditActor_AUDIT_ACTOR_OPERATOR,
	actorSystem:    authv1.AuditActor_AUDIT_ACTOR_SYSTEM,
}

func auditToProto(row db.Audit) (*authv1.AuditEvent, error) {
	ev := &authv1.AuditEvent{
		Id: row.ID.String(), At: timestamppb.New(row.At), UserId: idText(row.AccountID), Action: row.Action,
		Outcome: authv1.AuditOutcome_AUDIT_OUTCOME_DONE, Reason: row.Refused,
		Actor: auditActors[row.Actor], ActorId: idText(row.ActorID), SessionId: idText(row.SessionID),
		Address: row.Address, UserAgent: row.UserAgent,
	}
	if row.Refused != "" {
		ev.Outcome = authv1.AuditOutcome_AUDIT_OUTCOME_REFUSED
	}
	if err := json.Unmarshal(row.Details, &ev.Details); err != nil {
		return nil, fmt.Errorf("decode audit entry %s: %w", row.ID, err)
	}
	return ev, nil
}

func idText(id *uuid.UUID) string {
	if id == nil {
		return ""
	}
	return id.String()
}
