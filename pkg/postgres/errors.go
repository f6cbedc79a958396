package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes that this house acts upon.
const (
	codeUniqueViolation      = "23505"
	codeCheckViolation       = "23514"
	codeSerialization        = "40001"
	codeDeadlock             = "40P01"
	codeLockNotAvailable     = "55P03"
	codeDuplicateObject      = "42710"
	codeDuplicateSchema      = "42P06"
	codeInternalError        = "XX000"
	codeTooManyConnections   = "53300"
	codeAdminShutdown        = "57P01"
	codeCrashShutdown        = "57P02"
	codeCannotConnectNow     = "57P03"
	codeReadOnlyTransaction  = "25006"
	classConnectionException = "08"
)

// IsUniqueViolation tells whether err is the violation of the named unique
// constraint or index; an empty name means any.
func IsUniqueViolation(err error, constraint string) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == codeUniqueViolation && (constraint == "" || pe.ConstraintName == constraint)
}

// IsRetryable tells whether the whole transaction may simply be run again: a
// serialization failure or a deadlock, after which nothing has happened.
func IsRetryable(err error) bool {
	return hasCode(err, codeSerialization, codeDeadlock)
}

// IsUnavailable tells whether err is the database's being away, starting,
// stopping, read-only after a failover or out of connections, rather than
// something that is wrong with the statement. Whether a COMMIT that failed like
// this has happened is unknown.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pe.Code, classConnectionException) ||
			hasCode(err, codeTooManyConnections, codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow, codeReadOnlyTransaction)
	}
	var ce *pgconn.ConnectError
	var ne net.Error
	return errors.As(err, &ce) || pgconn.SafeToRetry(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		(errors.As(err, &ne) && !errors.Is(err, context.DeadlineExceeded)) || errors.Is(err, net.ErrClosed)
}

// hasCode tells whether err carries one of the SQLSTATE codes.
func hasCode(err error, codes ...string) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pe.Code)
}
