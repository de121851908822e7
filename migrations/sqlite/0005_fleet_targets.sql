-- The decision that is in force for each fleet that ever had a progressive policy. Rows are never deleted, and a generation only
-- rises: proxies take no decision of a lower generation than they have seen.
CREATE TABLE fleet_targets (
    fleet TEXT PRIMARY KEY NOT NULL,
    generation INTEGER NOT NULL CHECK (generation > 0),
    term INTEGER NOT NULL,
    plan TEXT NOT NULL,
    -- The state of the fleet's rollouts, as the leader left it; NULL: no leader has decided anything since the fleet was pinned.
    state TEXT,
    -- The last hour of the fleet, as the leader left it.
    history TEXT
) STRICT;

-- Counts the changes of fleet_targets.
ALTER TABLE head ADD COLUMN target_changes INTEGER NOT NULL DEFAULT 0;

-- The control plane that decides about rollouts. A term is never used twice.
CREATE TABLE leader (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    holder TEXT NOT NULL,
    term INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
) STRICT;
INSERT INTO leader (only_row, holder, term, expires_at_us) VALUES (1, '', 0, 0);

-- Each rollout, for the history.
CREATE TABLE rollout_runs (
    id TEXT PRIMARY KEY NOT NULL,
    fleet TEXT NOT NULL,
    revision INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX rollout_runs_by_revision ON rollout_runs (revision DESC, id);
CREATE INDEX unfinished_rollout_runs ON rollout_runs (id) WHERE NOT finished;

-- The revisions that progressive fleets are to get otherwise than by their policy.
CREATE TABLE urgent_revisions (
    revision INTEGER PRIMARY KEY NOT NULL,
    -- emergency or break_glass
    mode TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

-- Commands of people for the leader. A command that has expired is not carried out: nobody waits for its answer any more.
CREATE TABLE rollout_commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fleet TEXT NOT NULL,
    command TEXT NOT NULL,
    expires_at_us INTEGER NOT NULL,
    -- NULL: the leader has not answered yet.
    answer TEXT
) STRICT;

-- The counts of proxies, from the control planes that have their streams to the leader. Only the last minute is kept.
CREATE TABLE rollout_counts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The process of the control plane.
    instance TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    counts TEXT NOT NULL
) STRICT;
