//! The controls: the agent with one line spoilt, built from a copy of this source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One line of the agent, and what it is spoilt to.
pub struct Control {
    /// The program's name.
    pub name: &'static str,
    /// The file below `src`.
    pub file: &'static str,
    /// Stands there exactly once.
    pub line: &'static str,
    pub spoilt: &'static str,
}

impl Control {
    /// Builds it under a name of its own; the libraries that it is made of are those of this build.
    ///
    /// # Errors
    /// Why it cannot be built here.
    pub fn build(&self) -> Result<PathBuf, String> {
        let cargo = std::env::var("CARGO").map_err(|_| "cargo does not run this test".to_owned())?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let copy = tmp.join("controls").join(self.name);
        copy_tree(&root.join("src"), &copy.join("src"));
        copy_tree(&root.join("packaging"), &copy.join("packaging"));
        fs::copy(root.join("README.md"), copy.join("README.md")).unwrap();
        let own_name = format!("name = \"{}\"", self.name);
        let renamed = |file: &str| {
            fs::read_to_string(root.join(file)).unwrap().replace("name = \"koala-agent\"", &own_name)
        };
        fs::write(copy.join("Cargo.lock"), renamed("Cargo.lock")).unwrap();
        // Tests and benchmarks are not copied.
        let manifest = renamed("Cargo.toml").replace("[lib]", "[lib]\nname = \"koala_agent\"");
        let manifest = manifest.split("# It prints a table of its own.").next().unwrap();
        fs::write(copy.join("Cargo.toml"), manifest).unwrap();
        let spoilt = copy.join("src").join(self.file);
        let source = fs::read_to_string(&spoilt).unwrap();
        assert_eq!(source.matches(self.line).count(), 1, "{} has not once {:?}", self.file, self.line);
        fs::write(&spoilt, source.replace(self.line, self.spoilt)).unwrap();
        let (profile, folder) =
            if cfg!(debug_assertions) { ("dev", "debug") } else { ("release", "release") };
        let target = tmp.parent().unwrap();
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "--profile", profile, "--target-dir"])
            .arg(target)
            .current_dir(&copy)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Ok(target.join(folder).join(self.name))
    }
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
