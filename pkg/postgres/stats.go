package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Measure has the metrics database_… tell of a pool, under the name of its
// service, until stop is called. They are read when somebody asks for the
// metrics; a call pays nothing.
func Measure(pool *pgxpool.Pool, service string) (stop func() error, err error) {
	meter := otel.Meter("github.com/parleychat/parley/pkg/postgres")
	var errs [6]error
	var connections, most metric.Int64ObservableGauge
	var acquires, waits, canceled metric.Int64ObservableCounter
	var waited metric.Float64ObservableCounter
	connections, errs[0] = meter.Int64ObservableGauge("database_connections",
		metric.WithDescription("Connections of the pool to PostgreSQL, by state: used, idle, opening."))
	most, errs[1] = meter.Int64ObservableGauge("database_connections_max",
		metric.WithDescription("The most connections that the pool may open."))
	acquires, errs[2] = meter.Int64ObservableCounter("database_acquires_total",
		metric.WithDescription("Times that a connection was taken from the pool."))
	waits, errs[3] = meter.Int64ObservableCounter("database_acquire_waits_total",
		metric.WithDescription("Times that no connection was free, so that one was waited for."))
	canceled, errs[4] = meter.Int64ObservableCounter("database_acquires_canceled_total",
		metric.WithDescription("Times that whoever waited for a connection gave up."))
	waited, errs[5] = meter.Float64ObservableCounter("database_acquire_wait_seconds_total", metric.WithUnit("s"),
		metric.WithDescription("Time spent waiting for a free connection."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	of := attribute.String("service", service)
	own := metric.WithAttributeSet(attribute.NewSet(of))
	state := func(name string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(of, attribute.String("state", name)))
	}
	used, idle, opening := state("used"), state("idle"), state("opening")
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := pool.Stat()
		o.ObserveInt64(connections, int64(s.AcquiredConns()), used)
		o.ObserveInt64(connections, int64(s.IdleConns()), idle)
		o.ObserveInt64(connections, int64(s.ConstructingConns()), opening)
		o.ObserveInt64(most, int64(s.MaxConns()), own)
		o.ObserveInt64(acquires, s.AcquireCount(), own)
		o.ObserveInt64(waits, s.EmptyAcquireCount(), own)
		o.ObserveInt64(canceled, s.CanceledAcquireCount(), own)
		o.ObserveFloat64(waited, s.EmptyAcquireWaitTime().Seconds(), own)
		return nil
	}, connections, most, acquires, waits, canceled, waited)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return registration.Unregister, nil
}
