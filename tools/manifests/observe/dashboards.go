package observe

import (
	"fmt"
	"strings"
)

// Dashboards are all pages.
func Dashboards() []Dashboard {
	return []Dashboard{overview(), gateway(), messages(), services(), processes()}
}

// quantile is a quantile of a histogram over the last five minutes.
func quantile(q float64, histogram string, by ...string) string {
	labels := append([]string{"le"}, by...)
	return fmt.Sprintf("histogram_quantile(%g, sum by (%s) (rate(%s_bucket[5m])))", q, strings.Join(labels, ", "), histogram)
}

func three(histogram string) []Query {
	return []Query{
		{quantile(.5, histogram), "p50"}, {quantile(.95, histogram), "p95"}, {quantile(.99, histogram), "p99"},
	}
}

func overview() Dashboard {
	return Dashboard{Name: "overview", Title: "Overview", Rows: []Row{
		{Title: "Promises", Panels: []Panel{
			{Title: "People online", Unit: "short", Single: true, Queries: []Query{{"parley:people_online", ""}}},
			{Title: "API calls", Unit: "reqps", Single: true, Queries: []Query{{"parley:api_calls:rate5m", ""}}},
			{Title: "API p95 (200 ms)", Unit: "s", Single: true, Limit: .2, Queries: []Query{{"parley:api_latency_seconds:p95", ""}}},
			{Title: "API errors (0.1 %)", Unit: "percentunit", Single: true, Limit: .001, Queries: []Query{{"parley:api_errors:ratio5m", ""}}},
			{Title: "Delivery p95 (50 ms)", Unit: "s", Single: true, Limit: .05, Queries: []Query{{"parley:message_delivery_seconds:p95", ""}}},
			{Title: "Dead letters", Unit: "short", Single: true, Limit: 1, Queries: []Query{{"sum(max by (service, listener) (dead_letters_stored))", ""}}},
		}},
		{Title: "Over time", Panels: []Panel{
			{Title: "API latency", Unit: "s", Limit: .2, Queries: []Query{
				{"parley:api_latency_seconds:p50", "p50"}, {"parley:api_latency_seconds:p95", "p95"}, {"parley:api_latency_seconds:p99", "p99"},
			}},
			{Title: "API errors", Unit: "percentunit", Limit: .001, Queries: []Query{{"parley:api_errors:ratio5m", "5 min"}, {"parley:api_errors:ratio1h", "1 h"}}},
			{Title: "Delivery p95", Unit: "s", Limit: .05, Queries: []Query{
				{"parley:message_delivery_seconds:p95", "commit to socket (sampled)"}, {"parley:push_delivery_seconds:p95", "bus to socket"},
			}},
			{Title: "Messages", Unit: "ops", Stacked: true, Queries: []Query{{"sum by (outcome) (rate(messaging_sends_total[5m]))", "{{outcome}}"}}},
			{Title: "Sockets", Unit: "short", Queries: []Query{{"sum by (authenticated) (gateway_connections)", "authenticated: {{authenticated}}"}}},
			{Title: "Cache hits", Unit: "percentunit", Queries: []Query{{"parley:cache_hits:ratio5m", "{{cache}}"}}},
			{Title: "Events not published, oldest", Unit: "s", Limit: 60, Queries: []Query{{"max by (service) (outbox_oldest_pending_seconds)", "{{service}}"}}},
			{Title: "Readiness that fails", Unit: "short", Queries: []Query{{"sum by (check) (1 - process_check_up) > 0", "{{check}}"}}},
			{Title: "Errors logged", Unit: "ops", Queries: []Query{{`sum by (service) (rate(log_records_total{level="error"}[5m]))`, "{{service}}"}}},
		}},
	}}
}

func gateway() Dashboard {
	return Dashboard{Name: "gateway", Title: "Gateway", Rows: []Row{
		{Title: "Sockets", Panels: []Panel{
			{Title: "Sockets by replica", Unit: "short", Stacked: true, Queries: []Query{{`sum by (instance) (gateway_connections{authenticated="true"})`, "{{instance}}"}}},
			{Title: "Handshakes", Unit: "ops", Queries: []Query{{"sum by (result) (rate(gateway_handshakes_total[5m]))", "{{result}}"}}},
			{Title: "Closes by code", Unit: "ops", Queries: []Query{{"sum by (code) (rate(gateway_closes_total[5m]))", "{{code}}"}}},
			{Title: "Frames in", Unit: "ops", Queries: []Query{{`sum by (kind) (rate(gateway_frames_total{direction="in"}[5m]))`, "{{kind}}"}}},
			{Title: "Frames out", Unit: "ops", Queries: []Query{{`sum by (kind) (rate(gateway_frames_total{direction="out"}[5m]))`, "{{kind}}"}}},
			{Title: "Queues of sockets", Unit: "bytes", Queries: []Query{
				{"sum(gateway_queued_bytes)", "all"}, {"max(gateway_longest_queue_bytes)", "longest"},
			}},
		}},
		{Title: "Delivery", Panels: []Panel{
			{Title: "From the bus to the socket", Unit: "s", Limit: .05, Queries: three("gateway_push_delivery_seconds")},
			{Title: "From the commit to the socket (sampled)", Unit: "s", Limit: .05, Queries: three("gateway_message_delivery_seconds")},
			{Title: "Losses, by cause", Unit: "short", Queries: []Query{{"sum by (cause) (increase(gateway_push_losses_total[15m]))", "{{cause}}"}}},
		}},
		{Title: "Presence", Panels: []Panel{
			{Title: "Watches", Unit: "short", Queries: []Query{{"sum(gateway_watches)", "watches"}}},
			{Title: "Left out for slow sockets", Unit: "ops", Queries: []Query{{"sum by (kind, superseded) (rate(gateway_ephemera_total[5m]))", "{{kind}} superseded: {{superseded}}"}}},
			{Title: "Transitions", Unit: "ops", Queries: []Query{{"sum by (online) (rate(user_presence_transitions_total[5m]))", "online: {{online}}"}}},
		}},
		{Title: "Calls", Panels: []Panel{
			{Title: "Calls by transport", Unit: "reqps", Stacked: true, Queries: []Query{{"sum by (transport) (rate(gateway_rpc_duration_seconds_count[5m]))", "{{transport}}"}}},
			{Title: "Calls by code", Unit: "reqps", Queries: []Query{{`sum by (code) (rate(gateway_rpc_duration_seconds_count{code!~"ok|200"}[5m]))`, "{{code}}"}}},
			{Title: "Slowest procedures, p95", Unit: "s", Limit: .2, Queries: []Query{{"topk(10, " + quantile(.95, "gateway_rpc_duration_seconds", "procedure") + ")", "{{procedure}}"}}},
			{Title: "Busiest procedures", Unit: "reqps", Queries: []Query{{"topk(10, sum by (procedure) (rate(gateway_rpc_duration_seconds_count[5m])))", "{{procedure}}"}}},
			{Title: "Refused before routing", Unit: "reqps", Queries: []Query{{"sum by (reason) (rate(gateway_rejected_requests_total[5m]))", "{{reason}}"}}},
		}},
	}}
}

func messages() Dashboard {
	return Dashboard{Name: "messages", Title: "Messages and events", Rows: []Row{
		{Title: "Group commit", Panels: []Panel{
			{Title: "Sends by outcome", Unit: "ops", Stacked: true, Queries: []Query{{"sum by (outcome) (rate(messaging_sends_total[5m]))", "{{outcome}}"}}},
			{Title: "Commit", Unit: "s", Queries: three("messaging_commit_seconds")},
			{Title: "Sends that wait", Unit: "short", Limit: 1000, Queries: []Query{{"max(messaging_queue_depth)", "most of a replica"}}},
			{Title: "Sends in a commit", Unit: "short", Queries: three("messaging_batch_size")},
			{Title: "Syncs in a query", Unit: "short", Queries: three("messaging_sync_batch_size")},
			{Title: "Receipts and lost pushes", Unit: "ops", Queries: []Query{
				{"sum(rate(messaging_receipt_marks_total[5m]))", "marks written"}, {"sum(rate(messaging_push_failures_total[5m]))", "pushes not sent"},
			}},
		}},
		{Title: "Events", Panels: []Panel{
			{Title: "Published", Unit: "ops", Queries: []Query{{"sum by (service) (rate(outbox_published_total[5m]))", "{{service}}"}}},
			{Title: "Not published: rows", Unit: "short", Queries: []Query{{"max by (service) (outbox_pending_rows)", "{{service}}"}}},
			{Title: "Not published: oldest", Unit: "s", Limit: 60, Queries: []Query{{"max by (service) (outbox_oldest_pending_seconds)", "{{service}}"}}},
			{Title: "Left to the relay, and done by it", Unit: "ops", Queries: []Query{
				{"sum by (service) (rate(outbox_left_rows_total[5m]))", "{{service}} left"}, {"sum by (service) (rate(outbox_relay_rows_total[5m]))", "{{service}} relayed"},
			}},
			{Title: "Listeners: before them", Unit: "short", Limit: 1000, Queries: []Query{{"max by (service, listener) (listener_pending_events)", "{{service}} {{listener}}"}}},
			{Title: "Listeners: delay p95", Unit: "s", Limit: 30, Queries: []Query{{quantile(.95, "listener_delay_seconds", "service", "listener"), "{{service}} {{listener}}"}}},
			{Title: "Listeners: outcomes that are not done", Unit: "ops", Queries: []Query{{`sum by (service, listener, outcome) (rate(listener_events_total{outcome!~"done|duplicate"}[5m]))`, "{{service}} {{listener}} {{outcome}}"}}},
			{Title: "Dead letters", Unit: "short", Limit: 1, Queries: []Query{{"max by (service, listener) (dead_letters_stored)", "{{service}} {{listener}}"}}},
			{Title: "Parked in an hour", Unit: "short", Queries: []Query{{"sum by (service, listener) (increase(listener_dead_letters_total[1h]))", "{{service}} {{listener}}"}}},
		}},
		{Title: "NATS", Panels: []Panel{
			{Title: "Connected", Unit: "short", Queries: []Query{{"min by (client) (nats_connected)", "{{client}}"}}},
			{Title: "Messages", Unit: "ops", Queries: []Query{{"sum by (client, direction) (rate(nats_messages_total[5m]))", "{{client}} {{direction}}"}}},
			{Title: "Bytes", Unit: "Bps", Queries: []Query{{"sum by (client, direction) (rate(nats_transferred_bytes_total[5m]))", "{{client}} {{direction}}"}}},
			{Title: "Reconnects", Unit: "short", Queries: []Query{{"sum by (client) (increase(nats_reconnects_total[15m]))", "{{client}}"}}},
			{Title: "Not acknowledged", Unit: "short", Queries: []Query{{"max by (client) (nats_publish_pending)", "{{client}}"}}},
		}},
	}}
}

func services() Dashboard {
	return Dashboard{Name: "services", Title: "Services", Rows: []Row{
		{Title: "RPC", Panels: []Panel{
			{Title: "Busiest methods", Unit: "reqps", Queries: []Query{{"topk(10, sum by (rpc_method) (rate(rpc_server_call_duration_seconds_count[5m])))", "{{rpc_method}}"}}},
			{Title: "Slowest methods, p95", Unit: "s", Limit: .2, Queries: []Query{{"topk(10, " + quantile(.95, "rpc_server_call_duration_seconds", "rpc_method") + ")", "{{rpc_method}}"}}},
			{Title: "Answers that are not OK", Unit: "reqps", Queries: []Query{{`sum by (rpc_method, rpc_response_status_code) (rate(rpc_server_call_duration_seconds_count{rpc_response_status_code!="OK"}[5m]))`, "{{rpc_method}} {{rpc_response_status_code}}"}}},
			{Title: "Refused: token or access", Unit: "reqps", Queries: []Query{{"sum by (reason) (rate(rpc_server_rejected_total[5m]))", "{{reason}}"}}},
			{Title: "Calls between services, p95", Unit: "s", Queries: []Query{{quantile(.95, "rpc_client_call_duration_seconds", "rpc_method"), "{{rpc_method}}"}}},
		}},
		{Title: "PostgreSQL", Panels: []Panel{
			{Title: "Connections in use", Unit: "percentunit", Limit: .9, Queries: []Query{{`sum by (service) (database_connections{state="used"}) / sum by (service) (database_connections_max)`, "{{service}}"}}},
			{Title: "Connections", Unit: "short", Stacked: true, Queries: []Query{{"sum by (service, state) (database_connections)", "{{service}} {{state}}"}}},
			{Title: "Wait for a connection", Unit: "s", Limit: .02, Queries: []Query{{"sum by (service) (rate(database_acquire_wait_seconds_total[5m])) / sum by (service) (rate(database_acquires_total[5m]))", "{{service}}"}}},
			{Title: "Waits and those who gave up", Unit: "ops", Queries: []Query{
				{"sum by (service) (rate(database_acquire_waits_total[5m]))", "{{service}} waits"}, {"sum by (service) (rate(database_acquires_canceled_total[5m]))", "{{service}} gave up"},
			}},
			{Title: "Operations, p95", Unit: "s", Queries: []Query{{quantile(.95, "db_client_operation_duration_seconds", "service", "pgx_operation_type"), "{{service}} {{pgx_operation_type}}"}}},
			{Title: "Partitions end in", Unit: "s", Queries: []Query{{"max by (service, table) (partition_ends_timestamp_seconds) - time()", "{{service}} {{table}}"}}},
		}},
		{Title: "Caches and jobs", Panels: []Panel{
			{Title: "Cache hits", Unit: "percentunit", Queries: []Query{{"parley:cache_hits:ratio5m", "{{cache}}"}}},
			{Title: "Cache answers", Unit: "ops", Queries: []Query{{"sum by (cache, result) (rate(cache_requests_total[5m]))", "{{cache}} {{result}}"}}},
			{Title: "Jobs: last success", Unit: "s", Queries: []Query{{"time() - max by (service, job_name) (job_last_success_timestamp_seconds)", "{{service}} {{job_name}}"}}},
			{Title: "Jobs: p95", Unit: "s", Queries: []Query{{quantile(.95, "job_run_seconds", "service", "job_name"), "{{service}} {{job_name}}"}}},
			{Title: "Rate limits", Unit: "ops", Queries: []Query{{"sum by (limit, result, by) (rate(limit_decisions_total[5m]))", "{{limit}} {{result}} {{by}}"}}},
			{Title: "Mails", Unit: "ops", Queries: []Query{{"sum by (template, outcome) (rate(mail_messages_total[5m]))", "{{template}} {{outcome}}"}}},
			{Title: "Mails that wait", Unit: "short", Limit: 100, Queries: []Query{{"max by (service) (mail_queue_messages)", "{{service}}"}}},
			{Title: "Jobs in an hour", Unit: "short", Queries: []Query{{"sum by (service, job_name, outcome) (increase(job_runs_total[1h]))", "{{service}} {{job_name}} {{outcome}}"}}},
		}},
	}}
}

func processes() Dashboard {
	return Dashboard{Name: "processes", Title: "Processes", Rows: []Row{
		{Title: "Processes", Panels: []Panel{
			{Title: "CPU", Unit: "percentunit", Limit: .85, Queries: []Query{{"rate(process_cpu_seconds_total[5m]) / go_sched_gomaxprocs_threads", "{{instance}}"}}},
			{Title: "Memory", Unit: "bytes", Queries: []Query{{"process_resident_memory_bytes", "{{instance}}"}}},
			{Title: "Heap", Unit: "bytes", Queries: []Query{{"go_memstats_heap_alloc_bytes", "{{instance}}"}}},
			{Title: "Goroutines", Unit: "short", Queries: []Query{{"go_goroutines", "{{instance}}"}}},
			{Title: "Pauses of the collector, longest", Unit: "s", Queries: []Query{{`go_gc_duration_seconds{quantile="1"}`, "{{instance}}"}}},
			{Title: "Open files", Unit: "percentunit", Limit: .8, Queries: []Query{{"process_open_fds / process_max_fds", "{{instance}}"}}},
			{Title: "Up for", Unit: "s", Queries: []Query{{"time() - process_start_time_seconds", "{{instance}}"}}},
			{Title: "Ready", Unit: "short", Queries: []Query{{"process_ready", "{{instance}}"}}},
			{Title: "Warnings and errors logged", Unit: "ops", Queries: []Query{{"sum by (service, level) (rate(log_records_total[5m]))", "{{service}} {{level}}"}}},
			{Title: "Versions", Unit: "short", Stacked: true, Queries: []Query{{"count by (service_name, service_version) (target_info)", "{{service_name}} {{service_version}}"}}},
		}},
	}}
}
