//! Unknown names in error messages.

/// The longest unknown word that is shown, in characters: no key is as short.
const MAX_SHOWN: usize = 12;

/// An unknown name as an error message shows it. A secret may stand where a name is wanted: so the name is shown whole only
/// if it is similar to a known one, cut if it is a word, and else not at all (`…`).
pub fn shown_name(name: &str, known: &[&str]) -> String {
    let lower = name.to_ascii_lowercase();
    let is_similar = |known: &&str| strsim::normalized_levenshtein(&lower, &known.to_ascii_lowercase()) > 0.5;
    if known.iter().any(is_similar) {
        return name.to_owned();
    }
    match name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '-') {
        true if name.len() <= MAX_SHOWN => name.to_owned(),
        true => name.chars().take(MAX_SHOWN).chain(['…']).collect(),
        false => "…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_shown_unless_it_may_be_a_secret() {
        for (name, shown) in [
            ("setle", "setle"),
            ("Settle", "Settle"),
            ("maxFileBytes", "maxFileBytes"),
            ("max_file_byte5", "max_file_byte5"),
            ("foo", "foo"),
            ("", ""),
            ("not_a_known_name", "not_a_known_…"),
            ("pk_8f3a2b1c4d5e6f708192a3b4c5d6e7f80912", "…"),
            ("pk_live", "pk_live"),
            ("PkAbCdEfGh", "…"),
            ("größe", "…"),
            ("a b", "…"),
        ] {
            assert_eq!(shown_name(name, &["settle", "max_file_bytes"]), shown, "{name}");
        }
    }
}
