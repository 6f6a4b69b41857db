-- The tables of the outbox. All times are milliseconds since 1970 unless a comment says otherwise.

-- Facts about this outbox, one row each.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Items that wait to be sent, with the event's body. Usually an event is one item, hence one row. If several mappings
-- take the event, it has a row for each item that waits, until the last of them is settled. Rows are inserted at the
-- end and deleted when they are settled: the table is as large as the queue, and its pages are used again.
CREATE TABLE pending (
    seq          INTEGER PRIMARY KEY,           -- the order of the spool; a number is never used again
    event_seq    INTEGER,                       -- NULL: the event's only item; else the seq of the event
    ordering_key INTEGER NOT NULL,              -- items of one key are sent in order, one request at a time
    mapping      TEXT NOT NULL,                 -- '': the first mapping that takes the event
    message_id   TEXT NOT NULL,
    type         TEXT,
    event        TEXT,
    person       TEXT NOT NULL,
    digest       BLOB NOT NULL CHECK (length(digest) = 16),
    file         TEXT NOT NULL,
    place        INTEGER NOT NULL,
    owner        INTEGER,                       -- the uid of the file's owner
    spooled_at   INTEGER NOT NULL,
    received_at  INTEGER NOT NULL,
    body         TEXT NOT NULL
) STRICT;
-- An index by ordering key is left out on purpose: its pages would be written at random places. The agent reads once
-- which items wait and keeps that in memory.
CREATE INDEX pending_by_event ON pending (event_seq) WHERE event_seq IS NOT NULL;

-- Deliveries whose rows still stand in `pending`. One person's events lie all over the queue, so moving each row at
-- once would rewrite a page or two for it. A commit appends the delivered numbers here instead, and compaction moves
-- the rows later in the order of the queue, each page once.
CREATE TABLE acks (
    n      INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,                    -- when the receiver accepted them
    seqs   TEXT NOT NULL,                       -- a JSON array; numbers whose rows have moved may still stand in it
    status INTEGER                              -- of the answer; NULL: not known
) STRICT;
CREATE VIEW acked AS
    SELECT CAST(number.value AS INTEGER) AS seq, a.at AS at, a.status AS status FROM acks a, json_each(a.seqs) number;

-- Events that are settled and still in the history.
CREATE TABLE settled (
    seq         INTEGER PRIMARY KEY,
    -- Not IN: for more than two values SQLite builds a temporary table at each insert.
    state       TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed' OR state = 'discarded'),
    message_id  TEXT NOT NULL,
    type        TEXT,
    event       TEXT,
    person      TEXT,                           -- a keyed hash once the body is erased
    digest      BLOB NOT NULL CHECK (length(digest) = 16),
    file        TEXT NOT NULL,
    place       INTEGER NOT NULL,
    owner       INTEGER,                        -- the uid of the file's owner
    spooled_at  INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    settled_at  INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    code        TEXT NOT NULL,                  -- '' for delivered and discarded events
    reason      TEXT NOT NULL,
    status      INTEGER,                        -- of the answer that accepted the event; NULL: not known
    CHECK ((state IN ('skipped', 'failed')) = (code <> ''))
) STRICT;
-- By minute, so that rows that move together are written side by side. Delivered events are expired in the order in
-- which they came, for which no index is needed.
CREATE INDEX settled_by_age ON settled (state, settled_at / 60000) WHERE state <> 'delivered';

-- How the items of an event that has or had several were settled; seq is the event's.
CREATE TABLE settled_items (
    seq        INTEGER NOT NULL,
    mapping    TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed'),
    code       TEXT NOT NULL,
    reason     TEXT NOT NULL,
    settled_at INTEGER NOT NULL,
    PRIMARY KEY (seq, mapping)
) STRICT, WITHOUT ROWID;

-- The bodies of settled events, for as long as the configuration keeps them.
CREATE TABLE bodies (
    seq        INTEGER PRIMARY KEY,
    state      TEXT NOT NULL,
    settled_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE INDEX bodies_by_age ON bodies (state, settled_at / 60000);

-- Answers other than acceptance, by the seq of the event.
CREATE TABLE attempts (
    seq    INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    code   TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID;

-- The messageIds that make an event a duplicate: the first 16 bytes of the SHA-256 of each. Short keys keep the
-- tables small, because ids are written at random places. The ids of the newest events stand in neither table: they
-- are read from the events behind the one that meta's `ids_indexed` names. Those up to `ids_indexed` stand in
-- `recent_ids` or `ids`, those up to `ids_merged` in `ids`.
CREATE TABLE recent_ids (
    id  BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE ids (
    id  BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE VIEW unindexed AS
    SELECT p.message_id, coalesce(p.event_seq, p.seq) AS seq FROM pending p
     WHERE p.seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0)
    UNION ALL
    SELECT s.message_id, s.seq FROM settled s
     WHERE s.seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0);

-- The number of events by state and reason code, kept in the transactions that change it. In rows with the state
-- 'owner', the code is a uid and the number is that of the bytes that this owner's events take in `pending`; in the row
-- 'last_delivery', it is a time. The rows 'created', 'requeued' and 'settled_…' only grow; the totals of the metrics are
-- made of them. They are in this table, because another one would cost each commit another page.
CREATE TABLE counters (
    state  TEXT NOT NULL,
    code   TEXT NOT NULL,
    events INTEGER NOT NULL CHECK (events >= 0),
    PRIMARY KEY (state, code)
) STRICT, WITHOUT ROWID;

-- The progress of each file of the spool, from its first commit until the file is gone from the folder. The
-- first three columns identify a file, whatever it is renamed to.
CREATE TABLE spool_files (
    inode         INTEGER NOT NULL,
    born          INTEGER NOT NULL,             -- nanoseconds; 0 where the file system does not record it
    modified      INTEGER NOT NULL,             -- nanoseconds, when first scanned
    name          BLOB NOT NULL,                -- when first scanned
    position      INTEGER NOT NULL,             -- bytes of the (unpacked) text that are ingested
    place         INTEGER NOT NULL,             -- lines or elements that are ingested
    sum           INTEGER,                      -- CRC-32 of the ingested text; NULL for a document
    read_size     INTEGER NOT NULL,             -- bytes of the file when it was read
    read_modified INTEGER NOT NULL,             -- nanoseconds, when it was read
    read_changed  INTEGER NOT NULL,             -- nanoseconds, when it had changed last by then; 0: unknown
    finished      INTEGER NOT NULL CHECK (finished IN (0, 1)),
    PRIMARY KEY (inode, born, modified)
) STRICT, WITHOUT ROWID;

-- The two views below are for other programs; they change only by additions.

-- One row an event. The first item of an event stands for the event, so that a row is found by its seq without a
-- search.
CREATE VIEW outbox_events AS
    SELECT w.event_seq AS seq, w.message_id, w.type, w.event, iif(k.at IS NULL, 'pending', 'delivered') AS state,
           w.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', w.received_at / 1000, 'unixepoch') AS received_at,
           strftime('%Y-%m-%dT%H:%M:%SZ', k.at / 1000, 'unixepoch') AS settled_at,
           (SELECT coalesce(max(a.n), 0) FROM attempts a WHERE a.seq = w.event_seq) + (k.at IS NOT NULL) AS attempts,
           (SELECT a.code FROM attempts a WHERE a.seq = w.event_seq AND k.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason_code,
           (SELECT a.reason FROM attempts a WHERE a.seq = w.event_seq AND k.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason,
           w.file, w.place, w.owner
      FROM (SELECT p.seq AS event_seq, p.message_id, p.type, p.event, p.person, p.received_at, p.file, p.place,
                   p.owner
              FROM pending p WHERE p.event_seq IS NULL
            UNION ALL
            SELECT p.event_seq, p.message_id, p.type, p.event, p.person, p.received_at, p.file, p.place,
                   p.owner
              FROM pending p
             WHERE p.event_seq IS NOT NULL
               AND p.seq = (SELECT min(q.seq) FROM pending q WHERE q.event_seq = p.event_seq)) w
      LEFT JOIN acked k ON k.seq = w.event_seq
    UNION ALL
    SELECT s.seq, s.message_id, s.type, s.event, s.state, s.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', s.received_at / 1000, 'unixepoch'),
           strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch'),
           s.attempts, nullif(s.code, ''), nullif(s.reason, ''), s.file, s.place, s.owner
      FROM settled s;

-- The number of events in each state, and the time of the oldest of them.
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
