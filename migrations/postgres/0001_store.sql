-- The one row that orders all writes: a commit takes its number by updating it, and holds its lock until it is done.
CREATE TABLE head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch text NOT NULL,
    revision bigint NOT NULL CHECK (revision >= 0)
);

CREATE TABLE revisions (
    number bigint PRIMARY KEY,
    author text NOT NULL,
    message text NOT NULL,
    committed_at_us bigint NOT NULL,
    change_count bigint NOT NULL
);

-- The log: rows are only ever added. Neither column refers to another table, for a check of each row would cost
-- as much as its insertion, and all of a revision is written by one statement.
-- Collation "C": names are compared by bytes, as they are everywhere else.
CREATE TABLE resource_versions (
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    created_at_us bigint NOT NULL,
    before bytea,
    after bytea,
    PRIMARY KEY (kind, name, revision),
    CHECK (before IS NOT NULL OR after IS NOT NULL)
);
CREATE INDEX resource_versions_by_revision ON resource_versions (revision);

-- The current set, which is what the log adds up to.
CREATE TABLE resources (
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    spec bytea NOT NULL,
    revision bigint NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    updated_by text NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE proxies (
    id text COLLATE "C" PRIMARY KEY,
    fleet text NOT NULL,
    replica text NOT NULL,
    updated_at_us bigint NOT NULL,
    state text NOT NULL
);

CREATE TABLE rollouts (
    id text COLLATE "C" PRIMARY KEY,
    revision bigint NOT NULL,
    fleet text COLLATE "C" NOT NULL,
    state text NOT NULL
);
CREATE INDEX rollouts_by_revision ON rollouts (revision DESC, fleet);

CREATE TABLE tokens (
    name text COLLATE "C" PRIMARY KEY,
    role text NOT NULL,
    hash bytea NOT NULL,
    created_at_us bigint NOT NULL
);

CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_us bigint NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    detail text NOT NULL,
    revision bigint
);
