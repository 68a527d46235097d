//! `turnserver doctor` as a process, and its report.

use std::io::Write as _;
use std::process::Command;

use serde_json::Value;

use crate::support::{Process, TIMEOUT};

/// A report, and the exit code of the command.
pub(crate) struct Report {
    pub(crate) code: Option<i32>,
    pub(crate) findings: Vec<Value>,
}

impl Report {
    /// Returns the check and the text of each finding with this status.
    pub(crate) fn with(&self, status: &str) -> Vec<(&str, &str)> {
        let text = |finding: &'_ Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let found = self.findings.iter().filter(|finding| text(finding, "status") == status);
        found.map(|finding| (finding["check"].as_str().unwrap(), finding["what"].as_str().unwrap())).collect()
    }

    /// Asserts that the only fault is one of `check`, and returns its text.
    pub(crate) fn only_fault(&self, check: &str) -> &str {
        let faults = self.with("fault");
        assert!(matches!(faults.as_slice(), [(found, _)] if *found == check), "{check}: {:#?}", self.findings);
        assert_eq!(self.code, Some(2));
        let is_complete = |finding: &Value| finding["status"] != "fault" || finding["advice"].is_string();
        assert!(self.findings.iter().all(is_complete), "{:#?}", self.findings);
        faults[0].1
    }

    pub(crate) fn text_of(&self, check: &str) -> &str {
        let found = self.findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}: {:#?}", self.findings))["what"].as_str().unwrap()
    }
}

/// Runs the diagnosis with these arguments and this standard input.
pub(crate) fn examine(arguments: &[&str], input: &str) -> Report {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    examine_by(command.arg("doctor").arg("--json").args(arguments), input)
}

/// Runs the diagnosis by a command with this standard input.
pub(crate) fn examine_by(command: &mut Command, input: &str) -> Report {
    let mut process = Process::start(command, None);
    process.take_stdin().write_all(input.as_bytes()).unwrap();
    let finished = process.finish(TIMEOUT);
    let report: Value =
        serde_json::from_str(&finished.stdout.join("\n")).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    Report { code: finished.code, findings: report["findings"].as_array().unwrap().clone() }
}
