-- The last purges of cached responses. Only the newest 1,000 are kept.
CREATE TABLE purges (
    -- Rises. It is the time of the purge in microseconds since 1970, or the number after the last one if that is greater.
    number INTEGER PRIMARY KEY NOT NULL,
    -- The selection, JSON.
    purge TEXT NOT NULL,
    created_by TEXT NOT NULL
) STRICT;
