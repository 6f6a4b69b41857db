//! An outbox as an older agent left it.

use rusqlite::Connection;
use std::fs;
use std::path::Path;

/// What each version of the schema added, in the words of its time.
const SCHEMAS: [&str; 4] = [
    include_str!("../../src/outbox/schema.sql"),
    "ALTER TABLE spool_files ADD COLUMN sum INTEGER;",
    include_str!("../../src/outbox/items.sql"),
    include_str!("../../src/outbox/moved.sql"),
];

/// Makes an outbox that nobody has open what it would be under that version of the schema. Returns the version that it
/// had. Nothing in it may be of a kind that the older schema does not know.
pub fn make_older(outbox: &Path, version: usize) -> i64 {
    let older = outbox.with_extension("older");
    let conn = Connection::open(&older).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.execute_batch(&SCHEMAS[..version].concat()).unwrap();
    conn.execute("ATTACH ? AS new", [outbox.to_str().unwrap()]).unwrap();
    let names = |sql: &str| -> Vec<String> {
        let mut names = conn.prepare(sql).unwrap();
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    // What is in both: the older one may have had tables of its own.
    let tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table'
                  INTERSECT SELECT name FROM new.sqlite_schema WHERE type = 'table'";
    for table in names(tables) {
        let columns = names(&format!("SELECT name FROM pragma_table_info('{table}', 'main')")).join(", ");
        let sql = format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}");
        conn.execute(&sql, []).unwrap();
    }
    // There was one table of them.
    conn.execute("INSERT INTO main.ids (id, seq) SELECT id, seq FROM new.recent_ids", []).unwrap();
    conn.execute("DELETE FROM meta WHERE name = 'ids_indexed'", []).unwrap();
    if version == 4 {
        // As a crash left them.
        conn.execute_batch(
            "INSERT INTO new_ids (id, seq) SELECT id, seq FROM ids; DELETE FROM ids WHERE seq > 2",
        )
        .unwrap();
    }
    let number = |name: &str| conn.query_row(&format!("PRAGMA new.{name}"), [], |row| row.get::<_, i64>(0));
    let (known, application) = (number("user_version").unwrap(), number("application_id").unwrap());
    conn.execute_batch("DETACH new").unwrap();
    conn.pragma_update(None, "application_id", application).unwrap();
    conn.pragma_update(None, "user_version", version as i64).unwrap();
    conn.close().unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", outbox.display()));
    }
    fs::rename(older, outbox).unwrap();
    known
}
