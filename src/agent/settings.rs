//! The settings in force, which every loop watches: one value for all of them, so that none goes on with older settings than
//! another that has told it something. A configuration of which no client can be made changes nothing.

use crate::clock::Clock;
use crate::config::{Config, KoalaConfig};
use crate::koala::{Client, ClientError, ReceiverClock};
use crate::reason::{Code, Reason};
use std::sync::Arc;
use tokio::sync::watch;

/// The configuration, and what is made of it.
#[derive(Clone)]
pub struct Settings {
    pub config: Arc<Config>,
    /// The client, or why there is none.
    pub client: Result<Client, Reason>,
}

/// The owner of the settings.
pub struct SettingsInForce {
    settings: watch::Sender<Settings>,
    clock: Clock,
    receiver_clock: ReceiverClock,
}

impl SettingsInForce {
    /// # Errors
    /// No client can be made of the configuration.
    pub fn new(
        config: Config,
        clock: Clock,
        receiver_clock: ReceiverClock,
    ) -> Result<SettingsInForce, ClientError> {
        let client = new_client(&config.koala, &clock, &receiver_clock)?;
        let settings = watch::Sender::new(Settings { config: Arc::new(config), client });
        Ok(SettingsInForce { settings, clock, receiver_clock })
    }

    pub fn watch(&self) -> watch::Receiver<Settings> {
        self.settings.subscribe()
    }

    pub fn config(&self) -> Arc<Config> {
        self.settings.borrow().config.clone()
    }

    /// Puts another configuration in force, except the folders, which need a restart. Returns the keys of those that differ.
    ///
    /// # Errors
    /// No client can be made of it; then the old one stays in force.
    pub fn replace(&self, mut config: Config) -> Result<Vec<&'static str>, ClientError> {
        let client = new_client(&config.koala, &self.clock, &self.receiver_clock)?;
        let current = self.config();
        let mut need_restart = Vec::new();
        for (key, before, after) in [
            ("spool.dir", &current.spool.dir, &mut config.spool.dir),
            ("outbox.path", &current.outbox.path, &mut config.outbox.path),
        ] {
            if before != after {
                after.clone_from(before);
                need_restart.push(key);
            }
        }
        if !need_restart.is_empty() {
            // Not all that stands in the file is in force.
            config.file_digest = current.file_digest;
        }
        self.settings.send_replace(Settings { config: Arc::new(config), client });
        Ok(need_restart)
    }
}

/// A client for the receiver; without a key the reason why there is none.
fn new_client(
    config: &KoalaConfig,
    clock: &Clock,
    receiver_clock: &ReceiverClock,
) -> Result<Result<Client, Reason>, ClientError> {
    let why = || Reason::new(Code::NoKey, config.missing_key().unwrap_or_default());
    let client = Client::new(config, clock.clone())?;
    Ok(client.map(|client| client.with_receiver_clock(receiver_clock.clone())).ok_or_else(why))
}
