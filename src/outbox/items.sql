-- Several mappings may take one event: then it is a row in pending for each item that waits, until the last is settled.
ALTER TABLE pending ADD COLUMN mapping TEXT NOT NULL DEFAULT '';  -- '': the first that takes it
-- The seq of the event, which is that of its first item, where there are or were several; NULL: it is the only one.
ALTER TABLE pending ADD COLUMN event_seq INTEGER;
CREATE INDEX pending_by_event ON pending (event_seq) WHERE event_seq IS NOT NULL;

-- What became of the items of an event that had several; seq is the event's.
CREATE TABLE settled_items (
    seq        INTEGER NOT NULL,
    mapping    TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed'),
    code       TEXT NOT NULL,
    reason     TEXT NOT NULL,
    settled_at INTEGER NOT NULL,
    PRIMARY KEY (seq, mapping)
) STRICT, WITHOUT ROWID;

-- One row an event, as before.
DROP VIEW outbox_events;
CREATE VIEW outbox_events AS
    SELECT coalesce(p.event_seq, p.seq) AS seq, p.message_id, p.type, p.event, 'pending' AS state, p.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', p.received_at / 1000, 'unixepoch') AS received_at,
           NULL AS settled_at,
           (SELECT coalesce(max(a.n), 0) FROM attempts a WHERE a.seq = coalesce(p.event_seq, p.seq)) AS attempts,
           (SELECT a.code FROM attempts a WHERE a.seq = coalesce(p.event_seq, p.seq)
             ORDER BY a.n DESC LIMIT 1) AS reason_code,
           (SELECT a.text FROM attempts a WHERE a.seq = coalesce(p.event_seq, p.seq)
             ORDER BY a.n DESC LIMIT 1) AS reason,
           p.file, p.place
      FROM pending p
     WHERE p.event_seq IS NULL OR p.seq = (SELECT min(q.seq) FROM pending q WHERE q.event_seq = p.event_seq)
    UNION ALL
    SELECT s.seq, s.message_id, s.type, s.event, s.state, s.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', s.received_at / 1000, 'unixepoch'),
           strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch'),
           s.attempts, nullif(s.code, ''), nullif(s.reason, ''), s.file, s.place
      FROM settled s;
