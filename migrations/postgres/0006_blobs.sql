-- Uploaded files that plugins use: modules, descriptor sets.
CREATE TABLE blobs (
    -- The SHA-256 of the content, hexadecimal.
    id text COLLATE "C" PRIMARY KEY,
    size bigint NOT NULL,
    created_at_us bigint NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    content bytea NOT NULL
);
