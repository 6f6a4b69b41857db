//! The way to the receiver: the proxy, the key, and the two clocks.

use super::report::Report;
use crate::cli::CommandContext;
use crate::cli::remedy::{Remedy, clock_remedy, remedy};
use crate::cli::status_text::clock_text;
use crate::config::{Config, Scope};
use crate::koala::{Client, ProxySource};
use crate::reason::{Code, Reason};

/// Variables by which other programs choose a proxy, and this one does not: it sends nothing over plain HTTP but to the
/// own machine.
const UNUSED_VARIABLES: [&str; 4] = ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];

/// Names the proxy that the receiver is reached through, and what a person may take for one.
pub fn check_proxy(context: &CommandContext, config: &Config, report: &mut Report) {
    let own = Remedy::text(format!("name the proxy in {}: koala.proxy", config.path.display()));
    match ProxySource::of(&config.koala) {
        None if config.koala.is_loopback() => report.ok("proxy", "none: the receiver is on this machine"),
        None => match UNUSED_VARIABLES.iter().find(|name| context.environment.get(name).is_some()) {
            Some(name) => {
                report.note("proxy", format!("none: {name} is set here and has no effect"));
                report.add_remedy("proxy", &own);
            }
            None => report.ok("proxy", "none"),
        },
        Some(ProxySource::Setting) => report.ok("proxy", "as koala.proxy says, except for hosts in NO_PROXY"),
        // This command is asked by a person's shell, and the service is started by systemd.
        Some(ProxySource::Variable(name)) if config.scope == Scope::System => {
            let text = format!("{name} is set here, so this command uses it; the service does not see it");
            report.note("proxy", text);
            report.add_remedy("proxy", &own);
        }
        Some(ProxySource::Variable(name)) => {
            report.ok("proxy", format!("as {name} says, except for hosts in NO_PROXY"));
        }
    }
}

/// Asks the receiver whether it accepts the key, and compares its clock.
pub fn check_receiver(context: &CommandContext, config: &Config, report: &mut Report) {
    let endpoint = &config.koala.endpoint;
    let client = match Client::new(&config.koala, context.clock.clone()) {
        Ok(Some(client)) => client,
        Ok(None) => return report.note("receiver", format!("{endpoint}, not asked: there is no key")),
        Err(error) => return report.fail("receiver", error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let verdict = match runtime {
        Ok(runtime) => runtime.block_on(client.auth()),
        Err(error) => return report.fail("receiver", format!("cannot be asked: {error}")),
    };
    if let Some(ahead) = client.receiver_clock().seconds_ahead() {
        report.fail_with("clock", clock_text(ahead), &clock_remedy());
    }
    let Some(Reason { code, text, .. }) = verdict.into_reason() else {
        return report.ok("receiver", format!("{endpoint} accepts the key"));
    };
    if code == Code::TooLarge {
        // The request had no body, so no event is too large.
        let file = config.path.display();
        let remedy =
            Remedy::text(format!("check koala.endpoint in {file}, and the limits of any proxy on the way"));
        let text = format!("{code}: {text}; it refuses even an empty request as too large");
        return report.fail_with("receiver", text, &remedy);
    }
    // No event was sent, so a refusal is not about an event.
    let code = if code == Code::Refused { Code::RefusesAll } else { code };
    let text = format!("{code}: {text}");
    match remedy(code, config) {
        Some(remedy) => report.fail_with("receiver", text, &remedy),
        None => {
            report.note("receiver", text);
            report.add_remedy("receiver", &Remedy::text("nothing to do: the agent tries again by itself"));
        }
    }
}
