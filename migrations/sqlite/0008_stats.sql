-- The traffic of the last seven days. Each row has what one control plane took in during some time.
CREATE TABLE stats_rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The process of the control plane.
    instance TEXT NOT NULL,
    -- Seconds of a slot.
    resolution INTEGER NOT NULL,
    -- The numbers of the first and the last part that the row has.
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    -- When it was made, seconds since 1970.
    made_at INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT;

CREATE INDEX stats_rows_resolution ON stats_rows (resolution, id);
