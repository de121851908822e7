"""What the dashboards show. generate.py makes JSON of it; docs/MONITORING.md says which question each dashboard answers."""

# The proxies that are chosen, and the ones of a fleet, in the selectors of queries.
P = 'fleet=~"$fleet", instance=~"$instance"'
F = 'fleet=~"$fleet"'
R = 'fleet=~"$fleet", route=~"$route"'
U = 'fleet=~"$fleet", upstream=~"$upstream"'
# Long enough for four scrapes.
W = "$__rate_interval"


def graph(title, unit, description, *queries, width=8, **more):
    """A panel of series over time: each query is an expression and the name of its series."""
    return {"type": "timeseries", "title": title, "unit": unit, "description": description, "queries": queries, "width": width} | more


def figure(title, unit, description, expr, **more):
    """A panel with one number."""
    return {"type": "stat", "title": title, "unit": unit, "description": description, "queries": [(expr, "")]} | more


def table(title, unit, description, expr, columns, width=12):
    """A panel with a row for each series, sorted by value."""
    return {
        "type": "table", "title": title, "unit": unit, "description": description, "queries": [(expr, "")], "columns": columns,
        "width": width,
    }


def quantiles(metric, selector="", by=""):
    """The queries of a histogram's median, its 90th and its 99th percentile; of single series by a label only the last."""
    wanted = [(0.99, f"{{{{{by}}}}}")] if by else [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")]
    labels = f"le, {by}" if by else "le"
    return [(f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[{W}])))", name) for q, name in wanted]


def share(part, whole):
    """A share that is 0 and not absent while there is none of the part."""
    return f"(({part}) or 0 * ({whole})) / ({whole})"


FLEET = {
    "name": "fleet",
    "title": "Fleet",
    "description": "Is the fleet well, and has it enough proxies?",
    "variables": ["fleet", "instance"],
    "rows": [
        ("Now", [
            figure("Offered requests", "reqps", "Requests per second, refused ones among them. Autoscalers should follow this figure.",
                   f"sum(rate(signalbox_requests_total{{{P}}}[{W}]))"),
            figure("Failed requests", "percentunit", "The share of requests with a status of 500 or more. The dashboard Route shows where they are.",
                   share(f'sum(rate(signalbox_requests_total{{{P}, code_class="5xx"}}[{W}]))', f"sum(rate(signalbox_requests_total{{{P}}}[{W}]))"),
                   thresholds=[(0.001, "orange"), (0.0144, "red")]),
            figure("Refused requests", "percentunit", "The share of requests that overloaded proxies refused (OM). Add proxies.",
                   share(f'sum(rate(signalbox_requests_total{{{P}, flags="OM"}}[{W}]))', f"sum(rate(signalbox_requests_total{{{P}}}[{W}]))"),
                   thresholds=[(0.0001, "orange"), (0.01, "red")]),
            figure("Latency p99", "s", "99 % of the requests are answered within this time. If it is high, see how much of it is the targets'.",
                   quantiles("signalbox_request_duration_seconds", P)[2][0]),
            figure("Ready proxies", "none", "Proxies that serve a revision and do not drain.", f"sum(signalbox_ready{{{P}}})"),
            figure("Lost proxies", "none", "Proxies that the control planes know and have no stream of. Forget those that are gone for good: DELETE /api/v1/proxies/{id}.",
                   f"sum(fleet:signalbox_proxies_lost:sum{{{F}}})", thresholds=[(1, "orange")], none="0"),
        ]),
        ("Requests", [
            graph("How many requests are offered?", "reqps", "By class of status. Without a rise of requests, a rise of 5xx is a fault; with one, look for overload.",
                  (f"sum by (code_class) (rate(signalbox_requests_total{{{P}}}[{W}]))", "{{code_class}}"), stack=True),
            graph("Which responses do the proxies make themselves?", "reqps", "By flag: docs/OPERATIONS.md, responses that the proxy makes, has the reason of each.",
                  (f'sum by (flags) (rate(signalbox_requests_total{{{P}, flags!=""}}[{W}]))', "{{flags}}")),
            graph("How fast is the error budget used?", "percentunit", "The share of failed requests in windows of the alerts. The lines are 14.4, 6 and 1 times an objective of 99.9 %.",
                  (f"fleet:signalbox_errors:ratio1h{{{F}}}", "{{fleet}} 1 h"), (f"fleet:signalbox_errors:ratio6h{{{F}}}", "{{fleet}} 6 h"),
                  (f"fleet:signalbox_errors:ratio3d{{{F}}}", "{{fleet}} 3 d"), thresholds=[(0.001, "yellow"), (0.006, "orange"), (0.0144, "red")]),
            graph("How long do requests take?", "s", "From the head of the request to the last byte of its response, without tunnels and event streams.",
                  *quantiles("signalbox_request_duration_seconds", P)),
            graph("How long do targets take?", "s", "From forwarding the request to the head of the response. If this rises too, the targets are slow; otherwise the proxies are (docs/PROFILING.md).",
                  *quantiles("signalbox_upstream_duration_seconds", P)),
            graph("How long do tunnels and event streams last?", "s", "Streams that all end after the same time point to a timeout on their way.",
                  *quantiles("signalbox_stream_duration_seconds", P, "kind")),
        ]),
        ("Proxies", [
            graph("How busy are the proxies?", "short", "CPU time in cores. Near the number of workers a proxy is at its limit: add proxies, or take a profile.",
                  (f'rate(process_cpu_seconds_total{{{P}, job="signalbox-proxy"}}[{W}])', "{{instance}}")),
            graph("How much memory do they use?", "bytes", "If it grows without end, compare it with /debug/memory.",
                  (f'process_resident_memory_bytes{{{P}, job="signalbox-proxy"}}', "{{instance}}")),
            graph("Are files running out?", "percentunit", "Open files as a share of the limit. At 80 %, raise LimitNOFILE or add proxies.",
                  (f'process_open_fds{{{P}, job="signalbox-proxy"}} / process_max_fds{{{P}, job="signalbox-proxy"}}', "{{instance}}"), max=1, thresholds=[(0.8, "red")]),
            graph("How are requests spread over the proxies?", "reqps", "A proxy far below the others gets less from the load balancer, or answers slowly.",
                  (f"sum by (instance) (rate(signalbox_requests_total{{{P}}}[{W}]))", "{{instance}}")),
            graph("How many clients are connected?", "short", "At --max-connections new clients wait.",
                  (f"sum by (instance) (signalbox_active_connections{{{P}}})", "{{instance}}")),
            graph("Are connections used again?", "percentunit", "New connections for each request: near 1, clients or targets close each connection, which costs CPU time.",
                  (f"sum(rate(signalbox_connections_total{{{P}}}[{W}])) / sum(rate(signalbox_requests_total{{{P}}}[{W}]))", "clients"),
                  (f"sum(rate(signalbox_upstream_connections_total{{{P}}}[{W}])) / sum(rate(signalbox_upstream_requests_total{{{P}}}[{W}]))", "targets")),
            graph("How many bytes are on the network?", "Bps", "By side and direction. Compare it with what the network cards can do.",
                  (f"sum by (side, direction) (rate(signalbox_bytes_total{{{P}}}[{W}]))", "{{side}} {{direction}}")),
            graph("How many TLS handshakes are made?", "ops", "Resumed ones cost little. Many full ones cost CPU time: clients should keep connections or tickets.",
                  (f'sum(rate(signalbox_tls_handshakes_total{{{P}, resumed="true"}}[{W}]))', "resumed"),
                  (f'sum(rate(signalbox_tls_handshakes_total{{{P}, resumed="false"}}[{W}]))', "full")),
            graph("Why do TLS handshakes fail?", "ops", "no_certificate: a name without a certificate. overload: add proxies. The others are the clients'.",
                  (f"sum by (reason) (rate(signalbox_tls_handshake_failures_total{{{P}}}[{W}]))", "{{reason}}")),
        ]),
        ("Plugins", [
            graph("Which plugin takes how long?", "s", "The 99th percentile, waiting included. The slowest plugin is a part of every request that runs it.",
                  *quantiles("signalbox_plugin_duration_seconds", P, "plugin"), width=12),
            graph("What do plugins do with requests?", "reqps", "By outcome: answered or refused requests never reach a target. Report `panicked`.",
                  (f"sum by (plugin, outcome) (rate(signalbox_plugin_outcomes_total{{{P}}}[{W}]))", "{{plugin}} {{outcome}}"), width=12),
        ]),
        ("Logs and traces", [
            graph("Is the access log complete?", "short", "Lines that were dropped per second. Use a faster disk, or send the log elsewhere.",
                  (f"sum by (instance) (rate(signalbox_access_log_dropped_total{{{P}}}[{W}]))", "{{instance}}")),
            graph("Do spans arrive?", "short", "Spans per second by what became of them. Everything but `sent` is lost: look at the collector.",
                  (f"sum by (result) (rate(signalbox_trace_spans_total{{{P}}}[{W}]))", "{{result}}")),
            graph("Is the programs' own log complete?", "short", "Lines per second that could not be written. Look for a full disk.",
                  (f'sum by (instance) (rate(signalbox_log_lines_lost_total{{{P}, job="signalbox-proxy"}}[{W}]))', "{{instance}}")),
        ]),
    ],
}

ROUTE = {
    "name": "route",
    "title": "Route",
    "description": "Which route fails, since when, and for which reason?",
    "variables": ["fleet", "route"],
    "rows": [
        ("Where to look", [
            table("Which routes fail most?", "short", "Failed requests of the last hour. Choose the route above to see when it began.",
                  f"topk(20, fleet_route:signalbox_errors:sum1h{{{F}}} > 0)", {"fleet": "fleet", "route": "route", "Value": "failed requests"}),
            table("Which routes have used up their error budget?", "percentunit", "The share of failed requests over three days, where it is above 0.1 %.",
                  f"topk(20, fleet_route:signalbox_errors:ratio3d{{{F}}} > 0.001)", {"fleet": "fleet", "route": "route", "Value": "share"}),
        ]),
        ("The chosen routes", [
            graph("How many requests have they?", "reqps", "A fall to 0 means that another route takes the requests (POST /api/v1/explain), or that none come.",
                  (f"sum by (route) (rate(signalbox_requests_total{{{R}}}[{W}]))", "{{route}}")),
            graph("How are requests answered?", "reqps", "By class of status.",
                  (f"sum by (code_class) (rate(signalbox_requests_total{{{R}}}[{W}]))", "{{code_class}}"), stack=True),
            graph("Which share of requests fails?", "percentunit", "A rise at a marker of a revision: compare the revisions, and roll back.",
                  (share(f'sum by (route) (rate(signalbox_requests_total{{{R}, code_class="5xx"}}[{W}]))',
                         f"sum by (route) (rate(signalbox_requests_total{{{R}}}[{W}]))"), "{{route}}")),
            graph("Which share is refused for the client's fault?", "percentunit", "The share of 4xx. A rise without a change of the clients comes from a plugin, or from a path that no longer matches.",
                  (share(f'sum by (route) (rate(signalbox_requests_total{{{R}, code_class="4xx"}}[{W}]))',
                         f"sum by (route) (rate(signalbox_requests_total{{{R}}}[{W}]))"), "{{route}}")),
            graph("How long do requests take?", "s", "The 99th percentile of each route, without tunnels and event streams.",
                  *quantiles("signalbox_route_duration_seconds", R, "route")),
            graph("How long until a response begins?", "s", "The 99th percentile. If it is near the whole duration, the target is slow to begin.",
                  *quantiles("signalbox_route_time_to_first_byte_seconds", R, "route")),
            graph("Why do requests fail?", "reqps", "By flag. UF, UC, UT and UH are the upstream's: see the dashboard Upstream. OM: add proxies. PP: a plugin panicked.",
                  (f'sum by (flags) (rate(signalbox_requests_total{{{R}, flags!="", code_class="5xx"}}[{W}]))', "{{flags}}"),
                  (f'sum(rate(signalbox_requests_total{{{R}, flags="", code_class="5xx"}}[{W}]))', "answered by the target")),
            graph("Which listener do they come from?", "reqps", "Requests by listener.",
                  (f"sum by (listener) (rate(signalbox_requests_total{{{R}}}[{W}]))", "{{listener}}")),
            graph("How fast is the error budget used?", "percentunit", "The share of failed requests in windows of the alerts. The lines are 14.4, 6 and 1 times an objective of 99.9 %.",
                  (f"fleet_route:signalbox_errors:ratio1h{{{R}}}", "{{route}} 1 h"), (f"fleet_route:signalbox_errors:ratio6h{{{R}}}", "{{route}} 6 h"),
                  (f"fleet_route:signalbox_errors:ratio3d{{{R}}}", "{{route}} 3 d"), width=12, thresholds=[(0.001, "yellow"), (0.006, "orange"), (0.0144, "red")]),
            graph("Do all proxies fail alike?", "percentunit", "One proxy that differs from the others points to its host or its network.",
                  (share(f'sum by (instance) (rate(signalbox_requests_total{{{R}, code_class="5xx"}}[{W}]))',
                         f"sum by (instance) (rate(signalbox_requests_total{{{R}}}[{W}]))"), "{{instance}}"), width=12),
        ]),
    ],
}

UPSTREAM = {
    "name": "upstream",
    "title": "Upstream",
    "description": "Are the targets of an upstream well, and what is done about those that are not?",
    "variables": ["fleet", "upstream"],
    "rows": [
        ("Now", [
            figure("Requests", "reqps", "Requests per second for these upstreams, mirrored ones among them.", f"sum(rate(signalbox_upstream_requests_total{{{U}}}[{W}]))"),
            figure("Failed requests", "percentunit", "The share with a status of 500 or more.",
                   share(f'sum(rate(signalbox_upstream_requests_total{{{U}, code_class="5xx"}}[{W}]))', f"sum(rate(signalbox_upstream_requests_total{{{U}}}[{W}]))"),
                   thresholds=[(0.001, "orange"), (0.0144, "red")]),
            figure("Healthy targets", "percentunit", "The lowest share that any proxy sees. /debug/upstreams of a proxy has the reasons.",
                   f"min(signalbox_upstream_healthy_targets{{{U}}} / signalbox_upstream_targets{{{U}}})"),
            figure("Without a healthy target", "none", "Upstreams of which no proxy of a fleet has a healthy target.",
                   f"count(max by (fleet, upstream) (signalbox_upstream_healthy_targets{{{U}}}) == 0)", thresholds=[(1, "red")], none="0"),
            figure("Open circuit breakers", "none", "Circuit breakers of proxies that are open. They answer in the place of the targets.",
                   f"count(signalbox_upstream_breaker_state{{{U}}} == 2)", thresholds=[(1, "red")], none="0"),
        ]),
        ("Requests", [
            graph("How are requests answered?", "reqps", "By class of status.",
                  (f"sum by (code_class) (rate(signalbox_upstream_requests_total{{{U}}}[{W}]))", "{{code_class}}"), stack=True),
            graph("Which share of requests fails?", "percentunit", "By upstream. One that fails alone is at fault itself; if all do, look at the network and at the proxies.",
                  (share(f'sum by (upstream) (rate(signalbox_upstream_requests_total{{{U}, code_class="5xx"}}[{W}]))',
                         f"sum by (upstream) (rate(signalbox_upstream_requests_total{{{U}}}[{W}]))"), "{{upstream}}")),
            graph("Why did targets not answer?", "reqps", "By reason: docs/OPERATIONS.md, why a target did not answer, explains each.",
                  (f"sum by (upstream, reason) (rate(signalbox_upstream_errors_total{{{U}}}[{W}]))", "{{upstream}} {{reason}}")),
            graph("How long do targets take?", "s", "Over all upstreams of the chosen fleets.", *quantiles("signalbox_upstream_duration_seconds", F)),
            graph("Do retries help?", "reqps", "By outcome. Many `over_budget` mean that the upstream fails for most requests, and retries cannot help.",
                  (f"sum by (upstream, outcome) (rate(signalbox_upstream_retries_total{{{U}}}[{W}]))", "{{upstream}} {{outcome}}")),
            graph("Are copies dropped?", "reqps", "Mirrored requests that were not sent. Mirror a smaller share.",
                  (f"sum by (fleet) (rate(signalbox_mirrors_dropped_total{{{F}}}[{W}]))", "{{fleet}}")),
        ]),
        ("Targets", [
            graph("How many targets are healthy?", "none", "The fewest that any proxy sees, and all. A fall of all without a revision comes from DNS.",
                  (f"min by (upstream) (signalbox_upstream_healthy_targets{{{U}}})", "{{upstream}} healthy"),
                  (f"max by (upstream) (signalbox_upstream_targets{{{U}}})", "{{upstream}} all")),
            graph("Do the proxies agree?", "none", "The difference between the proxy that sees most healthy targets and the one that sees fewest. It is the network of single proxies if it stays above 0.",
                  (f"max by (upstream) (signalbox_upstream_healthy_targets{{{U}}}) - min by (upstream) (signalbox_upstream_healthy_targets{{{U}}})", "{{upstream}}")),
            graph("How often are targets ejected?", "short", "Ejections per hour. /debug/upstreams names the targets and their last errors.",
                  (f"3600 * sum by (upstream) (rate(signalbox_upstream_ejections_total{{{U}}}[{W}]))", "{{upstream}}")),
            graph("In which state are the circuit breakers?", "none", "0 is closed, 1 half-open, 2 open; the highest of all proxies.",
                  (f"max by (upstream) (signalbox_upstream_breaker_state{{{U}}})", "{{upstream}}"), max=2),
            graph("How often do circuit breakers open?", "short", "Times per hour. One that opens again and again has an `open_for` that is shorter than the failure.",
                  (f"3600 * sum by (upstream) (rate(signalbox_upstream_breaker_opened_total{{{U}}}[{W}]))", "{{upstream}}")),
            graph("Are connections to targets used again?", "percentunit", "New connections for each request, over all upstreams. Near 1, targets close each connection.",
                  (f"sum by (fleet) (rate(signalbox_upstream_connections_total{{{F}}}[{W}])) / sum by (fleet) (rate(signalbox_upstream_requests_total{{{F}}}[{W}]))", "{{fleet}}")),
        ]),
    ],
}

# The proxies that serve their fleet's newest revision, and those that do not.
NEWEST = f"signalbox_revision{{{F}}} == on (fleet) group_left () max by (fleet) (signalbox_revision{{{F}}})"
OLDER = f"signalbox_revision{{{F}}} < on (fleet) group_left () max by (fleet) (signalbox_revision{{{F}}})"


def failing(proxies):
    """The share of failed requests of these proxies."""
    errors = f'sum by (fleet) (rate(signalbox_requests_total{{{F}, code_class="5xx"}}[{W}]) and on (fleet, instance) ({proxies}))'
    return share(errors, f"sum by (fleet) (rate(signalbox_requests_total{{{F}}}[{W}]) and on (fleet, instance) ({proxies}))")


ROLLOUT = {
    "name": "rollout",
    "title": "Rollout",
    "description": "Which revision is where, does a new one hurt, and are the control planes well?",
    "variables": ["fleet"],
    "rows": [
        ("Now", [
            figure("Head revision", "none", "The newest revision that a control plane has published.", "max(signalbox_head_revision)"),
            figure("Proxies out of sync", "none", "Proxies in the states rejected and drifted. The board has the reason beside each.",
                   f'sum(max by (fleet, state) (signalbox_proxies{{{F}, state=~"rejected|drifted"}}))', thresholds=[(1, "red")], none="0"),
            figure("Rollouts under way", "none", "Progressive rollouts that are not proven yet.", "max(signalbox_rollouts_under_way)"),
            figure("Rollouts held", "none", "They wait for a person: promote, resume or abort them in the admin UI.", "max(signalbox_rollouts_held)", thresholds=[(1, "red")]),
            figure("Rollouts taken back", "none", "Their fleets stay at an earlier revision. Correct the revision.", "max(signalbox_rollouts_taken_back)", thresholds=[(1, "orange")]),
            figure("Database", "none", "The fewest control planes count: 1 if all of them reach the database, else 0.", "min(signalbox_database_up)"),
        ]),
        ("Revisions", [
            graph("Which revision do proxies serve?", "none", "The oldest and the newest of each fleet, and the head. Lines that stay apart without a rollout: look at the board.",
                  (f"max by (fleet) (signalbox_revision{{{F}}})", "{{fleet}} newest"), (f"min by (fleet) (signalbox_revision{{{F}}})", "{{fleet}} oldest"),
                  ("max(signalbox_head_revision)", "head"), min=None),
            graph("How many proxies serve the newest?", "none", "Proxies with the newest revision of their fleet, and the others.",
                  (f"count by (fleet) ({NEWEST})", "{{fleet}} newest"), (f"count by (fleet) ({OLDER})", "{{fleet}} older"), stack=True),
            graph("Does the new revision fail more?", "percentunit", "The share of failed requests at proxies with the newest revision, and at the others. A difference is the revision's fault.",
                  (failing(NEWEST), "{{fleet}} newest"), (failing(OLDER), "{{fleet}} older")),
            graph("In which state are the proxies?", "none", "docs/OPERATIONS.md, state of the proxies, has what to do.",
                  (f"sum by (state) (max by (fleet, state) (signalbox_proxies{{{F}}}))", "{{state}}"), stack=True),
            graph("Are revisions rejected?", "short", "Revisions per hour that proxies rejected, as proxies and as control planes count them.",
                  (f"3600 * sum by (fleet) (rate(signalbox_config_rejected_total{{{F}}}[{W}]))", "{{fleet}}"),
                  (f"3600 * sum(rate(signalbox_xds_nacks_total[{W}]))", "control planes")),
            graph("Is a proxy behind with its disk?", "none", "Revisions between the one that is served and the one on disk. After a restart without a control plane the proxy would serve the older one.",
                  (f"max by (instance) (signalbox_revision{{{F}}} - ignoring (epoch) signalbox_revision_persisted{{{F}}})", "{{instance}}")),
            graph("How long does a change take?", "s", "From the commit to the ACK of a proxy.", *quantiles("signalbox_propagation_seconds")),
            graph("How long does a proxy compile?", "s", "The time to compile a revision and to begin to serve it.", *quantiles("signalbox_config_apply_duration_seconds", F)),
            graph("Has a proxy crashed on a revision?", "none", "The number of the refused revision, else 0. See docs/OPERATIONS.md, crash loops.",
                  (f"max by (instance) (signalbox_revision_crashed{{{F}}}) > 0", "{{instance}}"), none="none"),
        ]),
        ("Control planes", [
            graph("Does each control plane see the head?", "none", "They differ for moments only. One that stays behind has no connection to the database.",
                  ("signalbox_head_revision", "{{instance}}"), min=None),
            graph("Is there one leader?", "none", "The control planes that decide about rollouts. The sum should be 1.",
                  ("signalbox_leads_rollouts", "{{instance}}"), max=1, stack=True),
            graph("How are proxies spread over them?", "none", "They balance by themselves within 90 minutes.", ("signalbox_connected_proxies", "{{instance}}")),
            graph("How long does the database take?", "s", "The 99th percentile by operation.", *quantiles("signalbox_store_duration_seconds", "", "operation")),
            graph("Do calls of the database fail?", "ops", "By operation. The log of the control plane has the reason.",
                  (f"sum by (operation) (rate(signalbox_store_errors_total[{W}]))", "{{operation}}")),
            graph("Why are proxies refused?", "ops", "By reason: docs/OPERATIONS.md, TLS between the planes.",
                  (f"sum by (reason) (rate(signalbox_xds_refused_total[{W}]))", "{{reason}}")),
            graph("How is the admin API answered?", "reqps", "Requests by class of status.",
                  (f"sum by (code_class) (rate(signalbox_http_request_duration_seconds_count[{W}]))", "{{code_class}}"), stack=True),
            graph("How busy are the control planes?", "short", "CPU time in cores.",
                  (f'rate(process_cpu_seconds_total{{job="signalbox-control-plane"}}[{W}])', "{{instance}}")),
            graph("Which versions run?", "none", "Processes by version. Two versions for long: finish the upgrade.",
                  ("count by (job, version) (signalbox_build_info)", "{{job}} {{version}}"), stack=True),
        ]),
    ],
}

ALL = [FLEET, ROUTE, UPSTREAM, ROLLOUT]
