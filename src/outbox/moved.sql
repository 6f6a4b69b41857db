-- Deliveries whose rows are still in pending. A person's events lie all over the queue, so to move each row at once
-- rewrites a page or two for it: a commit notes them here instead, and the rows are moved in order, a page at a time.
CREATE TABLE acks (
    n    INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL,                      -- when they were delivered
    seqs TEXT NOT NULL                          -- a JSON array; rows that have been moved meanwhile may still stand in it
) STRICT;
CREATE VIEW acked AS SELECT CAST(s.value AS INTEGER) AS seq, m.at AS at FROM acks m, json_each(m.seqs) s;

-- Whose events wait is known to the agent, which reads it once: an index by person is written at random places.
DROP INDEX pending_by_ordering_key;

-- One row an event, as before; found by its seq without a search.
DROP VIEW outbox_events;
CREATE VIEW outbox_events AS
    SELECT w.event_seq AS seq, w.message_id, w.type, w.event, iif(m.at IS NULL, 'pending', 'delivered') AS state,
           w.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', w.received_at / 1000, 'unixepoch') AS received_at,
           strftime('%Y-%m-%dT%H:%M:%SZ', m.at / 1000, 'unixepoch') AS settled_at,
           (SELECT coalesce(max(a.n), 0) FROM attempts a WHERE a.seq = w.event_seq) + (m.at IS NOT NULL) AS attempts,
           (SELECT a.code FROM attempts a WHERE a.seq = w.event_seq AND m.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason_code,
           (SELECT a.text FROM attempts a WHERE a.seq = w.event_seq AND m.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason,
           w.file, w.place
      FROM (SELECT p.seq AS event_seq, p.message_id, p.type, p.event, p.person, p.received_at, p.file, p.place
              FROM pending p WHERE p.event_seq IS NULL
            UNION ALL
            SELECT p.event_seq, p.message_id, p.type, p.event, p.person, p.received_at, p.file, p.place
              FROM pending p
             WHERE p.event_seq IS NOT NULL
               AND p.seq = (SELECT min(q.seq) FROM pending q WHERE q.event_seq = p.event_seq)) w
      LEFT JOIN acked m ON m.seq = w.event_seq
    UNION ALL
    SELECT s.seq, s.message_id, s.type, s.event, s.state, s.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', s.received_at / 1000, 'unixepoch'),
           strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch'),
           s.attempts, nullif(s.code, ''), nullif(s.reason, ''), s.file, s.place
      FROM settled s;

-- New ids in the order in which they came; an id may stand in both tables for a while.
CREATE TABLE new_ids (
    n   INTEGER PRIMARY KEY,
    id  BLOB NOT NULL CHECK (length(id) = 16),
    seq INTEGER NOT NULL
) STRICT;
CREATE VIEW known_ids AS SELECT id, seq FROM ids UNION SELECT id, seq FROM new_ids;

-- By minutes: rows that move together in the order of the spool are written side by side.
DROP INDEX settled_by_age;
CREATE INDEX settled_by_age ON settled (state, settled_at / 60000);
DROP INDEX bodies_by_age;
CREATE INDEX bodies_by_age ON bodies (state, since / 60000);

DROP VIEW outbox_status;
CREATE VIEW outbox_status AS
    SELECT c.state AS state, sum(c.events) AS events,
           CASE c.state
               WHEN 'pending' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', p.received_at / 1000, 'unixepoch')
                                      FROM pending p ORDER BY p.seq LIMIT 1)
               ELSE (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch')
                       FROM settled s WHERE s.state = c.state ORDER BY s.settled_at / 60000 LIMIT 1)
           END AS oldest
      FROM counters c
     WHERE c.state IN ('pending', 'delivered', 'skipped', 'failed', 'discarded')
     GROUP BY c.state;
