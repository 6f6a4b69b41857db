//! The choice of the configuration file, and the order of the layers.

use super::*;
use std::path::Path;

/// The commented defaults with the `#` taken from the keys.
fn uncommented() -> String {
    let lines = DEFAULTS.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_commented_defaults_are_the_defaults() {
    let world = World::new();
    let without_file = world.system(&[]);
    for text in [DEFAULTS, &uncommented()] {
        world.write("config.toml", text);
        let config = world.system(&[]);
        assert_eq!(config.spool, without_file.spool);
        assert_eq!(config.outbox, without_file.outbox);
        assert_eq!(config.koala, without_file.koala);
        assert_eq!(config.warnings, [""; 0]);
    }
}

#[test]
fn the_commented_defaults_name_every_key() {
    let set = uncommented().lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count();
    let unset = ["# mappings_file = ", "# public_key = ", "# proxy = ", "# ca_file = "];
    assert!(unset.iter().all(|key| DEFAULTS.contains(key)));
    assert_eq!(set + unset.len(), builder::KEYS.len());
}

#[test]
fn without_a_file_the_defaults_of_the_system_are_in_force() {
    let config = World::new().system(&[]);
    assert_eq!((config.scope, config.file_exists, config.key_exposed), (Scope::System, false, false));
    assert_eq!(config.spool, SpoolConfig::default());
    assert_eq!(config.outbox, OutboxConfig::default());
    assert_eq!(config.status_file, Path::new("/run/koala-agent/status.json"));
    assert_eq!(config.koala.key_source, "/etc/koala-agent/public-key");
}

#[test]
fn a_user_has_folders_of_their_own() {
    let mut world = World::new();
    world.write("config.toml", "[koala]\nconcurrency = 3");
    world.write("user/public-key", "pk_user\n");
    let config = world.user(&[]);
    assert_eq!((config.scope, &config.path), (Scope::User, &world.at("user/config.toml")));
    assert_eq!(
        (config.spool.dir, config.outbox.path),
        (world.at("state/spool"), world.at("state/outbox.db"))
    );
    assert_eq!(
        (config.koala.concurrency, config.koala.public_key),
        (Concurrency::Auto, PublicKey::new("pk_user").unwrap())
    );
    assert_eq!(config.status_file, world.at("runtime/status.json"));

    world.folders.user.as_mut().unwrap().runtime = None;
    assert_eq!(world.user(&[]).status_file, world.at("state/outbox.db.status.json"));

    world.folders.user = None;
    let error = world.load(&ConfigOptions { user: true, ..ConfigOptions::default() }, &[]).unwrap_err();
    assert_eq!(error.to_string(), "--user needs a home folder, and this user has none; set HOME");
}

#[test]
fn an_instance_has_places_of_its_own_and_a_file_that_must_exist() {
    let world = World::new();
    let options = ConfigOptions { instance: Some("shop".parse().unwrap()), ..ConfigOptions::default() };
    let error = world.load(&options, &[]).unwrap_err();
    let file = world.at("shop.toml").display().to_string();
    assert_eq!(
        error.to_string(),
        format!("the configuration {file}, named by --instance, does not exist; the command init writes it")
    );
    world.write("shop.toml", "[koala]\nconcurrency = 3");
    world.write("config.toml", "[koala]\nconcurrency = 4");
    // The option goes before the variable.
    let config = world.load(&options, &[("KOALA_AGENT_CONFIG", "/none.toml")]).unwrap();
    assert_eq!((config.scope, &config.path), (Scope::System, &world.at("shop.toml")));
    assert_eq!((config.unit(), config.koala.concurrency), (Some("koala-agent@shop"), Concurrency::Fixed(3)));
    assert_eq!(config.spool.dir, Path::new("/var/spool/koala-agent-shop"));
    assert_eq!(config.outbox.path, Path::new("/var/lib/koala-agent-shop/outbox.db"));
    assert_eq!(config.status_file, Path::new("/run/koala-agent-shop/status.json"));
    assert_eq!(config.koala.key_source, "/etc/koala-agent/shop.public-key");
    assert!(config.has_packaged_spool());

    let config = world.system(&[]);
    assert_eq!((config.unit(), &config.instance), (Some("koala-agent"), &None));
    assert_eq!(world.user(&[]).unit(), None);
}

#[test]
fn the_option_goes_before_the_variable_and_that_before_the_users_folders() {
    let world = World::new();
    world.write("option.toml", "[outbox]\npath = \"/option.db\"");
    world.write("variable.toml", "[outbox]\npath = \"/variable.db\"");
    world.write("user/config.toml", "[outbox]\npath = \"/user.db\"");
    let variable = world.at("variable.toml");
    let env = [("KOALA_AGENT_CONFIG", variable.to_str().unwrap())];

    let config = world.load(&ConfigOptions { user: true, ..world.named("option.toml") }, &env).unwrap();
    assert_eq!((config.scope, config.outbox.path), (Scope::Named, "/option.db".into()));
    assert_eq!(config.spool.dir, SpoolConfig::default().dir);
    assert_eq!(config.status_file, Path::new("/option.db.status.json"));
    assert_eq!(world.user(&env).outbox.path, Path::new("/variable.db"));
    assert_eq!(world.user(&[("KOALA_AGENT_CONFIG", "")]).outbox.path, Path::new("/user.db"));
    assert_eq!(world.system(&env).warnings, [""; 0]);
}

#[test]
fn every_key_is_taken_from_the_file_and_the_environment_goes_before_it() {
    let world = World::new();
    let text = r#"
        outbox = { path = "/o.db", max_bytes = 2_097_152, min_free = 1_048_576, keep_bodies = "1h" }
        koala.endpoint = "http://localhost:9/"
        koala.proxy = "http://ana:pw@proxy:3128"
        [spool]
        dir = "/s"
        scan_interval = "100ms"
        settle = "0s"
        max_file_bytes = "1GiB"
        max_event_bytes = 0x400
    "#;
    world.write("config.toml", text);
    let config = world.system(&[
        ("KOALA_AGENT_SPOOL__DIR", "/e"),
        ("KOALA_AGENT_SPOOL__MAX_FILE_BYTES", "4096"),
        ("KOALA_AGENT_OUTBOX__MIN_FREE", "0.5%"),
        ("KOALA_AGENT_KOALA__CONCURRENCY", "64"),
        ("KOALA_AGENT_KOALA__TIMEOUT", "10m"),
        ("KOALA_AGENT_KOALA__ALLOW_PLAIN_HTTP", "true"),
        ("KOALA_AGENT_KOALA__CA_FILE", ""),
    ]);
    let second = Duration::from_secs(1);
    assert_eq!(
        config.spool,
        SpoolConfig {
            dir: "/e".into(),
            scan_interval: second / 10,
            settle: Duration::ZERO,
            max_file_bytes: 4096,
            max_event_bytes: 1024,
            ..SpoolConfig::default()
        }
    );
    assert_eq!(
        config.outbox,
        OutboxConfig {
            path: "/o.db".into(),
            max_bytes: 2 << 20,
            min_free: MinFree::Share(50),
            keep_bodies: 3600 * second,
            ..OutboxConfig::default()
        }
    );
    let koala = config.koala;
    assert_eq!((koala.endpoint.as_str(), koala.concurrency), ("http://localhost:9", Concurrency::Fixed(64)));
    assert_eq!((koala.timeout, koala.allow_plain_http, koala.ca_file), (600 * second, true, None));
    assert_eq!(koala.proxy.as_deref(), Some("http://ana:pw@proxy:3128"));
}
