//! The means of this machine that a fault needs: root, tools, mounts.

use std::process::Command;

/// # Errors
/// The tool is not here.
pub fn needs(tool: &str) -> Result<(), String> {
    let asked = Command::new(tool).arg("--version").output();
    asked.map(drop).map_err(|e| format!("{tool}: {e}"))
}

/// # Errors
/// We are not root.
pub fn needs_root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("this takes root".to_owned()) }
}

/// Runs a command to its end.
///
/// # Errors
/// The command's standard error.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
