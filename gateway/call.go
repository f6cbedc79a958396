package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// perform forwards the call to its service and gives the encoded reply. The
// service verifies the token again: it trusts nobody.
func (p *pending) perform() ([]byte, kind) {
	if err := p.ctx.Err(); err != nil {
		// It has waited in its lane for too long, or its socket is gone: then nothing
		// may happen any more that nobody asked for again.
		return p.encode(p.ctx, nil, err), kindReply
	}
	g := p.c.gw
	began := time.Now()
	procedure := p.procedure()
	ctx, span := g.tracer.Start(p.ctx, strings.TrimPrefix(procedure, "/"),
		trace.WithSpanKind(trace.SpanKindServer), ofSocketCall)
	defer span.End()
	header := http.Header{"Authorization": {"Bearer " + p.token}}
	if p.c.address.IsValid() {
		header["X-Forwarded-For"] = []string{p.c.address.String()}
	}
	g.propagator.Inject(ctx, propagation.HeaderCarrier(header))

	response, err := p.respond(ctx, header)
	code := "ok"
	if err != nil {
		code = rpc.CodeOf(err).String()
		span.SetStatus(codes.Error, code)
	}
	g.metrics.called(ctx, procedure, "socket", code, time.Since(began))
	return p.encode(ctx, response, err), kindReply
}

// procedure names the call in metrics and traces.
func (p *pending) procedure() string {
	if p.watch != nil {
		return "watch"
	}
	return p.route.Procedure
}

// respond gives the response in the socket's encoding.
func (p *pending) respond(ctx context.Context, header http.Header) ([]byte, error) {
	if p.watch == nil {
		return p.offer(ctx, p.route.raw(p.c.format), header, p.request)
	}
	watched, err := p.performWatch(ctx, header)
	if err != nil {
		return nil, err
	}
	return p.c.format.message(watched)
}

// encode makes the reply; nil if there is nobody left to read it.
func (p *pending) encode(ctx context.Context, response []byte, callErr error) []byte {
	if errors.Is(p.ctx.Err(), context.Canceled) {
		return nil
	}
	var frame []byte
	var err error
	if callErr != nil {
		frame, err = p.c.format.encode(errorFrame(p.id, callErr))
	} else {
		frame, err = p.c.format.response(p.id, response)
	}
	if err == nil {
		return frame
	}
	// A service answered with what is not JSON: its fault and ours, not the client's.
	p.c.gw.log.ErrorContext(ctx, "reply not encoded", "procedure", p.procedure(), "error", err)
	frame, err = p.c.format.encode(errorFrame(p.id,
		rpc.Error(connect.CodeInternal, errorv1.Reason_REASON_INTERNAL, "internal error")))
	if err != nil {
		return nil
	}
	return frame
}

// errorFrame is the reply that carries an error.
func errorFrame(id uint32, err error) *realtimev1.ServerFrame { return replyWith(id, toError(err)) }

func replyWith(id uint32, refusal *realtimev1.Error) *realtimev1.ServerFrame {
	return &realtimev1.ServerFrame{Id: id, Frame: &realtimev1.ServerFrame_Reply{
		Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: refusal}},
	}}
}

// toError is the same error as a caller over HTTP gets.
func toError(err error) *realtimev1.Error {
	out := &realtimev1.Error{Code: rpc.CodeOf(err).String(), Info: rpc.InfoOf(err)}
	var coded *connect.Error
	if !errors.As(err, &coded) {
		return out
	}
	out.Message = coded.Message()
	infoName := string(out.GetInfo().ProtoReflect().Descriptor().FullName())
	for _, detail := range coded.Details() {
		if detail.Type() == infoName {
			continue
		}
		// What this program does not know cannot be written as JSON: left out in both
		// subprotocols, for they say the same.
		packed := &anypb.Any{TypeUrl: "type.googleapis.com/" + detail.Type(), Value: detail.Bytes()}
		if _, err := packed.UnmarshalNew(); err == nil {
			out.Details = append(out.Details, packed)
		}
	}
	return out
}
