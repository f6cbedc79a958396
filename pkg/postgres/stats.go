package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Measure has the metrics database_… tell of the pools of a service together, under
// its name, until stop is called. They are read when somebody asks for the
// metrics; a call pays nothing.
func Measure(service string, pools ...*pgxpool.Pool) (stop func() error, err error) {
	meter := otel.Meter("github.com/parleychat/parley/pkg/postgres")
	var errs [6]error
	var connections, most metric.Int64ObservableGauge
	var acquires, waits, canceled metric.Int64ObservableCounter
	var waited metric.Float64ObservableCounter
	connections, errs[0] = meter.Int64ObservableGauge("database_connections",
		metric.WithDescription("Connections of the pools to PostgreSQL, by state: used, idle, opening."))
	most, errs[1] = meter.Int64ObservableGauge("database_connections_max",
		metric.WithDescription("The most connections that the pools may open."))
	acquires, errs[2] = meter.Int64ObservableCounter("database_acquires_total",
		metric.WithDescription("Times that a connection was taken from a pool."))
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
		stats := make([]*pgxpool.Stat, len(pools))
		for i, pool := range pools {
			stats[i] = pool.Stat()
		}
		o.ObserveInt64(connections, sum(stats, (*pgxpool.Stat).AcquiredConns), used)
		o.ObserveInt64(connections, sum(stats, (*pgxpool.Stat).IdleConns), idle)
		o.ObserveInt64(connections, sum(stats, (*pgxpool.Stat).ConstructingConns), opening)
		o.ObserveInt64(most, sum(stats, (*pgxpool.Stat).MaxConns), own)
		o.ObserveInt64(acquires, sum(stats, (*pgxpool.Stat).AcquireCount), own)
		o.ObserveInt64(waits, sum(stats, (*pgxpool.Stat).EmptyAcquireCount), own)
		o.ObserveInt64(canceled, sum(stats, (*pgxpool.Stat).CanceledAcquireCount), own)
		o.ObserveFloat64(waited, time.Duration(sum(stats, (*pgxpool.Stat).EmptyAcquireWaitTime)).Seconds(), own)
		return nil
	}, connections, most, acquires, waits, canceled, waited)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return registration.Unregister, nil
}

func sum[T ~int32 | ~int64](stats []*pgxpool.Stat, of func(*pgxpool.Stat) T) int64 {
	var all int64
	for _, s := range stats {
		all += int64(of(s))
	}
	return all
}
