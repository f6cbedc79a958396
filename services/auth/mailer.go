package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

const (
	// mailRequests bounds what waits in this process; what has no room is refused or, after a registration, left
	// to the person to ask for.
	mailRequests = 1024
	// mailDrain is how long a process that ends goes on with what it was asked for.
	mailDrain = 5 * time.Second
	// noticeBatch is how many notices are read at once.
	noticeBatch = 100
	// noticeLife is how long a notice is worth telling.
	noticeLife = 24 * time.Hour
)

// mailRequest asks for a code after the caller has been answered. Work that depends on whether an account exists
// happens there, where nobody can measure it.
type mailRequest struct {
	purpose purpose
	// account is known, or login names one that may not exist.
	account recipient
	login   string
	// from is where somebody asked, for the record.
	from origin
}

// mailer sends what a call does not wait for: codes that were asked for by strangers, and notices, which a
// transaction has stored and which are told at least once. A process that dies forgets the codes it was asked for;
// the person asks again.
type mailer struct {
	requests chan mailRequest
	// wake says that a notice was stored.
	wake chan struct{}
}

func newMailer() mailer {
	return mailer{requests: make(chan mailRequest, mailRequests), wake: make(chan struct{}, 1)}
}

// sendLater hands a request over; false when there is no room, or nobody sends mail.
func (s *Service) sendLater(r mailRequest) bool {
	if !s.mails.Enabled() {
		return false
	}
	select {
	case s.mailer.requests <- r:
		return true
	default:
		s.log.Warn("a mail that was asked for is not sent: too many are", "purpose", r.purpose.name)
		return false
	}
}

// runMailer works until ctx ends, and then on what it has, for a while.
func (s *Service) runMailer(ctx context.Context) error {
	for {
		select {
		case r := <-s.mailer.requests:
			s.serveRequest(ctx, r)
		case <-s.mailer.wake:
			s.tryNotices(ctx)
		case <-ctx.Done():
			s.drainMailer(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (s *Service) drainMailer(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mailDrain)
	defer cancel()
	for {
		select {
		case r := <-s.mailer.requests:
			s.serveRequest(ctx, r)
		case <-s.mailer.wake:
			s.tryNotices(ctx)
		default:
			return
		}
	}
}

func (s *Service) serveRequest(ctx context.Context, r mailRequest) {
	to, err := r.account, error(nil)
	if r.login != "" {
		var row db.AccountByLoginRow
		row, err = db.New(s.pool).AccountByLogin(ctx, r.login)
		if errors.Is(err, pgx.ErrNoRows) {
			return
		}
		to = recipient{row.ID, row.Username, row.Email}
	}
	if err == nil {
		// An account has two names; together they get no more mails than one.
		err = s.countSend(ctx, r.purpose, "id:"+to.id.String(), to.email)
	}
	if err == nil {
		err = s.sendCode(ctx, r.purpose, to, r.login == "")
	}
	if err == nil && r.login != "" {
		err = s.audit(ctx, db.New(s.pool), auditEntry{action: auditResetCodeSent, account: to.id, from: r.from}, errorv1.Reason_REASON_UNSPECIFIED)
	}
	switch {
	case err == nil, errors.Is(err, errCodeYoung), rpc.ReasonOf(err) == errorv1.Reason_REASON_RATE_LIMITED:
	default:
		s.log.WarnContext(ctx, "a code could not be sent", "purpose", r.purpose.name, "account_id", to.id, "error", err)
	}
}

// notice stores a mail that tells what the transaction does. It is sent after the commit, by this process or, if
// that dies, by the job of another.
func (s *Service) notice(ctx context.Context, queries *db.Queries, to recipient, template string, data map[string]string) error {
	if !s.mails.Enabled() {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make a notice's id: %w", err)
	}
	if data == nil {
		data = map[string]string{}
	}
	data["username"] = to.username
	encoded, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode a notice: %w", err)
	}
	err = queries.NoticePut(ctx, db.NoticePutParams{
		ID: id, AccountID: to.id, Email: to.email, Template: template, Data: encoded, CreatedAt: s.clock.Now(),
	})
	if err != nil {
		return fmt.Errorf("store a notice: %w", err)
	}
	return nil
}

// callOrigin is the data of notices that tell from where something was done.
func (s *Service) callOrigin(ctx context.Context) map[string]string {
	from, data := s.originOf(ctx), map[string]string{}
	if from.address.IsValid() {
		data["address"] = from.addressText()
	}
	if from.userAgent != "" {
		data["device"] = from.userAgent
	}
	return data
}

// noticesWait wakes the mailer, after a commit.
func (s *Service) noticesWait() {
	select {
	case s.mailer.wake <- struct{}{}:
	default: // it is awake
	}
}

func (s *Service) tryNotices(ctx context.Context) {
	if err := s.sendNotices(ctx); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "notices wait", "error", err)
	}
}

// sendNotices hands what is stored to the queue of mails. Two processes that do so at once, or one that dies before
// the deletion, hand over the same id twice, and the queue takes it once.
func (s *Service) sendNotices(ctx context.Context) error {
	queries := db.New(s.pool)
	for {
		rows, err := queries.NoticesWaiting(ctx, noticeBatch)
		if err != nil {
			return fmt.Errorf("select notices: %w", err)
		}
		for _, row := range rows {
			if err := s.sendNotice(ctx, row); err != nil {
				return err
			}
			if err := queries.NoticeDelete(ctx, row.ID); err != nil {
				return fmt.Errorf("delete notice: %w", err)
			}
		}
		if len(rows) < noticeBatch {
			return nil
		}
	}
}

// sendNotice returns an error when the notice is to be tried again.
func (s *Service) sendNotice(ctx context.Context, row db.NoticesWaitingRow) error {
	log := s.log.With(slog.Any("notice", row.ID), slog.String("template", row.Template))
	if s.clock.Now().Sub(row.CreatedAt) > noticeLife {
		log.WarnContext(ctx, "a notice is dropped: nobody could be told for a day")
		return nil
	}
	data := map[string]string{}
	if err := json.Unmarshal(row.Data, &data); err != nil {
		log.ErrorContext(ctx, "a notice is dropped: it cannot be read", "error", err)
		return nil
	}
	err := s.mails.Send(ctx, mail.Message{ID: row.ID, To: row.Email, Template: row.Template, Data: data})
	if err != nil && rpc.ReasonOf(err) != errorv1.Reason_REASON_MAIL_UNAVAILABLE && ctx.Err() == nil {
		log.ErrorContext(ctx, "a notice is dropped: it cannot be sent", "error", err)
		return nil
	}
	return err
}
