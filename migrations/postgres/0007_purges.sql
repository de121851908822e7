-- The last purges of cached responses. Only the newest 1,000 are kept.
CREATE TABLE purges (
    -- Rises. It is the time of the purge in microseconds since 1970, or the number after the last one if that is greater.
    number bigint PRIMARY KEY,
    -- The selection, JSON.
    purge text NOT NULL,
    created_by text COLLATE "C" NOT NULL
);
