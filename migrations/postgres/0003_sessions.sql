-- Who is logged in to the UI. A session stands for a token: it is valid where that token is valid, so it holds no
-- rights of its own.
CREATE TABLE sessions (
    id text COLLATE "C" PRIMARY KEY,
    -- SHA-256 of the cookie.
    hash bytea NOT NULL UNIQUE,
    token text COLLATE "C" NOT NULL,
    token_source text NOT NULL,
    -- SHA-256 of the cookie and the token's hash: tells the token without storing anything of it.
    binding bytea NOT NULL,
    created_at_us bigint NOT NULL,
    last_used_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL
);

-- The oldest schema version whose programs can work with these tables. A migration that only adds leaves it as it is;
-- one that takes away what older programs use sets it to its own number.
CREATE TABLE schema_compatibility (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest integer NOT NULL
);
INSERT INTO schema_compatibility (oldest) VALUES (3);
