//! What a person can do about each reason, in one place.

use super::context::{ours, quoted, service};
use crate::config::{Config, Scope, SpoolConfig};
use crate::reason::Code;

/// What a person can do where the spool is not there, or not the agent's to use.
pub fn remedy_for_spool(config: &Config) -> String {
    let (dir, restart) = (quoted(config.spool.dir.as_os_str()), service(config, "restart"));
    let operation = match config.scope {
        // Its owners and its ACL come with it. A service sees the folder that was there when it started.
        Scope::System if config.spool.dir == SpoolConfig::default().dir => {
            format!("systemd-tmpfiles --create && {restart}")
        }
        Scope::System => {
            format!("mkdir -p {dir} && chown koala-agent:koala-drop {dir} && chmod 3730 {dir} && {restart}")
        }
        Scope::User | Scope::Named => format!("mkdir -p {dir} && chmod u+rwx {dir}"),
    };
    format!("make the spool anew: {operation}")
}

/// The fix for a reason of the destination or the intake, or for a settled event's; `None`: it passes by itself.
pub fn remedy(code: Code, config: &Config) -> Option<String> {
    let file = config.path.display();
    let endpoint = &config.koala.endpoint;
    let restart = service(config, "restart");
    let reload = service(config, "reload");
    let key = &config.koala.key_source;
    Some(match code {
        Code::Http5xx | Code::RateLimited => return None,
        Code::Dns => format!("check this machine's network, and the name in koala.endpoint, {endpoint}"),
        Code::Connect => format!("check that this machine reaches {endpoint}: curl -I {endpoint}"),
        Code::Tls => {
            "check this machine's clock; a certificate of your own authority goes into koala.ca_file"
                .to_owned()
        }
        Code::Timeout => format!("check the network to {endpoint}; koala.timeout in {file} is the limit"),
        Code::Proxy => format!("check koala.proxy in {file}, or HTTPS_PROXY"),
        Code::NoKey => format!("put the public key of your Koala workspace into {key}, then: {restart}"),
        Code::KeyRefused => format!("put the right public key into {key}, then: {restart}"),
        Code::NotFound => {
            format!("set koala.endpoint in {file}: {endpoint} has no such address; then: {reload}")
        }
        Code::RefusesAll => {
            format!(
                "it refuses everybody: set another koala.endpoint in {file} (now {endpoint}), then: {reload}"
            )
        }
        Code::NotTheReceiver => {
            format!("log in to the network's portal, or set koala.proxy or koala.endpoint in {file}")
        }
        Code::Redirect => format!("set koala.endpoint in {file} to where it points, then: {reload}"),
        Code::MaxBytes => {
            format!("raise outbox.max_bytes in {file}, then: {reload}; or let events be delivered")
        }
        Code::MinFree | Code::DiskFull => {
            format!("free space on the file system of {}", config.outbox.path.display())
        }
        Code::ReadOnly => {
            let (outbox, spool) = (config.outbox.path.display(), config.spool.dir.display());
            format!(
                "make the file systems of {outbox} and {spool} writable; where the spool was made anew: {restart}"
            )
        }
        Code::Unreadable => {
            format!("chmod g+r the files in {} that the agent cannot read", config.spool.dir.display())
        }
        Code::NoMapping
        | Code::NoIdentity
        | Code::BrowserLibrary
        | Code::IntegrationsOff
        | Code::NoConsent
        | Code::Erased => return None,
        Code::InvalidField | Code::TooLarge | Code::Refused => format!(
            "remedy what makes such events; {} tries these again",
            ours(config, &format!("retry --state failed --reason {code}"))
        ),
        Code::NotJson | Code::NotAnEvent | Code::MessageIdReused | Code::TooDeep => {
            format!("remedy the file; {} takes it back", ours(config, "retry --rejected NAME"))
        }
    })
}
