//! The error messages for wrong configurations.

use super::*;

#[test]
fn a_named_file_must_exist_and_a_file_that_exists_must_be_read() {
    let world = World::new();
    let dir = world.dir.path().display();
    let error = world.load(&world.named("none.toml"), &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Missing { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "the configuration {dir}/none.toml, named by --config, does not exist; the command init writes it"
        )
    );

    let error = world.load(&ConfigOptions::default(), &[("KOALA_AGENT_CONFIG", "/none.toml")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration /none.toml, named by KOALA_AGENT_CONFIG, does not exist; the command init writes it"
    );

    fs::create_dir(world.at("config.toml")).unwrap();
    let error = world.load(&ConfigOptions::default(), &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert_eq!(error.to_string(), format!("cannot read the configuration {dir}/config.toml: is a directory"));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let world = World::new();
    for (text, expected) in [
        ("[spool]\n\nsetle = 1", "config.toml:3: unknown key spool.setle; did you mean spool.settle?"),
        (
            "[spool]\nmax_bytes = 1",
            "config.toml:2: unknown key spool.max_bytes; did you mean outbox.max_bytes?",
        ),
        ("endpoint = 1", "config.toml:1: unknown key endpoint; did you mean koala.endpoint?"),
        ("[kaola]\nproxy = 1", "config.toml:2: unknown key kaola.proxy; did you mean koala.proxy?"),
        ("[foo]\na = 1", "config.toml:2: unknown key foo.a"),
        ("[spoool]", "config.toml:1: unknown key spoool; did you mean spool.settle?"),
        ("[spool.dir]\na = 1", "config.toml:2: unknown key spool.dir.a; did you mean spool.dir?"),
        ("koala.\"\\u001b\" = 1", "config.toml:1: unknown key koala.…"),
    ] {
        assert_eq!(world.refusal(text, &[]), expected);
    }
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let config = World::new().system(&[
        ("KOALA_AGENT_SPOOL_DIR", "/s"),
        ("KOALA_AGENT_spool__dir", "/s"),
        ("KOALA_OTHER", "x"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(config.spool.dir, SpoolConfig::default().dir);
    assert_eq!(
        config.warnings,
        [
            "unknown environment variable KOALA_AGENT_SPOOL_DIR; did you mean KOALA_AGENT_SPOOL__DIR?",
            "unknown environment variable KOALA_AGENT_spool__dir; did you mean KOALA_AGENT_SPOOL__DIR?",
        ]
    );
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_what_is_wanted() {
    let path = "is not an absolute path; write an absolute path in quotes";
    let duration = "must be a duration such as \"30s\", \"2m\" or \"30d\"";
    let size = "must be a size such as \"64MiB\", or a number of bytes";
    let floor = "must be a share from \"0%\" to \"100%\", or a size such as \"1GiB\"";
    for (key, value, wrong) in [
        ("spool.dir", "\"spool\"", path),
        ("outbox.path", "7", path),
        ("koala.public_key_file", "\"~/key\"", path),
        ("koala.ca_file", "\"\"", path),
        ("spool.settle", "2", duration),
        ("spool.settle", "\"2 parsecs\"", duration),
        ("spool.scan_interval", "\"99ms\"", "must be from 100ms to 100years"),
        ("outbox.keep_delivered", "\"101years\"", "must be from 100ms to 100years"),
        ("koala.timeout", "\"0s\"", "must be from 1s to 10m"),
        ("koala.timeout", "\"11m\"", "must be from 1s to 10m"),
        ("spool.max_file_bytes", "\"64 megs\"", size),
        ("spool.max_file_bytes", "-1", size),
        ("spool.max_event_bytes", "1023", "must be at least 1 KiB"),
        ("outbox.max_bytes", "\"1023KiB\"", "must be at least 1 MiB"),
        ("outbox.min_free", "\"101%\"", floor),
        ("outbox.min_free", "true", floor),
        ("koala.concurrency", "0", "must be \"auto\" or a whole number from 1 to 64"),
        ("koala.concurrency", "65", "must be \"auto\" or a whole number from 1 to 64"),
        ("koala.concurrency", "\"8\"", "must be \"auto\" or a whole number from 1 to 64"),
        ("koala.allow_plain_http", "\"true\"", "must be true or false"),
        ("koala.endpoint", "{}", "must be a text in quotes"),
        (
            "koala.endpoint",
            "\"https://k.test/v1\"",
            "must not have a path, because the agent adds its own; write scheme and host only",
        ),
        (
            "koala.proxy",
            "\"proxy:3128\"",
            "must be http:// or https://, host and port, such as \"http://proxy:3128\"",
        ),
    ] {
        let wrong = if key.contains("keep") { wrong.replace("100ms", "0s") } else { wrong.to_owned() };
        let text = format!("# one line before\n{key} = {value}");
        assert_eq!(World::new().refusal(&text, &[]), format!("config.toml:2: {key} {wrong}"));
    }
}

#[test]
fn all_problems_are_named_at_once_in_the_order_of_the_file() {
    let text = "[spool]\nsettle = 1\ndirr = 1\n[koala]\ntimeout = \"1h\"";
    assert_eq!(
        World::new().refusal(text, &[("KOALA_AGENT_KOALA__CONCURRENCY", "many")]),
        "config.toml:2: spool.settle must be a duration such as \"30s\", \"2m\" or \"30d\"\n\
         config.toml:3: unknown key spool.dirr; did you mean spool.dir?\n\
         config.toml:5: koala.timeout must be from 1s to 10m\n\
         KOALA_AGENT_KOALA__CONCURRENCY: koala.concurrency must be \"auto\" or a whole number from 1 to 64"
    );
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let world = World::new();
    for (text, start) in [
        ("[spool]\ndir = /srv", "config.toml:2:7: "),
        ("[spool", "config.toml:1:7: "),
        ("é = 1", "config.toml:1:1: "),
        ("\u{feff}[spool]\nsettle = \"1s\" x", "config.toml:2:15: "),
        (
            "[spool]\nsettle = \"1s\"\nsettle = \"1s\"",
            "config.toml:3:1: this key or section stands in the file twice",
        ),
    ] {
        let refusal = world.refusal(text, &[]);
        assert!(refusal.starts_with(start), "{refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
    world.write("config.toml", "\u{feff}[spool]\nsettle = \"1s\"");
    assert_eq!(world.system(&[]).spool.settle, Duration::from_secs(1));
    fs::write(world.at("config.toml"), b"[spool]\n# \xff").unwrap();
    let error = world.load(&ConfigOptions::default(), &[]).unwrap_err();
    assert!(error.to_string().ends_with("config.toml:2: the file is not UTF-8"), "{error}");
    assert!(
        world.refusal(&"#".repeat(1_048_577), &[]).ends_with("config.toml: the file is larger than 1 MiB")
    );
}

#[test]
fn a_wrong_mapping_is_reported_with_its_place_and_the_fix() {
    let world = World::new();
    world.write("mappings.json", r#"[{"name":"a","subscribe":"type = 'x'","partnerAction":"track"}]"#);
    for (text, expected) in [
        (
            "[[mapping]]\nname = \"x\"\ntrigger = 'type = \"track\"'",
            "config.toml:1: mapping \"x\" has no action; write action = \"…\", \
             one of track, identify, account_track, account_identify",
        ),
        ("mapping = 1", "config.toml:1: mapping is a list; write [[mapping]]"),
        (
            "[[mapping]]\npreset = \"Page Calls\"",
            "config.toml:1: there is no preset \"Page Calls\"; \
             the presets are \"Track Calls\", \"Identify Calls\", \"Group Calls\"",
        ),
        (
            "[[mapping]]\npreset = \"Track Calls\"\nfield = {}",
            "config.toml:3: mapping.field is not a key of a mapping; the keys are preset, name, trigger, action, fields",
        ),
        (
            "koala.consent_categories = [1]",
            "config.toml:1: koala.consent_categories must be a list of texts, such as [\"marketing\"]",
        ),
    ] {
        assert_eq!(world.refusal(text, &[]), expected);
    }
}

#[test]
fn keys_are_checked_together_whatever_layer_they_come_from() {
    let world = World::new();
    let plain = "koala.endpoint would send the key and the events unencrypted; \
                 write https://, or set koala.allow_plain_http = true";
    let text = "[koala]\nendpoint = \"http://k.test\"";
    assert_eq!(world.refusal(text, &[]), format!("config.toml:2: {plain}"));
    world.system(&[("KOALA_AGENT_KOALA__ALLOW_PLAIN_HTTP", "true")]);
    world.system(&[("KOALA_AGENT_KOALA__ENDPOINT", "http://[::1]:1")]);
    assert_eq!(
        world.refusal("", &[("KOALA_AGENT_KOALA__ENDPOINT", "http://k.test")]),
        format!("KOALA_AGENT_KOALA__ENDPOINT: {plain}")
    );
    assert_eq!(
        world.refusal("spool.max_file_bytes = \"16KiB\"", &[]),
        "config.toml:1: spool.max_event_bytes (32 KiB) is more than spool.max_file_bytes (16 KiB)"
    );
    assert_eq!(
        world.refusal("outbox.path = \"/var/spool/koala-agent/outbox.db\"", &[]),
        "config.toml:1: outbox.path is inside spool.dir, where it would be read as events; set another path"
    );
}
