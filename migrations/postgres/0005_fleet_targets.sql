-- The decision that is in force for each fleet that ever had a progressive policy. Rows are never deleted, and a generation only
-- rises: proxies take no decision of a lower generation than they have seen.
CREATE TABLE fleet_targets (
    fleet text COLLATE "C" PRIMARY KEY,
    generation bigint NOT NULL CHECK (generation > 0),
    term bigint NOT NULL,
    plan text NOT NULL,
    -- The state of the fleet's rollouts, as the leader left it; NULL: no leader has decided anything since the fleet was pinned.
    state text,
    -- The last hour of the fleet, as the leader left it.
    history text
);

-- Counts the changes of fleet_targets.
ALTER TABLE head ADD COLUMN target_changes bigint NOT NULL DEFAULT 0;

-- The control plane that decides about rollouts. The time is the database's, and a term is never used twice.
CREATE TABLE leader (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    holder text NOT NULL,
    term bigint NOT NULL,
    expires_at_us bigint NOT NULL
);
INSERT INTO leader (holder, term, expires_at_us) VALUES ('', 0, 0);

-- Each rollout, for the history.
CREATE TABLE rollout_runs (
    id text COLLATE "C" PRIMARY KEY,
    fleet text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    finished boolean NOT NULL,
    state text NOT NULL
);
CREATE INDEX rollout_runs_by_revision ON rollout_runs (revision DESC, id);
CREATE INDEX unfinished_rollout_runs ON rollout_runs (id) WHERE NOT finished;

-- The revisions that progressive fleets are to get otherwise than by their policy.
CREATE TABLE urgent_revisions (
    revision bigint PRIMARY KEY,
    -- emergency or break_glass
    mode text NOT NULL,
    reason text NOT NULL
);

-- Commands of people for the leader. A command that has expired is not carried out: nobody waits for its answer any more.
CREATE TABLE rollout_commands (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fleet text NOT NULL,
    command text NOT NULL,
    expires_at_us bigint NOT NULL,
    -- NULL: the leader has not answered yet.
    answer text
);

-- The counts of proxies, from the control planes that have their streams to the leader. Only the last minute is kept.
CREATE TABLE rollout_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The process of the control plane.
    instance text NOT NULL,
    at_us bigint NOT NULL,
    counts text NOT NULL
);
