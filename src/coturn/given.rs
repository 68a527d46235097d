//! One option as it was given, before its meaning is known.

use zeroize::Zeroizing;

use super::options::{self, Argument, CoturnOption, Rule};
use super::{Entry, Verdict, value};
use crate::printable::Escaped;

/// The start of the place of an argument.
pub(super) const ARGUMENT: &str = "argument ";

/// One option of a file or of a command line.
pub(super) struct Given {
    /// The file and line, or the number of the argument.
    pub(super) place: String,
    pub(super) what: What,
    /// The value as coturn reads it; empty without one.
    pub(super) value: Zeroizing<String>,
    pub(super) outcome: Option<(Verdict, String)>,
    remarks: Vec<String>,
}

/// What was given.
pub(super) enum What {
    Option(&'static CoturnOption),
    /// No option of coturn. The text is shown, so it is no secret.
    Other(String),
}

impl Given {
    pub(super) fn new(place: String, option: &'static CoturnOption, value: &str) -> Self {
        let value = Zeroizing::new(value.to_owned());
        let mut given = Self { place, what: What::Option(option), value, outcome: None, remarks: Vec::new() };
        if option.argument == Argument::Presence && value::switch(&given.value) != Ok(true) {
            given.remark("coturn ignores its value, so it is on");
        }
        given
    }

    /// Something that has a verdict, because it is no option.
    pub(super) fn other(place: String, shown: &str, verdict: Verdict, text: String) -> Self {
        let what = What::Other(shown.to_owned());
        Self { place, what, value: Zeroizing::default(), outcome: Some((verdict, text)), remarks: Vec::new() }
    }

    /// An unknown name, which may be a misspelled option or no name at all.
    pub(super) fn unknown(place: String, name: &str, has_value: bool) -> Self {
        // Without digits and capital letters, it is hardly a secret that was meant for another line.
        let is_name = has_value && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || "-_".contains(c));
        let similar = options::similar(name);
        // What follows a name without a separator may be a secret.
        let is_plain = name.chars().all(|c| c.is_ascii_alphabetic() || "-_".contains(c));
        let shown = match similar {
            _ if is_name => name.to_owned(),
            Some(_) if is_plain => name.to_owned(),
            Some(option) => format!("{}…", option.name),
            None => "…".to_owned(),
        };
        let advice = match similar {
            Some(option) => format!("did you mean `{}`?", option.name),
            None => "remove it, or look it up in the documentation of coturn".to_owned(),
        };
        let effect = if place.starts_with(ARGUMENT) { "does not start with it" } else { "ignores it" };
        Self::other(place, &shown, Verdict::Cannot, format!("coturn has no such option and {effect}; {advice}"))
    }

    pub(super) fn is(&self, name: &str) -> bool {
        matches!(self.what, What::Option(option) if option.name == name)
    }

    pub(super) fn decide(&mut self, verdict: Verdict, text: impl Into<String>) {
        self.outcome.get_or_insert((verdict, text.into()));
    }

    /// Adds a remark, which follows the text of the decision.
    pub(super) fn remark(&mut self, remark: &str) {
        self.remarks.push(remark.to_owned());
    }

    /// Decides by the table what no value decides.
    pub(super) fn decide_by_rule(&mut self, is_off: bool) {
        let What::Option(option) = self.what else { return };
        let (verdict, text) = match option.rule {
            _ if is_off => (Verdict::Dropped, "it is turned off".to_owned()),
            Rule::Default(why) => (Verdict::Default, why.to_owned()),
            Rule::Dropped(why) => (Verdict::Dropped, why.to_owned()),
            Rule::Never(instead) => (Verdict::Cannot, instead.to_owned()),
            Rule::Admin => (Verdict::Dropped, "it is an option of `turnadmin`, which the server ignores".to_owned()),
            Rule::Convert(_) => (Verdict::Cannot, "its value cannot be taken over".to_owned()),
        };
        self.decide(verdict, text);
    }

    /// Returns the entry of the report. Names and values of others' files are shown, so they are escaped here.
    pub(super) fn into_entry(self) -> Entry {
        let shown = self.shown();
        let (verdict, text) = self.outcome.unwrap_or((Verdict::Cannot, "it was not looked at".to_owned()));
        let text = [vec![text], self.remarks].concat().join("; ");
        let [place, shown, text] = [self.place, shown, text].map(|text| Escaped(&text).to_string());
        Entry { place, shown, verdict, text }
    }

    /// Returns the option, without a value that must not be shown.
    pub(super) fn shown(&self) -> String {
        let option = match &self.what {
            What::Other(shown) => return shown.clone(),
            What::Option(option) => option,
        };
        // Without a comment.
        let value = self.value.split(" #").next().unwrap_or_default().trim_end();
        match (option.is_secret, self.value.split_once(':')) {
            _ if self.value.is_empty() => option.name.to_owned(),
            (false, _) => format!("{}={value}", option.name),
            (true, Some((name, _))) if option.name == "user" => format!("user={name}:…"),
            (true, _) => format!("{}=…", option.name),
        }
    }
}
