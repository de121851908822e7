-- The one row that orders all writes: a commit takes its number by updating it.
CREATE TABLE head (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch TEXT NOT NULL,
    revision INTEGER NOT NULL CHECK (revision >= 0)
) STRICT;

CREATE TABLE revisions (
    number INTEGER PRIMARY KEY,
    author TEXT NOT NULL,
    message TEXT NOT NULL,
    committed_at_us INTEGER NOT NULL,
    change_count INTEGER NOT NULL
) STRICT;

-- The log: rows are only ever added.
CREATE TABLE resource_versions (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    before BLOB,
    after BLOB,
    PRIMARY KEY (kind, name, revision),
    CHECK (before IS NOT NULL OR after IS NOT NULL)
) STRICT;
CREATE INDEX resource_versions_by_revision ON resource_versions (revision);

-- The current set, which is what the log adds up to.
CREATE TABLE resources (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    spec BLOB NOT NULL,
    revision INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;

CREATE TABLE proxies (
    id TEXT PRIMARY KEY NOT NULL,
    fleet TEXT NOT NULL,
    replica TEXT NOT NULL,
    updated_at_us INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT;

CREATE TABLE rollouts (
    id TEXT PRIMARY KEY NOT NULL,
    revision INTEGER NOT NULL,
    fleet TEXT NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX rollouts_by_revision ON rollouts (revision DESC, fleet);

CREATE TABLE tokens (
    name TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL,
    hash BLOB NOT NULL,
    created_at_us INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL,
    revision INTEGER
) STRICT;
