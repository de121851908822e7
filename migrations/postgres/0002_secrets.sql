-- What tells whether a key is the one that secrets are encrypted with. The key itself is not in the database.
CREATE TABLE secrets (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key_check bytea NOT NULL
);
