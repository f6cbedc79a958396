package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// A replica with a wrong clock refuses every token: to it they are expired, or of
// the future. Whoever believed that would log out. The gateway has checked the
// token by its own clock, so it is the replica that is doubted.

const (
	// disputeTries is how many replicas in turn a call is offered to. A service
	// refuses tokens before it does anything, so a repetition is safe.
	disputeTries = 3
	// disputeQuiet is the time between two warnings.
	disputeQuiet = 10 * time.Second
	// maxDispute is the largest answer, in bytes, that is looked into.
	maxDispute = 16 << 10
)

var errDisputed = errors.New("the service refuses a token that is good here")

// refusesToken says whether an error is a service's word that a token is not
// good. That a session was ended is no matter of clocks.
func refusesToken(err error) bool {
	if err == nil || rpc.CodeOf(err) != connect.CodeUnauthenticated {
		return false
	}
	reason := rpc.ReasonOf(err)
	return reason == errorv1.Reason_REASON_TOKEN_INVALID || reason == errorv1.Reason_REASON_TOKEN_EXPIRED
}

// offer calls the service, and another replica of it if the first one refuses a
// token that is good here. If all refuse, the service counts as unavailable.
func (p *pending) offer(ctx context.Context, service *rpc.RawClient, header http.Header, request []byte) ([]byte, error) {
	for range disputeTries {
		response, err := service.Call(ctx, header, request)
		if !refusesToken(err) {
			return response, err //nolint:wrapcheck // coded
		}
		if _, verr := p.c.gw.verifier.Verify(ctx, p.token); verr != nil {
			return nil, err //nolint:wrapcheck // coded, and right: the token has ended meanwhile
		}
		p.c.gw.warnDispute(ctx, p.procedure())
	}
	return nil, errDoubtful()
}

func errDoubtful() *connect.Error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"the service cannot check tokens at the moment"), time.Second)
}

// doubt is the same for a call over HTTP, whose token was checked when it was
// admitted. Its body is gone, so the caller has to repeat it. Only Connect's unary
// answers have a status that says what they are; others pass.
func (g *Gateway) doubt(res *http.Response) error {
	if res.StatusCode != http.StatusUnauthorized || res.Request == nil || res.Request.Header.Get("Authorization") == "" ||
		res.Header.Get("Content-Encoding") != "" {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxDispute))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if refusesToken(rpc.ParseError(res.StatusCode, body)) {
		_ = res.Body.Close() // nothing in it is of use any more
		g.warnDispute(res.Request.Context(), res.Request.URL.Path)
		return errDisputed
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), res.Body), res.Body}
	return nil
}

// warnDispute tells the operator, not too often.
func (g *Gateway) warnDispute(ctx context.Context, procedure string) {
	now := time.Now().UnixNano()
	last := g.disputed.Load()
	if now-last > int64(disputeQuiet) && g.disputed.CompareAndSwap(last, now) {
		g.log.WarnContext(ctx, "a service refuses a token that is good here: is its clock right?", "procedure", procedure)
	}
}
