-- What tells whether a key is the one that secrets are encrypted with. The key itself is not in the database.
CREATE TABLE secrets (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    key_check BLOB NOT NULL
) STRICT;
