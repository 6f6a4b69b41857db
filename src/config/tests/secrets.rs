//! The sources of the key, and its secrecy.

use super::*;

fn key(config: &Config) -> Option<&str> {
    config.koala.public_key.as_ref().map(PublicKey::expose)
}

#[test]
fn the_key_comes_from_the_environment_the_file_the_credential_or_the_default_file() {
    let world = World::new();
    let credentials = world.at("");
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    let source = |config: &Config| config.koala.key_source.clone();

    world.write("koala-public-key", "");
    world.write("user/public-key", "pk_default");
    let config = world.user(&env);
    assert_eq!(
        (key(&config), source(&config)),
        (Some("pk_default"), world.at("user/public-key").display().to_string())
    );

    world.write("koala-public-key", "pk_credential");
    let config = world.user(&env);
    assert_eq!(
        (key(&config), source(&config)),
        (Some("pk_credential"), "the credential koala-public-key".into())
    );

    let file = world.write("key", "");
    let config_file = world.write("user/config.toml", &format!("koala.public_key_file = {file:?}"));
    let config = world.user(&env);
    assert_eq!((key(&config), source(&config)), (None, file.display().to_string()));

    world.write("user/config.toml", "\nkoala.public_key = \"pk_text\"");
    let config = world.user(&env);
    assert_eq!((key(&config), source(&config)), (Some("pk_text"), format!("{}:2", config_file.display())));

    let file_variable = ("KOALA_AGENT_KOALA__PUBLIC_KEY_FILE", file.to_str().unwrap());
    let config = world.user(&[env[0], file_variable]);
    assert_eq!((key(&config), source(&config)), (None, file.display().to_string()));

    let config = world.user(&[env[0], ("KOALA_AGENT_KOALA__PUBLIC_KEY", "pk_env")]);
    assert_eq!((key(&config), source(&config)), (Some("pk_env"), "KOALA_AGENT_KOALA__PUBLIC_KEY".into()));

    world.write("user/config.toml", "koala.public_key = \"\"");
    assert_eq!(key(&world.user(&env)), Some("pk_credential"));
}

#[test]
fn a_key_and_a_key_file_cannot_both_be_set() {
    let world = World::new();
    assert_eq!(
        world.refusal("[koala]\npublic_key = \"pk_1\"\npublic_key_file = \"/k\"", &[]),
        "config.toml:3: koala.public_key and koala.public_key_file are both set; remove one of them"
    );
    let both = [("KOALA_AGENT_KOALA__PUBLIC_KEY", "pk_1"), ("KOALA_AGENT_KOALA__PUBLIC_KEY_FILE", "/k")];
    assert_eq!(
        world.refusal("", &both),
        "KOALA_AGENT_KOALA__PUBLIC_KEY_FILE: koala.public_key and koala.public_key_file are both set; remove one of them"
    );
}

#[test]
fn a_key_is_read_again_from_its_file() {
    let world = World::new();
    let mut koala = world.user(&[]).koala;
    world.write("user/public-key", "pk_new");
    koala.reread_key();
    assert_eq!((koala.missing_key(), &koala.public_key), (None, &PublicKey::new("pk_new").unwrap()));

    let path = world.write("user/public-key", "not a key");
    koala.reread_key();
    let wanted = format!(
        "{}: the content is not a public key: its character 4 is U+0020; only letters, digits and - . _ ~ are allowed. \
         Until it is a key, events are stored but not sent",
        path.display()
    );
    assert_eq!((&koala.public_key, koala.missing_key()), (&None, Some(wanted.clone())));
    // The agent starts and stores, as without the file.
    let koala = world.user(&[]).koala;
    assert_eq!((koala.public_key.as_ref(), &koala.key_warnings), (None, &vec![wanted]));
    world.write("user/public-key", "");
    assert_eq!(world.user(&[]).koala.missing_key().as_deref(), Some("there is no public key yet"));
}

#[test]
fn a_credential_that_is_no_key_is_not_replaced_by_another_file() {
    let world = World::new();
    world.write("koala-public-key", "\"pk_1\"");
    world.write("user/public-key", "pk_default");
    let credentials = world.at("");
    let koala = world.user(&[("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())]).koala;
    assert_eq!(koala.public_key, None);
    assert!(koala.missing_key().unwrap().contains("its character 1 is U+0022 (\")"));
}

#[test]
fn a_key_for_hashes_that_everybody_can_read_is_warned_of() {
    let world = World::new();
    world.write(
        "config.toml",
        "[[mapping]]\npreset = \"Track Calls\"\nfields = { event = { \"@hash\" = { \"@path\" = \"$.event\" } } }",
    );
    let path = world.write("hash-key", &"k".repeat(32));
    let credentials = world.at("");
    let path = world.write("koala-hash-key", &fs::read_to_string(path).unwrap());
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    for (mode, is_warned) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let config = world.system(&env);
        assert_eq!(config.mappings_lack, None);
        let shown = path.display();
        let warning = format!("everybody can read the key for hashes in {shown}; run: chmod o-r {shown}");
        let wanted = if is_warned { vec![warning] } else { vec![] };
        assert_eq!(config.koala.key_warnings, wanted, "{mode:o}");
    }
}

#[test]
fn warnings_about_the_key_file_are_for_those_who_need_the_key() {
    let world = World::new();
    let path = world.write("user/public-key", "pk_1");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let config = world.user(&[]);
    let shown = path.display();
    assert_eq!(
        config.koala.key_warnings,
        [format!("everybody can read the public key in {shown}; run: chmod o-r {shown}")]
    );
    assert_eq!((config.warnings, config.key_exposed), (vec![], false));
}

#[test]
fn a_file_that_holds_the_key_and_can_be_read_by_all_exposes_it() {
    let world = World::new();
    let path = world.write("config.toml", "koala.public_key = \"pk_1\"");
    let shown = path.display();
    assert!(!world.system(&[]).key_exposed);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let config = world.system(&[("KOALA_AGENT_KOALA__PUBLIC_KEY", "pk_other")]);
    assert!(config.key_exposed);
    assert_eq!(
        config.koala.key_warnings,
        [format!("everybody can read {shown}, which holds koala.public_key; run: chmod o-r {shown}")]
    );
}

#[test]
fn no_error_and_no_debug_shows_a_secret() {
    let world = World::new();
    for text in [
        "koala.public_key = \"pk secret\"",
        "koala.public_key = pk_secret",
        "koala.public_key = \"pk_secret",
        "koala.public_key = 'pk_secret' x",
        "koala.public_key = \"pk_secret\\q\"",
        "koala.public_key = [\"pk_secret\"]",
        "koala.public_key = \"pk_secret\"\nkoala.public_key = \"pk_secret\"",
        "koala.proxy = \"http://ana:secret@\"",
        "koala.proxy = \"http://ana:secret@proxy/x\"",
        "koala.endpoint = \"https://ana:secret@k.test\"",
        // The key where a name is wanted.
        "pk_secret_0123456789 = 1",
        "\"pk secret\" = 1",
        "[pk_secret_0123456789]\na = 1",
        "[koala.pk_secret_0123456789]\na = 1",
        "koala.pk_secret_0123456789 = \"\"",
        "koala.pk_secret_0123456789.public_key = \"\"",
        "pk_secret_0123456789",
        "[pk_secret_0123456789",
        "[[mapping]]\npk_secret_0123456789 = 1",
        "[[mapping]]\npreset = \"pk_secret_0123456789\"",
        "[[mapping]]\npreset = \"Track Calls\"\naction = \"pk_secret_0123456789\"",
        "[[mapping]]\npreset = \"Track Calls\"\nfields = { pk_secret_0123456789 = \"\" }",
    ] {
        let refusal = world.refusal(text, &[]);
        assert!(!refusal.contains("secret"), "{refusal}");
    }
    fs::remove_file(world.at("config.toml")).unwrap();
    for variable in ["KOALA_AGENT_pk_secret_0123456789", "KOALA_AGENT_KOALA__PK_SECRET_0123456789"] {
        let warnings = world.system(&[(variable, "1")]).warnings.join("\n").to_lowercase();
        assert!(warnings.starts_with("unknown environment") && !warnings.contains("secret"), "{warnings}");
    }
    let refusal = world.refusal("", &[("KOALA_AGENT_KOALA__PUBLIC_KEY", "pk/secret")]);
    assert_eq!(
        refusal,
        "KOALA_AGENT_KOALA__PUBLIC_KEY: koala.public_key is not a public key: \
         its character 3 is U+002F (/); only letters, digits and - . _ ~ are allowed"
    );
    world.write("config.toml", "koala.public_key = \"secret\"\nkoala.proxy = \"http://ana:secret@proxy\"");
    let config = format!("{:?}", world.system(&[]));
    assert!(!config.contains("secret"), "{config}");
}
