//! One option as it was given, before its meaning is known.

use zeroize::Zeroizing;

use super::options::{self, CoturnOption, Rule};
use super::{Entry, Verdict};

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
}

/// What was given.
pub(super) enum What {
    Option(&'static CoturnOption),
    /// No option of coturn. The text is shown, so it is no secret.
    Other(String),
}

impl Given {
    pub(super) fn new(place: String, option: &'static CoturnOption, value: &str) -> Self {
        Self { place, what: What::Option(option), value: Zeroizing::new(value.to_owned()), outcome: None }
    }

    /// Something that has a verdict, because it is no option.
    pub(super) fn other(place: String, shown: &str, verdict: Verdict, text: String) -> Self {
        let what = What::Other(shown.to_owned());
        Self { place, what, value: Zeroizing::default(), outcome: Some((verdict, text)) }
    }

    /// An unknown name, which may be a misspelled option or no name at all.
    pub(super) fn unknown(place: String, name: &str, has_value: bool) -> Self {
        // Without digits and capital letters, it is hardly a secret that was meant for another line.
        let is_name = has_value && name.chars().all(|c| c.is_ascii_lowercase() || "-_".contains(c));
        let similar = options::similar(name);
        let shown = if is_name || similar.is_some() { name } else { "…" };
        let advice = match similar {
            Some(option) => format!("did you mean `{}`?", option.name),
            None => "remove it, or look it up in the documentation of coturn".to_owned(),
        };
        let effect = if place.starts_with(ARGUMENT) { "does not start with it" } else { "ignores it" };
        Self::other(place, shown, Verdict::Cannot, format!("coturn has no such option and {effect}; {advice}"))
    }

    pub(super) fn is(&self, name: &str) -> bool {
        matches!(self.what, What::Option(option) if option.name == name)
    }

    pub(super) fn decide(&mut self, verdict: Verdict, text: impl Into<String>) {
        self.outcome.get_or_insert((verdict, text.into()));
    }

    /// Appends a remark to the text of a decided option.
    pub(super) fn remark(&mut self, remark: &str) {
        if let Some((_, text)) = &mut self.outcome {
            *text += "; ";
            *text += remark;
        }
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

    pub(super) fn into_entry(self) -> Entry {
        let shown = self.shown();
        let (verdict, text) = self.outcome.unwrap_or((Verdict::Cannot, "it was not looked at".to_owned()));
        Entry { place: self.place, shown, verdict, text }
    }

    /// Returns the option, without a value that must not be shown.
    fn shown(&self) -> String {
        let option = match &self.what {
            What::Other(shown) => return shown.clone(),
            What::Option(option) => option,
        };
        // Without a comment.
        let value = self.value.split(" #").next().unwrap_or_default().trim_end().escape_debug();
        match (option.is_secret, self.value.split_once(':')) {
            _ if self.value.is_empty() => option.name.to_owned(),
            (false, _) => format!("{}={}", option.name, value.to_string().replace("\\\"", "\"").replace("\\'", "'")),
            (true, Some((name, _))) if option.name == "user" => {
                format!("user={}:…", name.escape_debug())
            }
            (true, _) => format!("{}=…", option.name),
        }
    }
}
