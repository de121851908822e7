-- Control planes that use this database, and when each said last that it is alive, by the database's clock.
CREATE TABLE replicas (
    instance text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    alive_at_us bigint NOT NULL
);

-- Which process of the control plane `replica` wrote the row; it writes it until another one takes the proxy over.
ALTER TABLE proxies ADD COLUMN instance text NOT NULL DEFAULT '';
