package admin

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// measure has the metrics tell what /readyz tells, until stop is called. The
// checks run when somebody asks for the metrics, with their own bound of time.
func (s *Server) measure(ctx context.Context) (stop func()) {
	meter := otel.Meter("github.com/parleychat/parley/pkg/admin")
	ready, err := meter.Int64ObservableGauge("process_ready",
		metric.WithDescription("1 while the process takes traffic, else 0."))
	up, upErr := meter.Int64ObservableGauge("process_check_up",
		metric.WithDescription("1 while a check of readiness is good, else 0; named service/dependency."))
	var registration metric.Registration
	if err = errors.Join(err, upErr); err == nil {
		registration, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
			status := s.Status(ctx)
			o.ObserveInt64(ready, one(status.Ready))
			for name, result := range status.Checks {
				o.ObserveInt64(up, one(result == "ok"), metric.WithAttributes(attribute.String("check", name)))
			}
			return nil
		}, ready, up)
	}
	if err != nil {
		s.log.WarnContext(ctx, "readiness is not measured", "error", err)
		return func() {}
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			s.log.WarnContext(ctx, "metrics of readiness", "error", err)
		}
	}
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
