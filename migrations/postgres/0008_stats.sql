-- The traffic of the last seven days. Each row has what one control plane took in during some time.
CREATE TABLE stats_rows (
    id bigserial PRIMARY KEY,
    -- The process of the control plane.
    instance text COLLATE "C" NOT NULL,
    -- Seconds of a slot.
    resolution bigint NOT NULL,
    -- The numbers of the first and the last part that the row has.
    first bigint NOT NULL,
    last bigint NOT NULL,
    -- When it was made, seconds since 1970.
    made_at bigint NOT NULL,
    content bytea NOT NULL
);

CREATE INDEX stats_rows_resolution ON stats_rows (resolution, id);
