//! The metrics of a control plane: names, types, labels, and what they tell. `docs/METRICS.md` is made from this table.

signalbox_process::metrics! {
    CONNECTED_PROXIES: Gauge "signalbox_connected_proxies" [] "proxies", "Proxies with a stream to this control plane.", "Compare it over the control planes: they balance by themselves within 90 minutes.";
    PROXIES: Gauge "signalbox_proxies" ["fleet", "state"] "proxies", "Proxies that are known, by fleet and state. All control planes that share a database show the same.", "Alert on `rejected` and `drifted`, and on `unknown` or `disconnected` for longer than a restart takes (docs/OPERATIONS.md, state of the proxies).";
    HEAD_REVISION: Gauge "signalbox_head_revision" [] "revision", "Number of the published revision.", "Alert if the control planes of a database differ for longer than some seconds.";
    RESOURCES: Gauge "signalbox_resources" [] "resources", "Resources of the published revision.", "";
    DATABASE_UP: Gauge "signalbox_database_up" [] "0 or 1", "1 if the database answered the last call, else 0.", "Alert on 0: there are no writes; docs/OPERATIONS.md, outages.";
    LEADS: Gauge "signalbox_leads_rollouts" [] "0 or 1", "1 if this control plane decides about rollouts and sends to webhooks, else 0.", "Alert if the sum over the control planes is not 1 for a minute while there are progressive rollouts or webhooks.";
    UNDER_WAY: Gauge "signalbox_rollouts_under_way" [] "rollouts", "Progressive rollouts that part of a fleet, or all of it, has, and that are not proven yet.", "Alert if one takes longer than its policy lets you expect.";
    HELD: Gauge "signalbox_rollouts_held" [] "rollouts", "Progressive rollouts that need a decision of a person.", "Alert if it is not 0: docs/ROLLOUTS.md has the commands.";
    TAKEN_BACK: Gauge "signalbox_rollouts_taken_back" [] "rollouts", "Rollouts that were taken back, and hold their fleets at an earlier revision; known to the leader.", "Read the reason at the rollout, and correct the revision.";
    UNREADABLE_NOW: Gauge "signalbox_unreadable_resources" [] "resources", "Stored resources that this version cannot read.", "Finish the upgrade of all control planes.";
    UNKNOWN: Gauge "signalbox_unknown_resources" [] "resources", "Stored resources of a kind that this version does not know.", "Finish the upgrade of all control planes.";
    UNKNOWN_ROLES: Gauge "signalbox_unknown_role_tokens" [] "tokens", "Stored tokens with a role that this version does not know.", "Finish the upgrade of all control planes.";
    WEBHOOK_DELIVERIES: Counter "signalbox_webhook_deliveries_total" ["webhook", "result"] "events", "Events of webhooks by result: `delivered`, `refused` by the receiver, `gave_up` after an hour, `dropped` because the queue was full, and `retried` for each attempt that another one followed.", "Alert on `refused`, `gave_up` and `dropped`: docs/WEBHOOKS.md; `GET /api/v1/webhooks/NAME/deliveries` has the reason.";
    WEBHOOK_QUEUE: Gauge "signalbox_webhook_queue" ["webhook"] "events", "Events that this control plane is still to deliver to a webhook; at most 1000.", "If it stays above 0, look at the receiver.";
    TRACE_SPANS: Counter "signalbox_trace_spans_total" ["result"] "spans", "Spans of this control plane by what became of them; absent without --otlp-endpoint.", "Spans that are dropped or fail: look at the collector, see docs/TRACING.md.";
    NACKS: Counter "signalbox_xds_nacks_total" [] "revisions", "Revisions rejected by proxies.", "The board shows the reason beside the proxy.";
    UNREADABLE: Counter "signalbox_resource_read_failures_total" [] "attempts", "Failed attempts to read a stored resource.", "`signalbox_unreadable_resources` says how many there are now.";
    REFUSED: Counter "signalbox_xds_refused_total" ["reason"] "connections", "Connections, streams and reports of proxies that were refused, by reason.", "The log has the address; docs/OPERATIONS.md, TLS between the planes, has the reasons.";
    TLS_EXPIRY: Gauge "signalbox_tls_certificate_expiry_timestamp_seconds" ["use"] "seconds since 1970", "Time at which a certificate of this process expires.", "Alert 14 days before; replace the file, which is read again.";
    PROPAGATION: Histogram "signalbox_propagation_seconds" [] "seconds", "Time from a revision's commit to a proxy's ACK.", "If it rises, look at the proxies that are `pending`, and at the CPU time of the control planes.";
    STORE_DURATION: Histogram "signalbox_store_duration_seconds" ["operation"] "seconds", "Duration of the calls of the store.", "If it rises, look at the database.";
    STORE_ERRORS: Counter "signalbox_store_errors_total" ["operation"] "calls", "Calls of the store that failed.", "The log has the reason.";
    HTTP_DURATION: Histogram "signalbox_http_request_duration_seconds" ["method", "path", "code_class"] "seconds", "Duration of the requests to the admin API.", "";
}
