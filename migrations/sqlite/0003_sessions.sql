-- Who is logged in to the UI. A session stands for a token: it is valid where that token is valid, so it holds no
-- rights of its own.
CREATE TABLE sessions (
    id TEXT PRIMARY KEY NOT NULL,
    -- SHA-256 of the cookie.
    hash BLOB NOT NULL UNIQUE,
    token TEXT NOT NULL,
    token_source TEXT NOT NULL,
    -- SHA-256 of the cookie and the token's hash: tells the token without storing anything of it.
    binding BLOB NOT NULL,
    created_at_us INTEGER NOT NULL,
    last_used_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
) STRICT;

-- The oldest schema version whose programs can work with these tables. A migration that only adds leaves it as it is;
-- one that takes away what older programs use sets it to its own number.
CREATE TABLE schema_compatibility (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    oldest INTEGER NOT NULL
) STRICT;
INSERT INTO schema_compatibility (only_row, oldest) VALUES (1, 3);
