//! The findings of `check`: one for each subject, with its fix.

use crate::cli::output::{BAD, DIM, GOOD, escaped, indented, styled, terminal_width};
use crate::cli::remedy::Remedy;
use std::fmt::Display;

/// How good a subject is, from the best to the worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ok,
    Note,
    Fail,
}

/// What was found about one subject.
struct Finding {
    grade: Grade,
    subject: &'static str,
    lines: Vec<String>,
}

/// The findings so far, one for each subject.
#[derive(Default)]
pub struct Report {
    findings: Vec<Finding>,
    width: Option<usize>,
}

/// The column in which the text of a finding begins.
const TEXT_COLUMN: usize = 21;

impl Report {
    /// A report without findings, for the terminal that the command prints to.
    pub fn for_terminal() -> Report {
        Report { width: terminal_width(), ..Report::default() }
    }

    fn add(&mut self, grade: Grade, subject: &'static str, text: &str) {
        let line = indented(&escaped(text), TEXT_COLUMN, self.width);
        self.add_line(grade, subject, line);
    }

    /// Adds a line to the finding about the subject, whose grade becomes the worst of all its lines.
    fn add_line(&mut self, grade: Grade, subject: &'static str, line: String) {
        match self.findings.iter_mut().find(|finding| finding.subject == subject) {
            Some(finding) => {
                finding.grade = finding.grade.max(grade);
                finding.lines.push(line);
            }
            None => self.findings.push(Finding { grade, subject, lines: vec![line] }),
        }
    }

    /// The subject is as it should be.
    pub fn ok(&mut self, subject: &'static str, text: impl Display) {
        self.add(Grade::Ok, subject, &text.to_string());
    }

    /// A person may want to know this; nothing is wrong.
    pub fn note(&mut self, subject: &'static str, text: impl Display) {
        self.add(Grade::Note, subject, &text.to_string());
    }

    /// Something is wrong.
    pub fn fail(&mut self, subject: &'static str, text: impl Display) {
        self.add(Grade::Fail, subject, &text.to_string());
    }

    /// Something is wrong, and this is the fix.
    pub fn fail_with(&mut self, subject: &'static str, text: impl Display, remedy: &Remedy) {
        self.fail(subject, text);
        self.add_remedy(subject, remedy);
    }

    /// Adds what a person can do to the finding about the subject.
    pub fn add_remedy(&mut self, subject: &'static str, remedy: &Remedy) {
        self.add_line(Grade::Ok, subject, remedy.render(TEXT_COLUMN, self.width));
    }

    /// Whether anything is wrong.
    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.grade == Grade::Fail)
    }

    /// The findings as lines, in the order of their subjects.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for Finding { grade, subject, lines } in &self.findings {
            let mark = match grade {
                Grade::Ok => styled(GOOD, "ok  "),
                Grade::Note => styled(DIM, "note"),
                Grade::Fail => styled(BAD, "FAIL"),
            };
            let separator = format!("\n{:TEXT_COLUMN$}", "");
            text += &format!("{mark}  {subject:<13}  {}\n", lines.join(&separator));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_printed_once_with_its_worst_grade_and_all_its_lines() {
        let mut report = Report { width: Some(60), ..Report::default() };
        report.ok("outbox", "/outbox.db");
        report.note("integrations", "odd");
        report.fail_with(
            "outbox",
            "cannot be written",
            &Remedy::run("give it the files", "chown a /outbox.db*"),
        );
        report.ok("outbox", "1 B used");
        assert!(report.has_failed());
        assert_eq!(
            anstream::adapter::strip_str(&report.render()).to_string(),
            "FAIL  outbox         /outbox.db\n\
             \x20                    cannot be written\n\
             \x20                    give it the files: chown a /outbox.db*\n\
             \x20                    1 B used\n\
             note  integrations   odd\n"
        );
    }
}
