-- Facts about this outbox: one row each.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Everything that waits, with its body. Rows are inserted at the end and deleted when they are settled, so
-- the table is as large as the queue, and its pages are used again.
CREATE TABLE pending (
    seq         INTEGER PRIMARY KEY,            -- the order of the spool, never used again
    ordering_key INTEGER NOT NULL,              -- whose event: one request at a time for one key
    message_id  TEXT NOT NULL,
    type        TEXT,
    event       TEXT,
    person      TEXT NOT NULL,
    digest      BLOB NOT NULL CHECK (length(digest) = 16),
    file        TEXT NOT NULL,
    place       INTEGER NOT NULL,
    spooled_at  INTEGER NOT NULL,               -- milliseconds since 1970, as all times here
    received_at INTEGER NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX pending_by_ordering_key ON pending (ordering_key, seq);

-- Everything that is settled and still remembered.
CREATE TABLE settled (
    seq         INTEGER PRIMARY KEY,
    -- Not IN: for more than two values SQLite makes a table at each insert.
    state       TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed' OR state = 'discarded'),
    message_id  TEXT NOT NULL,
    type        TEXT,
    event       TEXT,
    person      TEXT,                           -- a keyed hash once the body is gone
    digest      BLOB NOT NULL CHECK (length(digest) = 16),
    file        TEXT NOT NULL,
    place       INTEGER NOT NULL,
    spooled_at  INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    settled_at  INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    code        TEXT NOT NULL,                  -- '' for a delivered event
    reason      TEXT NOT NULL,
    CHECK ((state IN ('skipped', 'failed')) = (code <> ''))
) STRICT;
CREATE INDEX settled_by_age ON settled (state, settled_at);

-- The bodies of settled events, for as long as the configuration keeps them.
CREATE TABLE bodies (
    seq   INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    since INTEGER NOT NULL,
    body  TEXT NOT NULL
) STRICT;
CREATE INDEX bodies_by_age ON bodies (state, since);

-- One row for each messageId in pending or settled: the first 16 bytes of its SHA-256. Short keys keep the
-- index, which is written at random places, small.
CREATE TABLE ids (
    id  BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Answers other than acceptance.
CREATE TABLE attempts (
    seq  INTEGER NOT NULL,
    n    INTEGER NOT NULL,
    at   INTEGER NOT NULL,
    code TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID;

-- How many events are in which state and why, kept in the transactions that change it.
CREATE TABLE counters (
    state  TEXT NOT NULL,
    code   TEXT NOT NULL,
    events INTEGER NOT NULL CHECK (events >= 0),
    PRIMARY KEY (state, code)
) STRICT, WITHOUT ROWID;

-- How far each file of the spool has been taken, from its first commit until it is gone from the folder. A file is
-- known by its identity, whatever it is renamed to.
CREATE TABLE spool_files (
    inode    INTEGER NOT NULL,
    born     INTEGER NOT NULL,                  -- nanoseconds; 0 where the file system does not know
    modified INTEGER NOT NULL,                  -- nanoseconds, as first seen
    name     BLOB NOT NULL,                     -- as first seen
    position INTEGER NOT NULL,                  -- bytes of the (unpacked) text that are taken
    place    INTEGER NOT NULL,                  -- lines or elements that are taken
    read_size     INTEGER NOT NULL,             -- bytes of the file when it was read
    read_modified INTEGER NOT NULL,             -- nanoseconds, when it was read
    finished INTEGER NOT NULL CHECK (finished IN (0, 1)),
    PRIMARY KEY (inode, born, modified)
) STRICT, WITHOUT ROWID;

-- The views are for other readers; they change only by additions.
CREATE VIEW outbox_events AS
    SELECT p.seq, p.message_id, p.type, p.event, 'pending' AS state, p.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', p.received_at / 1000, 'unixepoch') AS received_at,
           NULL AS settled_at,
           (SELECT coalesce(max(a.n), 0) FROM attempts a WHERE a.seq = p.seq) AS attempts,
           (SELECT a.code FROM attempts a WHERE a.seq = p.seq ORDER BY a.n DESC LIMIT 1) AS reason_code,
           (SELECT a.text FROM attempts a WHERE a.seq = p.seq ORDER BY a.n DESC LIMIT 1) AS reason,
           p.file, p.place
      FROM pending p
    UNION ALL
    SELECT s.seq, s.message_id, s.type, s.event, s.state, s.person,
           strftime('%Y-%m-%dT%H:%M:%SZ', s.received_at / 1000, 'unixepoch'),
           strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch'),
           s.attempts, nullif(s.code, ''), nullif(s.reason, ''), s.file, s.place
      FROM settled s;

CREATE VIEW outbox_status AS
    SELECT c.state AS state, sum(c.events) AS events,
           CASE c.state
               WHEN 'pending' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', p.received_at / 1000, 'unixepoch')
                                      FROM pending p ORDER BY p.seq LIMIT 1)
               ELSE (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', min(s.settled_at) / 1000, 'unixepoch')
                       FROM settled s WHERE s.state = c.state)
           END AS oldest
      FROM counters c
     WHERE c.state IN ('pending', 'delivered', 'skipped', 'failed', 'discarded')
     GROUP BY c.state;
