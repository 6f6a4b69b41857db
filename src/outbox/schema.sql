-- The tables of the outbox. All times are milliseconds since 1970 unless a comment says otherwise.
--
-- An event's row in `events` is written once and stays where it is, until its history is given up. What changes is short
-- and stands beside it: a row in `queue` while an item of it waits, a row in `settled` from then on. So nothing is copied
-- from one table to another, and a body, which is most of an event, is written once and zeroed once.

-- Facts about this outbox, one row each.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Where events are sent to. Items name their destination by its number.
CREATE TABLE destinations (
    id              INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    retry_after     INTEGER,                    -- the receiver asked for no requests before this time
    accepted_by     INTEGER,                    -- a hash of the address and the key under which it last accepted an event
    keying          INTEGER,                    -- the mappings by which ordering keys are computed
    stale_keys_from INTEGER,                    -- the first item whose ordering key may be by other mappings
    stale_keys_to   INTEGER                     -- the first item after those
) STRICT;
INSERT INTO destinations (id, name) VALUES (1, 'koala');

-- Events, in the order of the spool. Rows are inserted at the end; only a change of the mappings changes the person.
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY,            -- the order of the spool; a number is never used again
    message_id  TEXT NOT NULL,
    type        TEXT,
    event       TEXT,
    person      TEXT,                           -- a keyed hash
    digest      BLOB NOT NULL CHECK (length(digest) = 8),
    file        TEXT NOT NULL,
    place       INTEGER NOT NULL,
    owner       INTEGER,                        -- the uid of the file's owner
    spooled_at  INTEGER NOT NULL,
    received_at INTEGER NOT NULL
) STRICT;

-- The bodies of events that wait, and of settled ones for as long as the configuration keeps them.
CREATE TABLE bodies (
    seq    INTEGER PRIMARY KEY,
    person TEXT,                                -- by name, as people know the person
    body   TEXT NOT NULL
) STRICT;

-- Items that wait to be sent: what one mapping for one destination makes of an event. Rows are inserted at the end and
-- deleted when the item is settled: the table is as large as the queue, and its pages are used again.
CREATE TABLE queue (
    id           INTEGER PRIMARY KEY,           -- the order of the spool; a number is never used again
    seq          INTEGER,                       -- NULL: the event's only item, and the id is that of the event
    destination  INTEGER NOT NULL,
    mapping      TEXT NOT NULL,                 -- '': the first mapping that takes the event
    ordering_key INTEGER NOT NULL,              -- items of one key are sent in order, one request at a time
    owner        INTEGER,
    bytes        INTEGER NOT NULL,              -- on the disk, as they are counted for the owner
    queued_after INTEGER NOT NULL               -- acks up to this one were of an earlier time in the queue; 0: there was none
) STRICT;
-- An index by ordering key is left out on purpose: its pages would be written at random places. The agent reads once
-- which items wait and keeps that in memory.
CREATE INDEX queue_by_event ON queue (seq) WHERE seq IS NOT NULL;
CREATE INDEX queue_again ON queue (queued_after) WHERE queued_after > 0;

-- Acceptances whose items still stand in `queue`. One person's events lie all over the queue, so deleting each row at
-- once would rewrite a page or two for it. A commit appends the accepted items here instead, and compaction settles them
-- later in the order of the queue, each page once.
CREATE TABLE acks (
    n      INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,                    -- when the receiver accepted them
    ids    TEXT NOT NULL,                       -- a JSON array; items that are settled may still stand in it
    status INTEGER                              -- of the answer; NULL: not known
) STRICT;
-- The items of the queue that are accepted.
CREATE VIEW acked AS
    SELECT q.id, a.at, a.status
      FROM acks a, json_each(a.ids) accepted CROSS JOIN queue q ON q.id = accepted.value
     WHERE a.n > q.queued_after;

-- How events were settled.
CREATE TABLE settled (
    seq        INTEGER PRIMARY KEY,
    -- Not IN: for more than two values SQLite builds a temporary table at each insert.
    state      TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed' OR state = 'discarded'),
    settled_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    code       TEXT NOT NULL,                   -- '' for delivered and discarded events
    reason     TEXT NOT NULL,
    status     INTEGER,                         -- of the answer that accepted the event; NULL: not known
    body_bytes INTEGER NOT NULL,                -- the length of the body; 0: it is not kept
    CHECK ((state IN ('skipped', 'failed')) = (code <> ''))
) STRICT;
-- By minute, so that rows that are settled together are written side by side. Delivered events are expired in the order
-- in which they came, for which no index is needed.
CREATE INDEX settled_by_age ON settled (state, settled_at / 60000) WHERE state <> 'delivered';
CREATE INDEX bodies_by_age ON settled (state, settled_at / 60000) WHERE body_bytes > 0;

-- How the items of an event that has or had several were settled.
CREATE TABLE items (
    seq         INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    mapping     TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state = 'delivered' OR state = 'skipped' OR state = 'failed'),
    code        TEXT NOT NULL,
    reason      TEXT NOT NULL,
    settled_at  INTEGER NOT NULL,
    PRIMARY KEY (seq, destination, mapping)
) STRICT, WITHOUT ROWID;

-- Answers other than acceptance, by event.
CREATE TABLE attempts (
    seq         INTEGER NOT NULL,
    n           INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    code        TEXT NOT NULL,
    reason      TEXT NOT NULL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID;

-- Commands that wait to be carried out, and those whose result nobody has taken yet: empty at rest. Whoever asks inserts a
-- row, and deletes it again only while nobody has claimed it. All else is done by the one who holds the outbox's lock.
CREATE TABLE commands (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- the asker holds a lock on the byte of this number (asker.rs)
    asked_at    INTEGER NOT NULL,
    asker       TEXT NOT NULL,                      -- JSON: who asks
    command     TEXT NOT NULL,                      -- JSON: the kind of the command and its arguments
    claimed_at  INTEGER,
    act         INTEGER,                            -- the row in `acts`, as soon as anything has changed
    report      TEXT,                               -- JSON: what has changed so far, and the result once it is finished
    finished_at INTEGER,
    CHECK (finished_at IS NULL OR report IS NOT NULL)
) STRICT;

-- What was done by hand. An erased person is named by a keyed hash, and none of the events.
CREATE TABLE acts (
    n      INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    kind   TEXT NOT NULL CHECK (kind IN ('retry', 'discard', 'erase', 'let_in')),
    uid    INTEGER NOT NULL,
    user   TEXT,                                    -- the name of that user then
    sudo   TEXT,                                    -- who had become that user by sudo
    person TEXT,
    events INTEGER NOT NULL
) STRICT;
CREATE INDEX acts_by_age ON acts (at);
CREATE TABLE act_events (
    seq INTEGER NOT NULL,                           -- of the event
    act INTEGER NOT NULL,
    PRIMARY KEY (seq, act)
) STRICT, WITHOUT ROWID;
CREATE INDEX act_events_by_act ON act_events (act);

-- Persons whose events are not stored, by keyed hashes of their names.
CREATE TABLE suppressed (
    hash  TEXT NOT NULL PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The window of idempotency: for each event that came within it, the first 16 bytes of the SHA-256 of its messageId, the
-- first 8 bytes of its content digest, and its seq, whether or not its row in `events` still stands. The ids of events
-- behind the one that meta's `ids_indexed` names are read from `events`. All others stand in segments.

-- A segment has the ids of a range of events, in chunks in the order of the ids. It counts once its row is here.
CREATE TABLE id_segments (
    segment            INTEGER PRIMARY KEY,
    stamp              INTEGER NOT NULL,        -- random; tells whether the copy in memory is of this segment
    first_seq          INTEGER NOT NULL,        -- entries hold their seq as the distance from this one
    upto               INTEGER NOT NULL,        -- the last event of the range
    newest_received_at INTEGER NOT NULL,
    entries            INTEGER NOT NULL,        -- when it was written; some may have been removed since
    is_remainder       INTEGER NOT NULL CHECK (is_remainder IN (0, 1)), -- 1: forgotten, except ids whose rows stood
    fences             BLOB NOT NULL,           -- the first id of each chunk
    filter             BLOB NOT NULL
) STRICT;

-- A chunk of a segment fills a page: 144 entries of 16 bytes of id, 8 of digest and 4 of seq (big-endian).
CREATE TABLE id_chunks (
    position INTEGER PRIMARY KEY,               -- segment << 24 | number of the chunk
    entries  BLOB NOT NULL
) STRICT;

-- What is counted, kept in the transactions that change it; by destination, or 0 for what is counted of events. The table is
-- one, and one page, because another one would cost each commit another page.
--   pending, delivered, …: events by state and reason code
--   created, requeued, settled_…: totals of items, which only grow; the metrics are made of them
--   duplicate: events that came again
--   owner: bytes of the queue by uid ('': not known)
--   kept: bytes of settled events with what is kept of them, by state
--   last_delivery: a time
CREATE TABLE counters (
    name        TEXT NOT NULL,
    destination INTEGER NOT NULL,
    code        TEXT NOT NULL,
    value       INTEGER NOT NULL CHECK (value >= 0),
    PRIMARY KEY (name, destination, code)
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

-- One row an event. The first item that waits stands for its event.
CREATE VIEW outbox_events AS
    SELECT w.seq, e.message_id, e.type, e.event, iif(k.at IS NULL, 'pending', 'delivered') AS state,
           coalesce(b.person, e.person) AS person,
           strftime('%Y-%m-%dT%H:%M:%SZ', e.received_at / 1000, 'unixepoch') AS received_at,
           strftime('%Y-%m-%dT%H:%M:%SZ', k.at / 1000, 'unixepoch') AS settled_at,
           (SELECT coalesce(max(a.n), 0) FROM attempts a WHERE a.seq = w.seq) + (k.at IS NOT NULL) AS attempts,
           (SELECT a.code FROM attempts a WHERE a.seq = w.seq AND k.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason_code,
           (SELECT a.reason FROM attempts a WHERE a.seq = w.seq AND k.at IS NULL
             ORDER BY a.n DESC LIMIT 1) AS reason,
           e.file, e.place, e.owner
      FROM (SELECT q.id AS seq FROM queue q WHERE q.seq IS NULL
            UNION ALL
            SELECT q.seq FROM queue q
             WHERE q.seq IS NOT NULL AND q.id = (SELECT min(r.id) FROM queue r WHERE r.seq = q.seq)) w
      JOIN events e ON e.seq = w.seq
      LEFT JOIN bodies b ON b.seq = w.seq
      LEFT JOIN acked k ON k.id = w.seq
    UNION ALL
    SELECT s.seq, e.message_id, e.type, e.event, s.state, coalesce(b.person, e.person),
           strftime('%Y-%m-%dT%H:%M:%SZ', e.received_at / 1000, 'unixepoch'),
           strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch'),
           s.attempts, nullif(s.code, ''), nullif(s.reason, ''), e.file, e.place, e.owner
      FROM settled s
      JOIN events e ON e.seq = s.seq
      LEFT JOIN bodies b ON b.seq = s.seq;

-- The number of events in each state, and the time of the oldest of them.
CREATE VIEW outbox_status AS
    SELECT c.name AS state, sum(c.value) AS events,
           CASE c.name
               WHEN 'pending' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', e.received_at / 1000, 'unixepoch')
                                      FROM queue q CROSS JOIN events e ON e.seq = coalesce(q.seq, q.id)
                                     WHERE c.value > 0 ORDER BY q.id LIMIT 1)
               WHEN 'delivered' THEN (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch')
                                        FROM settled s WHERE s.state = 'delivered' ORDER BY s.seq LIMIT 1)
               ELSE (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.settled_at / 1000, 'unixepoch')
                       FROM settled s WHERE s.state = c.name AND s.state <> 'delivered'
                      ORDER BY s.settled_at / 60000 LIMIT 1)
           END AS oldest
      FROM counters c
     WHERE c.name IN ('pending', 'delivered', 'skipped', 'failed', 'discarded')
     GROUP BY c.name;
