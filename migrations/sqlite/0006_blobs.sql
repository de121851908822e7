-- Uploaded files that plugins use: modules, descriptor sets.
CREATE TABLE blobs (
    -- The SHA-256 of the content, hexadecimal.
    id TEXT PRIMARY KEY NOT NULL,
    size INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    content BLOB NOT NULL
) STRICT;
