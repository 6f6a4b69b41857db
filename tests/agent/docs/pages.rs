//! Each page as a whole, and the README's links.

use super::run::is_installed;
use super::text::{PAGES, README, fenced, section};
use std::path::Path;
use std::process::Command;

#[test]
fn the_pages_have_no_fault_that_mandoc_knows() {
    if !is_installed("mandoc") {
        return;
    }
    for (name, _) in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man").join(name);
        let path = path.to_str().unwrap();
        let lint = Command::new("mandoc").args(["-T", "lint", "-W", "style", path]).output().unwrap();
        let findings = String::from_utf8(lint.stdout).unwrap();
        // Manuals of other programs need not be installed here; the next test checks references to our own.
        let findings = findings.lines().filter(|line| !line.contains("referenced manual not found"));
        assert_eq!(findings.collect::<Vec<_>>(), Vec::<&str>::new());

        let page = Command::new("mandoc").args(["-T", "utf8", "-O", "width=78", path]).output().unwrap();
        for line in String::from_utf8(page.stdout).unwrap().lines() {
            // Bold is written as a letter, a backspace and the same letter.
            let width = line.chars().count() - 2 * line.matches('\u{8}').count();
            assert!(width <= 80, "{name} is wider than a terminal: {line}");
        }
    }
}

#[test]
fn the_pages_refer_to_pages_and_sections_that_exist() {
    for (name, page) in PAGES {
        for line in page.lines() {
            if let Some(reference) = line.strip_prefix(".Xr koala-agent") {
                let mut words = reference.split_whitespace();
                let file = match reference.starts_with(' ') {
                    true => format!("koala-agent.{}", words.next().unwrap()),
                    false => format!("koala-agent{}.{}", words.next().unwrap(), words.next().unwrap()),
                };
                assert!(PAGES.iter().any(|(known, _)| *known == file), "{name}: {line}");
            }
            if let Some((_, title)) = line.split_once("Sx ") {
                let title = title.trim_end_matches([' ', '.', ',', ';', ')']);
                section(page, title);
            }
        }
    }
}

#[test]
fn the_readme_is_short_and_its_links_lead_somewhere() {
    let words = README.split_whitespace().count();
    assert!(words < 1_100, "{words} words: move something into a page");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let links = README.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    for link in links.filter(|link| !link.starts_with("https://")) {
        assert!(root.join(link).exists(), "{link}");
    }
}

#[test]
fn the_readme_installs_files_that_exist_by_commands_that_a_shell_reads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for block in fenced(README, "sh") {
        let read = Command::new("sh").args(["-nc", block]).output().unwrap();
        assert!(read.status.success(), "{block}");
        for word in block.split_whitespace().filter_map(|word| word.strip_prefix("packaging/")) {
            let path = word.trim_end_matches(';').trim_end_matches("/*");
            assert!(root.join("packaging").join(path).exists(), "{word}");
        }
    }
}
