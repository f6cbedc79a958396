package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/portability"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// exportPage rows are read by one query; between two of them no connection is held.
const exportPage = 200

// The lines of the files. Times are in UTC.
type (
	exportedAccount struct {
		ID                string     `json:"id"`
		Username          string     `json:"username"`
		Email             string     `json:"email"`
		EmailVerifiedAt   *time.Time `json:"email_verified_at,omitempty"`
		DisplayName       string     `json:"display_name"`
		Role              string     `json:"role"`
		CreatedAt         time.Time  `json:"created_at"`
		PasswordChangedAt *time.Time `json:"password_changed_at,omitempty"`
		UsernameChangedAt *time.Time `json:"username_changed_at,omitempty"`
		SuspendedAt       *time.Time `json:"suspended_at,omitempty"`
		SuspendedUntil    *time.Time `json:"suspended_until,omitempty"`
		SecondFactor      bool       `json:"second_factor"`
	}
	exportedUsername struct {
		Username  string    `json:"username"`
		HeldUntil time.Time `json:"held_until"`
	}
	exportedSession struct {
		ID         string     `json:"id"`
		DeviceName string     `json:"device_name"`
		Address    string     `json:"address,omitempty"`
		UserAgent  string     `json:"user_agent,omitempty"`
		CreatedAt  time.Time  `json:"created_at"`
		LastUsedAt time.Time  `json:"last_used_at"`
		ExpiresAt  time.Time  `json:"expires_at"`
		RevokedAt  *time.Time `json:"revoked_at,omitempty"`
		// ConfirmedAt is when its owner was last proved.
		ConfirmedAt *time.Time `json:"confirmed_at,omitempty"`
	}
	exportedAudit struct {
		At        time.Time       `json:"at"`
		Action    string          `json:"action"`
		Refused   string          `json:"refused,omitempty"`
		Actor     string          `json:"actor"`
		Address   string          `json:"address,omitempty"`
		UserAgent string          `json:"user_agent,omitempty"`
		Details   json.RawMessage `json:"details,omitempty"`
	}
	// exportedDeed is what the person did as an admin. To whom is not told: that is the others'.
	exportedDeed struct {
		At        time.Time  `json:"at"`
		Action    string     `json:"action"`
		Refused   string     `json:"refused,omitempty"`
		SessionID *uuid.UUID `json:"session_id,omitempty"`
		Address   string     `json:"address,omitempty"`
		UserAgent string     `json:"user_agent,omitempty"`
	}
	exportedPending struct {
		WaitsFor   string     `json:"waits_for"`
		SentTo     string     `json:"sent_to,omitempty"`
		DeviceName string     `json:"device_name,omitempty"`
		CreatedAt  *time.Time `json:"created_at,omitempty"`
		ExpiresAt  time.Time  `json:"expires_at"`
		Tries      int32      `json:"tries"`
	}
	exportedIdentity struct {
		Provider   string     `json:"provider"`
		Issuer     string     `json:"issuer"`
		Subject    string     `json:"subject"`
		Email      string     `json:"email"`
		LinkedAt   time.Time  `json:"linked_at"`
		LastUsedAt *time.Time `json:"last_used_at,omitempty"`
	}
	exportedNotice struct {
		Email     string    `json:"email"`
		Template  string    `json:"template"`
		CreatedAt time.Time `json:"created_at"`
		// Data is what the mail will say.
		Data json.RawMessage `json:"data,omitempty"`
	}
)

// ExportPerson implements the RPC.
func (s *Service) ExportPerson(ctx context.Context, req *portabilityv1.ExportPersonRequest, stream *connect.ServerStream[portabilityv1.ExportPersonResponse]) error {
	id, err := uuid.Parse(req.GetUserId())
	if err != nil {
		return fmt.Errorf("parse an id that was validated: %w", err)
	}
	files := portability.To(stream.Send)
	for _, export := range []func(context.Context, uuid.UUID, *portability.Files) error{
		s.exportAccount, s.exportIdentities, s.exportSessions, s.exportAudit, s.exportDeeds, s.exportPending, s.exportNotices,
	} {
		if err := export(ctx, id, files); err != nil {
			return err
		}
	}
	return files.Flush()
}

func (s *Service) exportAccount(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	queries := db.New(s.pool)
	row, err := queries.AccountExport(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("select account: %w", err)
	}
	err = files.JSON("account.json", exportedAccount{
		ID: row.ID.String(), Username: row.Username, Email: row.Email, EmailVerifiedAt: inUTC(row.EmailVerifiedAt),
		DisplayName: row.DisplayName, Role: row.Role, CreatedAt: row.CreatedAt.UTC(), PasswordChangedAt: inUTC(row.PasswordChangedAt),
		UsernameChangedAt: inUTC(row.UsernameChangedAt), SuspendedAt: inUTC(row.SuspendedAt), SuspendedUntil: inUTC(row.SuspendedUntil),
		SecondFactor: row.SecondFactor,
	})
	if err != nil {
		return err
	}
	holds, err := queries.UsernameHoldsOf(ctx, id)
	if err != nil {
		return fmt.Errorf("select old user names: %w", err)
	}
	if err := files.Begin("usernames.ndjson"); err != nil {
		return err
	}
	for _, hold := range holds {
		if err := files.Line(exportedUsername{hold.Username, hold.HeldUntil.UTC()}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) exportIdentities(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("identities.ndjson"); err != nil {
		return err
	}
	rows, err := db.New(s.pool).IdentitiesExport(ctx, id)
	if err != nil {
		return fmt.Errorf("select identities: %w", err)
	}
	for _, row := range rows {
		err := files.Line(exportedIdentity{
			Provider: row.Provider, Issuer: row.Issuer, Subject: row.Subject, Email: row.Email,
			LinkedAt: row.LinkedAt.UTC(), LastUsedAt: inUTC(row.LastUsedAt),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) exportSessions(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("sessions.ndjson"); err != nil {
		return err
	}
	after := uuid.Nil
	for {
		rows, err := db.New(s.pool).SessionsExport(ctx, db.SessionsExportParams{AccountID: id, AfterID: after, PageSize: exportPage})
		if err != nil {
			return fmt.Errorf("select sessions: %w", err)
		}
		for _, row := range rows {
			err := files.Line(exportedSession{
				ID: row.ID.String(), DeviceName: row.DeviceName, Address: row.Address, UserAgent: row.UserAgent,
				CreatedAt: row.CreatedAt.UTC(), LastUsedAt: row.RotatedAt.UTC(), ExpiresAt: earlier(row.ExpiresAt, row.IdleExpiresAt).UTC(),
				RevokedAt: inUTC(row.RevokedAt), ConfirmedAt: inUTC(row.ConfirmedAt),
			})
			if err != nil {
				return err
			}
		}
		if len(rows) < exportPage {
			return nil
		}
		after = rows[len(rows)-1].ID
	}
}

// exportAudit writes what the person may see of the record anyway, see ListOwnAuditEvents: where an admin sat,
// and what they noted, is not the person's to know.
func (s *Service) exportAudit(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("audit.ndjson"); err != nil {
		return err
	}
	params := db.AuditOfAccountParams{AccountID: id, PageSize: exportPage}
	for {
		rows, err := db.New(s.pool).AuditOfAccount(ctx, params)
		if err != nil {
			return fmt.Errorf("select audit entries: %w", err)
		}
		for _, row := range rows {
			line := exportedAudit{At: row.At.UTC(), Action: row.Action, Refused: row.Refused, Actor: row.Actor}
			if row.Actor == actorSelf || row.Actor == actorAnonymous {
				line.Address, line.UserAgent, line.Details = row.Address, row.UserAgent, row.Details
			}
			if err := files.Line(line); err != nil {
				return err
			}
		}
		if len(rows) < exportPage {
			return nil
		}
		last := rows[len(rows)-1]
		params.BeforeAt, params.BeforeID = &last.At, &last.ID
	}
}

// exportDeeds writes what the person did as an admin.
func (s *Service) exportDeeds(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("deeds.ndjson"); err != nil {
		return err
	}
	params := db.AuditByAdminParams{AdminID: id, PageSize: exportPage}
	for {
		rows, err := db.New(s.pool).AuditByAdmin(ctx, params)
		if err != nil {
			return fmt.Errorf("select an admin's audit entries: %w", err)
		}
		for _, row := range rows {
			err := files.Line(exportedDeed{row.At.UTC(), row.Action, row.Refused, row.SessionID, row.Address, row.UserAgent})
			if err != nil {
				return err
			}
		}
		if len(rows) < exportPage {
			return nil
		}
		last := rows[len(rows)-1]
		params.BeforeAt, params.BeforeID = &last.At, &last.ID
	}
}

// exportPending writes what waits for the person: codes that were mailed, log-ins that lack the second factor. There
// are a handful at most.
func (s *Service) exportPending(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("pending.ndjson"); err != nil {
		return err
	}
	queries := db.New(s.pool)
	codes, err := queries.CodesExport(ctx, id)
	if err != nil {
		return fmt.Errorf("select codes: %w", err)
	}
	for _, row := range codes {
		err := files.Line(exportedPending{
			WaitsFor: row.Purpose, SentTo: row.Email, CreatedAt: inUTC(&row.CreatedAt), ExpiresAt: row.ExpiresAt.UTC(), Tries: row.Tries,
		})
		if err != nil {
			return err
		}
	}
	challenges, err := queries.ChallengesExport(ctx, id)
	if err != nil {
		return fmt.Errorf("select log-ins: %w", err)
	}
	for _, row := range challenges {
		err := files.Line(exportedPending{
			WaitsFor: "second_factor", DeviceName: row.DeviceName, ExpiresAt: row.ExpiresAt.UTC(), Tries: row.Tries,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// exportNotices writes the mails that are on their way. There are a handful at most.
func (s *Service) exportNotices(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	if err := files.Begin("notices.ndjson"); err != nil {
		return err
	}
	rows, err := db.New(s.pool).NoticesExport(ctx, id)
	if err != nil {
		return fmt.Errorf("select notices: %w", err)
	}
	for _, row := range rows {
		if err := files.Line(exportedNotice{row.Email, row.Template, row.CreatedAt.UTC(), row.Data}); err != nil {
			return err
		}
	}
	return nil
}

func inUTC(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	utc := t.UTC()
	return &utc
}
