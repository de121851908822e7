//! The metrics of a proxy: names, types, labels, and what they tell. `docs/METRICS.md` is made from this table.

signalbox_process::metrics! {
    REQUESTS: Counter "signalbox_requests_total" ["listener", "route", "code_class", "flags"] "requests", "Requests answered, by route and outcome. Routes beyond --metrics-routes are counted together as _other.", "Alert on the share of `5xx`; `flags` names the reason (docs/OPERATIONS.md, responses that the proxy makes).";
    REQUEST_DURATION: Histogram "signalbox_request_duration_seconds" [] "seconds", "Time from the head of a request to the last byte of its response. Tunnels and event streams are not among them.", "If it rises and `signalbox_upstream_duration_seconds` does not, the proxy is slow: see docs/PROFILING.md.";
    ROUTE_DURATION: Histogram "signalbox_route_duration_seconds" ["route"] "seconds", "The same by route. Of a tunnel or an event stream it is the time until it began. Routes beyond --metrics-routes are counted together as _other, and with more than 24 workers those beyond what fits 256 MiB.", "Compare the routes; `signalbox_route_time_to_first_byte_seconds` says how long the target took.";
    ROUTE_FIRST_BYTE: Histogram "signalbox_route_time_to_first_byte_seconds" ["route"] "seconds", "Time from the head of a request to the head of its response, by route. Its buckets double from one to the next.", "If it is near the whole duration, the target is slow to begin; else the bodies are long, or clients read slowly.";
    STREAM_DURATION: Histogram "signalbox_stream_duration_seconds" ["kind"] "seconds", "Time that tunnels and event streams lasted, by kind: tunnel or event_stream.", "Streams that all end after the same time point to a timeout on their way.";
    UPSTREAM_DURATION: Histogram "signalbox_upstream_duration_seconds" [] "seconds", "Time from forwarding a request to the head of the target's response.", "If it rises, look at the upstreams.";
    UPSTREAM_REQUESTS: Counter "signalbox_upstream_requests_total" ["upstream", "code_class", "flags"] "requests", "Requests for an upstream, by outcome.", "Shows which upstream a rise of errors comes from.";
    UPSTREAM_ERRORS: Counter "signalbox_upstream_errors_total" ["upstream", "reason"] "requests", "Requests without a complete response of a target, by reason.", "Read the reason in docs/OPERATIONS.md, why a target did not answer.";
    HEALTHY_TARGETS: Gauge "signalbox_upstream_healthy_targets" ["upstream"] "targets", "Healthy targets.", "Alert at 0, and when it is far below `signalbox_upstream_targets`; `/debug/upstreams` has the reasons.";
    TARGETS: Gauge "signalbox_upstream_targets" ["upstream"] "targets", "All targets, healthy or not. A DNS name counts once for each of its addresses.", "A fall without a change of the configuration comes from DNS.";
    RETRIES: Counter "signalbox_upstream_retries_total" ["upstream", "outcome"] "retries", "Retries, by outcome.", "Many `over_budget` mean that the upstream fails for most requests.";
    BREAKER_STATE: Gauge "signalbox_upstream_breaker_state" ["upstream"] "0, 1 or 2", "State of the circuit breaker: 0 is closed, 1 is half-open, 2 is open.", "Alert on 2: the upstream fails, and its requests are not sent.";
    BREAKER_OPENED: Counter "signalbox_upstream_breaker_opened_total" ["upstream"] "times", "Times that the circuit breaker opened.", "";
    EJECTIONS: Counter "signalbox_upstream_ejections_total" ["upstream"] "ejections", "Ejections of targets because requests to them failed.", "`/debug/upstreams` names the targets and their last errors.";
    PLUGIN_DURATION: Histogram "signalbox_plugin_duration_seconds" ["plugin"] "seconds", "Time that a plugin takes for a request, its waiting included. Of a plugin that never waits, one request in 64 is measured.", "Shows which plugin makes requests slow.";
    PLUGIN_OUTCOMES: Counter "signalbox_plugin_outcomes_total" ["plugin", "outcome"] "requests", "What plugins have done with requests, by outcome. Every plugin counts those that it answered and those that it failed.", "Alert on `panicked`: report it with the log.";
    ACTIVE_CONNECTIONS: Gauge "signalbox_active_connections" [] "connections", "Open connections of clients.", "Compare it with `--max-connections`: at the limit, new clients wait.";
    CONNECTIONS: Counter "signalbox_connections_total" [] "connections", "Connections that clients have opened.", "A rate near that of requests means that clients do not reuse connections.";
    UPSTREAM_CONNECTIONS: Counter "signalbox_upstream_connections_total" [] "connections", "Connections that the proxy has opened to targets.", "A rate near that of requests means that targets close connections.";
    LOG_DROPPED: Counter "signalbox_access_log_dropped_total" [] "lines", "Lines of the access log that were dropped because they could not be written, or not fast enough.", "Use a faster disk, or send the log elsewhere.";
    MIRRORS_DROPPED: Counter "signalbox_mirrors_dropped_total" [] "requests", "Mirrored requests that were dropped because there were too many at once, or they were too large.", "Mirror a smaller share.";
    TRACE_SPANS: Counter "signalbox_trace_spans_total" ["result"] "spans", "Spans by what became of them.", "Spans that are dropped or fail: look at the collector, see docs/TRACING.md.";
    BYTES: Counter "signalbox_bytes_total" ["side", "direction"] "bytes", "Bytes on the network, heads and framing included.", "";
    HANDSHAKES: Counter "signalbox_tls_handshakes_total" ["resumed"] "handshakes", "TLS handshakes with clients.", "Few resumed ones cost CPU time.";
    HANDSHAKE_FAILURES: Counter "signalbox_tls_handshake_failures_total" ["reason"] "handshakes", "TLS handshakes with clients that failed, by reason.", "`no_certificate`: a name without a certificate; `overload`: add proxies.";
    TLS_EXPIRY: Gauge "signalbox_tls_certificate_expiry_timestamp_seconds" ["use"] "seconds since 1970", "Time at which a certificate for the control planes expires.", "Alert 14 days before; replace the file, which is read again.";
    CERTIFICATE_EXPIRY: Gauge "signalbox_certificate_not_after_seconds" ["certificate"] "seconds since 1970", "Time at which a certificate of the configuration expires.", "Alert 14 days before; write the certificate anew.";
    REVISION: Gauge "signalbox_revision" ["epoch"] "revision", "Number of the revision that the proxy serves.", "Compare it over the proxies of a fleet.";
    REVISION_CRASHED: Gauge "signalbox_revision_crashed" [] "revision", "Number of the revision that the proxy crashed on and refuses, or 0.", "Alert if it is not 0: docs/OPERATIONS.md, crash loops.";
    REVISION_PROVEN: Gauge "signalbox_revision_proven" [] "revision", "Number of the last proven revision, or 0.", "";
    REVISION_PERSISTED: Gauge "signalbox_revision_persisted" [] "revision", "Number of the revision that the proxy has written to its disk last; absent before it has written one.", "If it stays behind `signalbox_revision`, a restart would serve an older revision.";
    RESOURCES: Gauge "signalbox_resources" ["kind"] "resources", "Resources of the revision that the proxy serves, by kind.", "";
    APPLY_DURATION: Histogram "signalbox_config_apply_duration_seconds" [] "seconds", "Time to compile a revision and to begin to serve it.", "";
    REJECTED: Counter "signalbox_config_rejected_total" [] "revisions", "Revisions that the proxy rejected.", "The board shows the reason beside the proxy.";
    PERSIST_FAILURES: Counter "signalbox_proxy_persist_failures_total" [] "writes", "Failed writes of the last good snapshot to disk.", "";
    PERSIST_FAILING: Gauge "signalbox_proxy_persist_failing" [] "0 or 1", "1 while the last good snapshot cannot be written to disk, else 0.", "Alert on 1: make room, or correct the permissions of `--data-dir`.";
    CONTROL_PLANE_CONNECTED: Gauge "signalbox_control_plane_connected" [] "0 or 1", "1 while the proxy has a stream to a control plane, else 0; absent with --config.", "Alert if it is 0 for minutes: the log names the problem with each control plane.";
    LAST_CONTACT: Gauge "signalbox_control_plane_last_contact_timestamp_seconds" [] "seconds since 1970", "Time of the last contact with a control plane; while the proxy is connected, the present. A connection without a sign of life ends within 15 s.", "Its age says how old the configuration may be.";
    DRAINING: Gauge "signalbox_draining" [] "0 or 1", "1 while the proxy drains, else 0.", "";
    READY: Gauge "signalbox_ready" [] "0 or 1", "1 if /readyz answers 200, else 0.", "Alert if it is 0 for longer than a start or a drain takes.";
}
