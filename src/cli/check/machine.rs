//! What the machine gives to the agent: a watch on the spool, and the file systems of spool and outbox.

use super::report::Report;
use crate::cli::remedy::Remedy;
use crate::cli::status::existing_folder;
use crate::config::Config;
use crate::disk::network_file_system;
use crate::outbox::OutboxError;
use crate::spool::{NotWatched, Watcher};
use humantime::format_duration;
use std::fs;

/// Watches the spool for a moment, as the agent does when it starts. The limits alone would say little: they count what all
/// programs of a user hold, and the system tells nobody how much that is.
pub fn check_watching(config: &Config, report: &mut Report) {
    let dir = &config.spool.dir;
    if !dir.is_dir() {
        return;
    }
    let (watcher, not_watched) = Watcher::new(dir, || {});
    drop(watcher);
    let Some(why) = not_watched else {
        let limits: Vec<_> = LIMITS.iter().filter_map(|name| Some((name, limit(name)?))).collect();
        let limits: Vec<_> = limits.iter().map(|(name, limit)| format!("{name} = {limit}")).collect();
        return report.ok("inotify", format!("the spool can be watched; {}", limits.join(", ")));
    };
    let interval = format_duration(config.spool.scan_interval);
    let text = format!("the spool cannot be watched, so a file is found within {interval}: {why}");
    match why {
        NotWatched::Instances => report.fail_with("inotify", text, &raise(LIMITS[0])),
        NotWatched::Watches => report.fail_with("inotify", text, &raise(LIMITS[1])),
        NotWatched::Other(_) => report.fail("inotify", text),
    }
}

/// The limits of inotify(7): how many instances one user may have, and how many watches in all of them.
const LIMITS: [&str; 2] = ["max_user_instances", "max_user_watches"];

fn limit(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

/// Raising a limit that other programs of the same user have used up; the file keeps it over a restart of the machine.
fn raise(name: &str) -> Remedy {
    let setting = format!("fs.inotify.{name}={}", limit(name).unwrap_or(128).saturating_mul(4));
    let command = format!("echo {setting} | tee /etc/sysctl.d/60-koala-agent.conf && sysctl -w {setting}");
    Remedy::run("raise the limit, or end a program that has many files watched", command)
}

/// Names the network file systems under the outbox, which does not start there, and under the spool, which is slower there.
pub fn check_file_systems(config: &Config, report: &mut Report) {
    let path = &config.outbox.path;
    if let Ok(Some(kind)) = network_file_system(existing_folder(path)) {
        // In the words with which the daemon refuses it.
        report.fail("outbox", OutboxError::NetworkFileSystem { path: path.clone(), kind });
    }
    if let Ok(Some(kind)) = network_file_system(&config.spool.dir) {
        let interval = format_duration(config.spool.scan_interval);
        let settle = format_duration(config.spool.settle);
        report.note(
            "spool",
            format!(
                "on a network file system ({kind}): files that another machine writes are found within {interval} \
                 (spool.scan_interval) and read once they have been unchanged for {settle} (spool.settle); see \
                 koala-agent-guarantees(7)"
            ),
        );
    }
}
