//! The layers of each crate, from the lowest to the highest.

/// A layer's name, and its modules with all that lies in them; the longest name that fits a file counts.
pub(crate) type Layer = (&'static str, &'static [&'static str]);

/// Each crate's folder and its layers. A file imports only from its own layer and those below. The crate's root, which
/// declares the modules, is above all of them.
pub(crate) const CRATES: &[(&str, &[Layer])] =
    &[("control-plane", CONTROL_PLANE), ("process", PROCESS), ("proxy", PROXY), ("tests", TESTS)];

const CONTROL_PLANE: &[Layer] = &[
    ("the foundation", &["args", "clock", "compute", "locked", "metrics", "outbound"]),
    ("the store", &["store"]),
    ("what is in memory", &["auth", "board", "publish"]),
    ("the writer", &["writer"]),
    ("rollouts and traffic", &["rollout", "stats"]),
    ("the explanation", &["health_report"]),
    ("what is sent to others", &["spans", "webhook"]),
    ("the servers", &["rest", "serve", "xds"]),
    ("the program", &["program"]),
];

const PROCESS: &[Layer] = &[
    (
        "the foundation",
        &[
            "admin_address",
            "allocator",
            "error_chain",
            "limits",
            "liveness",
            "log",
            "procfs",
            "prometheus",
            "run",
            "stream",
        ],
    ),
    ("profiles and metrics", &["process_metrics", "profile"]),
    ("a program's parts", &["accept", "args", "arguments", "debug", "health", "tls"]),
];

const PROXY: &[Layer] = &[
    (
        "the foundation",
        &[
            "admin_token",
            "args",
            "core",
            "hot_restart",
            "listener",
            "overload",
            "resolve",
            "secrets",
            "services",
            "source",
            "telemetry",
        ],
    ),
    ("the wire", &["wire"]),
    ("upstreams", &["upstream"]),
    ("a revision's active form", &["active", "compile"]),
    ("requests", &["http"]),
    ("workers", &["span_export", "tasks", "worker"]),
    ("the data plane as a whole", &["metrics", "proxy", "route_series", "sockets"]),
    ("the program", &["admin", "run"]),
];

const TESTS: &[Layer] = &[
    ("one process", &["client", "process"]),
    (
        "the programs",
        &["backend", "control_plane", "nginx", "pgbouncer", "postgres", "prometheus", "receiver", "redis"],
    ),
    ("a whole system", &["proxy"]),
];
