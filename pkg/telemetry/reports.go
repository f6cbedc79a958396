package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/getsentry/sentry-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Reports says where errors are reported to, beside the log.
type Reports struct {
	// DSN is the address of a project at any Sentry-compatible server, its key
	// included. Empty: no reports.
	DSN string
	// Environment tells deployments apart.
	Environment string
}

const (
	// reportsPerSecond and reportBurst bound what one process reports: an outage
	// makes thousands of equal lines, and a few tell all.
	reportsPerSecond, reportBurst = 0.5, 30
	// reportAgain is after how long the same error is worth another report.
	reportAgain = time.Minute
	// maxReported bounds the memory of what was reported.
	maxReported = 512
	// maxReportText is the longest text of a report, in bytes; a stack has about
	// 8 KiB.
	maxReportText = 16 << 10
	// reportTimeout bounds the delivery of one report.
	reportTimeout = 5 * time.Second
)

// reportedText are the attributes whose text goes into a report: names of parts of
// the program and errors. What is not listed may say who a person is, or what
// they did, and stays in the log; so does a key that somebody adds tomorrow.
// Numbers, durations and yes or no are reported under any key.
var reportedText = map[string]bool{
	"service": true, "procedure": true, "error": true, "panic": true, "stack": true, "event": true, "type": true,
	"listener": true, "job": true, "reason": true, "metric": true, "row": true, "stream": true, "table": true,
	"partition": true, "kind": true, "what": true, "phase": true, "part": true, "worker": true, "cause": true, "outcome": true,
}

// reports sends the records of errors to a Sentry-compatible server. It never
// blocks whoever logs: what does not fit into the transport's buffer is dropped.
type reports struct {
	client *sentry.Client
	http   *http.Transport
	limit  *rate.Limiter

	mu   sync.Mutex
	seen map[string]*repetition
}

// repetition counts how often an error came since it was reported.
type repetition struct {
	at    time.Time
	since int
}

// newReports makes the client; nil without a DSN. The error does not quote the
// DSN, which holds a key.
func newReports(cfg Config) (*reports, error) {
	if cfg.Reports.DSN == "" {
		return nil, nil //nolint:nilnil // no reports is a valid answer
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: reportTimeout, MaxIdleConns: 1, IdleConnTimeout: time.Minute}
	client, err := sentry.NewClient(sentry.ClientOptions{
		Dsn: cfg.Reports.DSN, Environment: cfg.Reports.Environment, Release: cfg.Version, ServerName: instance(),
		Transport:  sentry.NewHTTPTransport(),
		HTTPClient: &http.Client{Timeout: reportTimeout, Transport: transport},
		// The library's own collectors tell of the machine, of its modules and of
		// requests; we report what stands in the record and nothing else.
		Integrations:           func([]sentry.Integration) []sentry.Integration { return nil },
		DataCollection:         &sentry.DataCollection{},
		MaxBreadcrumbs:         -1,
		DisableClientReports:   true,
		DisableTelemetryBuffer: true,
	})
	if err != nil {
		return nil, errors.New("the DSN of the error reports is not valid")
	}
	return &reports{client: client, http: transport, limit: rate.NewLimiter(reportsPerSecond, reportBurst), seen: map[string]*repetition{}}, nil
}

// close delivers what is held, as long as ctx allows. Later errors are not
// reported.
func (r *reports) close(ctx context.Context) error {
	defer r.http.CloseIdleConnections()
	defer r.client.Close()
	if !r.client.FlushWithContext(ctx) {
		return errors.New("error reports were not all delivered")
	}
	return nil
}

// report sends a record with the attributes of its logger.
func (r *reports) report(ctx context.Context, record slog.Record, attrs map[string]string) {
	repeated, ok := r.admit(record.Time, record.Message+"\x00"+attrs["service"]+"\x00"+attrs["procedure"]+"\x00"+attrs["error"])
	if !ok {
		return
	}
	event := sentry.NewEvent()
	event.Level, event.Timestamp, event.Logger = sentry.LevelError, record.Time, attrs["service"]
	event.Message = scrub(record.Message)
	event.Tags = map[string]string{}
	for _, key := range []string{"service", "procedure", "listener", "job"} {
		if attrs[key] != "" {
			event.Tags[key] = attrs[key]
		}
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		event.Tags["trace_id"] = span.TraceID().String()
	}
	event.Contexts["log"] = contextOf(attrs, repeated)
	exception := sentry.Exception{Type: event.Message, Value: attrs["error"], Stacktrace: whereFrom(record.PC)}
	if attrs["panic"] != "" {
		event.Level = sentry.LevelFatal
		exception.Value = attrs["panic"]
	}
	event.Exception = []sentry.Exception{exception}
	// Errors that quote a number or an address are one problem, not many.
	event.Fingerprint = []string{attrs["service"], event.Message, attrs["procedure"], attrs["listener"], attrs["job"]}
	r.client.CaptureEvent(event, nil, nil)
}

func contextOf(attrs map[string]string, repeated int) sentry.Context {
	out := make(sentry.Context, len(attrs)+1)
	for key, value := range attrs {
		out[key] = value
	}
	if repeated > 0 {
		out["repeated_since_last_report"] = repeated
	}
	return out
}

// admit tells whether the error is to be reported, and how often it came since it
// was the last time.
func (r *reports) admit(now time.Time, id string) (repeated int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.seen[id]
	if known != nil && now.Sub(known.at) < reportAgain {
		known.since++
		return 0, false
	}
	if !r.limit.AllowN(now, 1) {
		return 0, false
	}
	if known == nil {
		if len(r.seen) >= maxReported {
			maps.DeleteFunc(r.seen, func(_ string, s *repetition) bool { return now.Sub(s.at) >= reportAgain })
		}
		if len(r.seen) >= maxReported {
			clear(r.seen) // the limiter still holds
		}
		known = &repetition{}
		r.seen[id] = known
	}
	repeated, known.since, known.at = known.since, 0, now
	return repeated, true
}

// whereFrom is the line that logged.
func whereFrom(pc uintptr) *sentry.Stacktrace {
	if pc == 0 {
		return nil
	}
	at, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	frame := sentry.NewFrame(at)
	frame.AbsPath = "" // of the machine that built the program
	return &sentry.Stacktrace{Frames: []sentry.Frame{frame}}
}

// personal finds, beside what Mask does, ids and addresses: of whom they are is
// not known here.
var personal = regexp.MustCompile(
	`[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}` +
		`|\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b`)

// perhapsIPv6 finds what may be an address of the newer kind: a time of day looks
// nearly like one, so a parser decides.
var perhapsIPv6 = regexp.MustCompile(`[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?:\.[0-9]{1,3}){0,3}(?:%[0-9A-Za-z]+)?`)

// unhyphened finds ids without their hyphens, and other numbers of that length.
var unhyphened = regexp.MustCompile(`\b[0-9a-fA-F]{32,}\b`)

// quotedArgument begins what the database driver says of a value that it cannot
// send: the value follows.
const quotedArgument = "unable to encode "

// scrub is Mask for texts that leave the house.
func scrub(s string) string {
	s = Mask(s)
	if at := strings.Index(s, quotedArgument); at >= 0 {
		s = s[:at+len(quotedArgument)] + masked
	}
	s = perhapsIPv6.ReplaceAllStringFunc(s, func(text string) string {
		if _, err := netip.ParseAddr(text); err != nil {
			return text
		}
		return masked
	})
	s = unhyphened.ReplaceAllString(personal.ReplaceAllString(s, masked), masked)
	if len(s) > maxReportText {
		s = strings.ToValidUTF8(s[:maxReportText], "") + "…"
	}
	return s
}

// reported gives the text of an attribute in a report; ok is false for one that
// is not reported.
func reported(a slog.Attr) (text string, ok bool) {
	if isSecret(a.Key) {
		return "", false
	}
	switch a.Value.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindDuration:
		return a.Value.String(), true
	case slog.KindString, slog.KindAny:
		switch a.Key {
		case "event", "row":
			return Mask(fmt.Sprint(a.Value.Any())), true // ids of ours, not of people
		default:
			return scrub(maskAttr(nil, a).Value.String()), reportedText[a.Key]
		}
	default:
		return "", false
	}
}
