//! What the diagnosis found, and the report for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::printable::Escaped;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, but not for everybody, or not for long.
    Warning,
    /// It does not work.
    Fault,
}

impl Status {
    /// Returns the name of the status in the report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }

    /// Returns the exit code of a report whose worst status this is.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Fault => 2,
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The stable name of the check.
    pub check: &'static str,
    /// What was checked, such as a URI or a file. Empty if the check has one subject only.
    pub subject: String,
    /// How it ended.
    pub status: Status,
    /// What was found, and why it matters.
    pub what: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Finding {
    /// Returns a finding that all is well.
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, subject: String::new(), status: Status::Ok, what: what.into(), advice: None }
    }

    /// Returns a warning.
    pub(super) fn warning(check: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Warning, advice: Some(advice.into()), ..Self::ok(check, what) }
    }

    /// Returns a fault.
    pub(super) fn fault(check: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Fault, ..Self::warning(check, what, advice) }
    }

    /// Names what was checked.
    pub(super) fn of(self, subject: impl ToString) -> Self {
        Self { subject: subject.to_string(), ..self }
    }

    /// Returns the line of the report for people.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{:<8} {}", self.status.as_str(), self.check);
        if !self.subject.is_empty() {
            let _ = write!(line, " {}", Escaped(&self.subject));
        }
        let _ = write!(line, ": {}", Escaped(&self.what));
        if let Some(advice) = &self.advice {
            let _ = write!(line, " → {}", Escaped(advice));
        }
        line
    }

    fn json(&self) -> Value {
        let Self { check, subject, status, what, advice } = self;
        json!({ "check": check, "subject": subject, "status": status.as_str(), "what": what, "advice": advice })
    }
}

/// Returns the worst status of the findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Status {
    findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
}

/// Returns the report in JSON.
#[must_use]
pub fn report(findings: &[Finding]) -> Value {
    let lines: Vec<Value> = findings.iter().map(Finding::json).collect();
    json!({ "status": worst(findings).as_str(), "findings": lines })
}

/// Returns the last line of the report for people.
#[must_use]
pub fn summary(findings: &[Finding]) -> String {
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let named = |count: usize, name: &str| format!("{count} {name}{}", if count == 1 { "" } else { "s" });
    let (warnings, faults) = (count(Status::Warning), count(Status::Fault));
    format!("{}, {}, {}", named(findings.len(), "check"), named(warnings, "warning"), named(faults, "fault"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_check_subject_reason_and_advice_and_controls_no_terminal() {
        let finding = Finding::fault("dns", "no address\u{1b}[2J", "add an A record").of("turn.example.org");
        assert_eq!(finding.line(), "fault    dns turn.example.org: no address\\u{1b}[2J → add an A record");
        assert_eq!(Finding::ok("dns", "one address").line(), "ok       dns: one address");
    }

    #[test]
    fn the_report_has_the_worst_status_and_every_finding() {
        let mut findings = vec![Finding::ok("a", "fine")];
        assert_eq!((worst(&findings).exit_code(), worst(&[]).exit_code()), (0, 0));
        assert_eq!(summary(&findings), "1 check, 0 warnings, 0 faults");
        findings.push(Finding::warning("b", "odd", "look"));
        assert_eq!(worst(&findings).exit_code(), 1);
        findings.push(Finding::fault("c", "broken", "mend").of("x"));
        assert_eq!(summary(&findings), "3 checks, 1 warning, 1 fault");
        let report = report(&findings);
        assert_eq!((report["status"].as_str(), worst(&findings).exit_code()), (Some("fault"), 2));
        let last = json!({ "check": "c", "subject": "x", "status": "fault", "what": "broken", "advice": "mend" });
        assert_eq!(report["findings"][2], last);
    }
}
