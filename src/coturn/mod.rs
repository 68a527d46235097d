//! Conversion of a configuration of coturn into one of this server.
//!
//! It is pure: text in, TOML and a report out. [`options`] has all options of coturn and what this server has in their
//! place; `config` uses it, too, when such a file is given as `turnserver.toml`.

mod arguments;
mod convert;
mod file;
mod given;
mod network;
pub mod options;
mod redis;
mod report;
pub mod undecided;
mod users;
mod value;
mod write;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use zeroize::Zeroizing;

use given::Given;

/// Where options come from.
#[derive(Clone, Copy)]
pub enum Source<'t> {
    /// A file: its name for the report, and its bytes.
    File(&'t str, &'t [u8]),
    /// The arguments of coturn's command line, as a shell would read them.
    Arguments(&'t str),
}

/// What became of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It cannot be taken over. The report says what to do instead.
    Cannot,
    /// It is in the new configuration.
    Taken,
    /// The new configuration does not need it, because it is the default.
    Default,
    /// It has no use here.
    Dropped,
}

/// What became of one line of a file, or of one argument.
#[derive(Debug)]
pub struct Entry {
    /// The file and line, or the number of the argument.
    pub place: String,
    /// The option, with its value unless that may be a secret. All texts of an entry are printable.
    pub shown: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, and what to do.
    pub text: String,
}

/// A converted configuration. There is one [`Entry`] per option of the old one, in its order.
pub struct Import {
    /// The new configuration. It may contain secrets.
    pub toml: Zeroizing<String>,
    /// Whether it does.
    pub has_secrets: bool,
    /// What became of each option.
    pub entries: Vec<Entry>,
    /// Differences between the two servers that concern this configuration, although no option of it names them.
    pub differences: Vec<String>,
}

impl Import {
    /// Returns the number of options with this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.entries.iter().filter(|entry| entry.verdict == verdict).count()
    }
}

/// Converts the options of all sources. As on coturn's command line, later sources take precedence.
///
/// `machine` has the addresses of this machine, for a mapping to an external address that does not name the internal one.
#[must_use]
pub fn import(sources: &[Source<'_>], machine: &[IpAddr]) -> Import {
    let mut given: Vec<Given> = Vec::new();
    let several = sources.len() > 1;
    for source in sources {
        match source {
            Source::File(name, bytes) => given.extend(file::read(several.then_some(*name), bytes)),
            Source::Arguments(text) => given.extend(arguments::read(text, sources)),
        }
    }
    let names: Vec<String> = sources.iter().map(Source::name).collect();
    convert::convert(given, &names.join(" and "), machine)
}

impl Source<'_> {
    fn name(&self) -> String {
        match self {
            Self::File(name, _) => (*name).to_owned(),
            Self::Arguments(_) => "its arguments".to_owned(),
        }
    }
}
