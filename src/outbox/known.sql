-- The ids of the newest events are not noted a second time: meta's ids_indexed says up to which event all are in a
-- table, and those of later events are read from the events. From recent_ids they come into ids, many at once.
CREATE TABLE recent_ids (
    id  BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO ids (id, seq) SELECT id, seq FROM new_ids WHERE true ORDER BY id ON CONFLICT DO NOTHING;
INSERT OR REPLACE INTO meta (name, value)
    SELECT n.name, max(coalesce((SELECT max(seq) FROM pending), 0), coalesce((SELECT max(seq) FROM settled), 0))
      FROM (SELECT 'ids_indexed' AS name UNION ALL SELECT 'ids_merged') n;
DROP VIEW known_ids;
DROP TABLE new_ids;
CREATE VIEW unindexed AS
    SELECT p.message_id, coalesce(p.event_seq, p.seq) AS seq FROM pending p
     WHERE p.seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0)
    UNION ALL
    SELECT s.message_id, s.seq FROM settled s
     WHERE s.seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0);

-- Delivered events are forgotten in the order in which they came, for which they need no index.
DROP INDEX settled_by_age;
CREATE INDEX settled_by_age ON settled (state, settled_at / 60000) WHERE state <> 'delivered';

DROP VIEW outbox_status;
CREATE VIEW outbox_status AS
    SELECT c.state AS state, sum(c.events) AS events,
           CASE c.state
               WHEN 'pending' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', p.received_at / 1000, 'unixepoch')
                                      FROM pending p WHERE c.events > 0 ORDER BY p.seq LIMIT 1)
               WHEN 'delivered' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch')
                                        FROM settled s WHERE s.state = 'delivered' ORDER BY s.seq LIMIT 1)
               ELSE (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch')
                       FROM settled s WHERE s.state = c.state AND s.state <> 'delivered'
                      ORDER BY s.settled_at / 60000 LIMIT 1)
           END AS oldest
      FROM counters c
     WHERE c.state IN ('pending', 'delivered', 'skipped', 'failed', 'discarded')
     GROUP BY c.state;
