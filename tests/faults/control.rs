//! The controls: agents with one line spoilt, built from a copy of this source.
//!
//! All controls are one program, built once: the name that it is started under says which line is spoilt.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An agent with one line spoilt.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// The name that it is started under.
    pub name: &'static str,
    /// The file below `src`.
    file: &'static str,
    /// Stands there exactly once.
    line: &'static str,
    /// The text that replaces the line; it asks `crate::is_spoilt` under which name it runs.
    spoilt: &'static str,
}

/// Removes a file when its events are on their way to the disk, not when they are there.
pub const EARLY_REMOVAL: Control = Control {
    name: "early-removal",
    file: "agent/intake.rs",
    line: "let answer = self.agent.writer.append(batch.events.clone(), batch.progress());",
    spoilt: r#"if crate::is_spoilt("early-removal") {
            for source in &batch.sources {
                let _ = std::fs::remove_file(self.spool.dir().join(&source.entry.name));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let answer = self.agent.writer.append(batch.events.clone(), batch.progress());"#,
};

/// Answers commits when they are in the file, but not on the disk.
pub const CARELESS_COMMIT: Control = Control {
    name: "careless-commit",
    file: "outbox/store.rs",
    line: r#"conn.pragma_update(None, "synchronous", "FULL")?;"#,
    spoilt: r#"let level = if crate::is_spoilt("careless-commit") { "NORMAL" } else { "FULL" };
    conn.pragma_update(None, "synchronous", level)?;"#,
};

/// The same where the level is set again.
const CARELESS_AGAIN: Control = Control {
    line: r#"self.conn.pragma_update(None, "synchronous", synchronous)?;"#,
    spoilt: r#"let level = if crate::is_spoilt("careless-commit") { "NORMAL" } else { synchronous };
        self.conn.pragma_update(None, "synchronous", level)?;"#,
    ..CARELESS_COMMIT
};

/// Keeps no reserve file.
pub const NO_RESERVE: Control = Control {
    name: "no-reserve",
    file: "outbox/reserve.rs",
    line: "if self.exists || disk::space_of(&self.path)",
    spoilt: r#"if crate::is_spoilt("no-reserve") || self.exists || disk::space_of(&self.path)"#,
};

/// Gives the database no room before it commits.
pub const NO_CLAIM: Control = Control {
    name: "no-claim",
    file: "outbox/tables.rs",
    line: "            self.store.allocate_pages()?;\n",
    spoilt: r#"            if !crate::is_spoilt("no-claim") { self.store.allocate_pages()?; }"#,
};

const ALL: [Control; 5] = [EARLY_REMOVAL, CARELESS_COMMIT, CARELESS_AGAIN, NO_RESERVE, NO_CLAIM];

/// The program's name until it is started under another.
const PROGRAM: &str = "koala-agent-spoilt";

/// Added to the library of the copy.
const IS_SPOILT: &str = r#"
pub(crate) fn is_spoilt(name: &str) -> bool {
    std::env::args_os().next().is_some_and(|program| std::path::Path::new(&program).ends_with(name))
}
"#;

impl Control {
    /// The program of that name, built when the first of them is asked for.
    ///
    /// # Errors
    /// Why it cannot be built here.
    pub fn build(&self) -> Result<PathBuf, String> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let program = BUILT.get_or_init(build).clone()?;
        let path = tmp().join("controls").join(self.name);
        let _ = fs::remove_file(&path);
        symlink(program, &path).map_err(|e| e.to_string())?;
        Ok(path)
    }
}

fn tmp() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Builds it; the libraries that it is made of are those of this build.
fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var("CARGO").map_err(|_| "cargo does not run this test".to_owned())?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = tmp().join("controls").join("source");
    // Files of an earlier source are no part of this one.
    let _ = fs::remove_dir_all(&copy);
    copy_tree(&root.join("src"), &copy.join("src"));
    copy_tree(&root.join("packaging"), &copy.join("packaging"));
    fs::copy(root.join("README.md"), copy.join("README.md")).unwrap();
    let renamed = |file: &str| {
        let file = fs::read_to_string(root.join(file)).unwrap();
        let own_name = format!("name = \"{PROGRAM}\"");
        file.replace("name = \"koala-agent\"", &own_name)
            .replace("package.koala-agent]", &format!("package.{PROGRAM}]"))
    };
    fs::write(copy.join("Cargo.lock"), renamed("Cargo.lock")).unwrap();
    // Tests and benchmarks are not copied.
    let manifest = renamed("Cargo.toml").replace("[lib]", "[lib]\nname = \"koala_agent\"");
    let manifest = manifest.split("# Tests and benchmarks:").next().unwrap();
    fs::write(copy.join("Cargo.toml"), manifest).unwrap();
    let change = |file: &str, change: &dyn Fn(String) -> String| {
        let file = copy.join("src").join(file);
        let source = fs::read_to_string(&file).unwrap();
        fs::write(&file, change(source)).unwrap();
    };
    change("lib.rs", &|source| source + IS_SPOILT);
    for Control { file, line, spoilt, .. } in ALL {
        change(file, &|source| {
            assert_eq!(source.matches(line).count(), 1, "{file} has not once {line:?}");
            source.replace(line, spoilt)
        });
    }
    let (profile, folder) = if cfg!(debug_assertions) { ("dev", "debug") } else { ("release", "release") };
    let target = tmp().parent().unwrap();
    let mut cargo = Command::new(cargo);
    cargo.args(["build", "--quiet", "--locked", "--profile", profile, "--target-dir"]).arg(target);
    // Variables about the test's package would make libraries be built again that look at them, and all that depend on them.
    for (name, _) in std::env::vars_os() {
        let is_of_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_of_package) {
            cargo.env_remove(name);
        }
    }
    let built = cargo.current_dir(&copy).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(target.join(folder).join(PROGRAM))
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            // An unchanged file keeps its time, so that it is not built again.
            let time = entry.metadata().unwrap().modified().unwrap();
            fs::copy(entry.path(), &to).unwrap();
            fs::File::options().write(true).open(&to).unwrap().set_modified(time).unwrap();
        }
    }
}
