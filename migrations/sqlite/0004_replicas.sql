-- Control planes that use this database, and when each said last that it is alive.
CREATE TABLE replicas (
    instance TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    alive_at_us INTEGER NOT NULL
) STRICT;

-- Which process of the control plane `replica` wrote the row; it writes it until another one takes the proxy over.
ALTER TABLE proxies ADD COLUMN instance TEXT NOT NULL DEFAULT '';
