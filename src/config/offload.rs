//! `[offload]`: relaying by the kernel.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::general::{self, name_of, one_of};
use super::problem::{Report, closest, quoted};
use super::reader::Section;
use super::{Config, ConfigErrors, RelayAddresses, addresses, read_bytes, schema, syntax};

const AUTO: &str = "auto";
const MAX_INTERFACES: usize = 64;
/// `IFNAMSIZ` without the zero at the end.
const LONGEST_NAME: usize = 15;
const MAX_CHANNELS: u32 = 1_000_000;
/// The channels of one allocation that the default allows for: two peers with two ports each.
const CHANNELS_PER_ALLOCATION: u64 = 4;
/// The largest default. The memory of the maps is allocated when the program is loaded.
const LARGEST_DEFAULT: u64 = 16_384;

/// `[offload]`: whether, where and how much the kernel relays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Whether the kernel relays.
    pub mode: OffloadMode,
    /// The interfaces on which it relays.
    pub interfaces: OffloadInterfaces,
    /// The largest number of channels that it relays at a time, 1 to 1 000 000. `None`: the default, see
    /// [`Config::offload_channels`].
    pub channels: Option<u32>,
}

/// Whether the kernel relays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadMode {
    /// If driver and privileges allow it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always; the server does not start without it.
    Require,
}

impl OffloadMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Off, Self::Require];

    /// Returns the mode as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => AUTO,
            Self::Off => "off",
            Self::Require => "require",
        }
    }
}

/// The interfaces on which the kernel relays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OffloadInterfaces {
    /// Chosen from the interfaces of this machine.
    #[default]
    Auto,
    /// These: 1 to 64 distinct names that an interface can have.
    Given(Vec<String>),
}

impl Config {
    /// Reads what the program in the kernel needs: `[offload]`, and the number of its channels. Reads no file that the
    /// configuration names. Errors elsewhere do not matter, because the server reports them when it starts.
    ///
    /// # Errors
    /// If the file cannot be read, or if `[offload]`, `[limits]` or `[relay]` is wrong.
    pub fn load_offload(path: &Path) -> Result<(Offload, u32), ConfigErrors> {
        let name = path.display().to_string();
        let bytes = read_bytes(path, &name)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut report = Report::new(&name, &text);
        let (document, syntax_errors) = DeTable::parse_recoverable(report.text());
        let mut config = Self::default();
        if syntax_errors.is_empty() {
            let top = Section::known(&schema::TOP, document.get_ref());
            config.offload = offload(&top, &mut report);
            config.limits = general::limits(&top, &mut report);
            config.relay = addresses::relay(&top, &config.limits, &mut report);
        } else {
            syntax::report_errors(&syntax_errors, &mut report);
        }
        if !report.errors.is_empty() {
            return Err(ConfigErrors::new(report.file(), report.errors));
        }
        let channels = config.offload_channels();
        Ok((config.offload, channels))
    }

    /// Returns the largest number of channels that the kernel relays at a time. By default four for each allocation of
    /// `limits.allocations`, or for each relay port if that is 0, and at most 16 384.
    #[must_use]
    pub fn offload_channels(&self) -> u32 {
        self.offload.channels.unwrap_or_else(|| {
            let addresses = match &self.relay.addresses {
                RelayAddresses::Auto => 1,
                RelayAddresses::Given(addresses) => addresses.len() as u64,
            };
            let allocations = match self.limits.allocations {
                0 => self.relay.ports.len() as u64 * addresses,
                allocations => allocations.into(),
            };
            u32::try_from((CHANNELS_PER_ALLOCATION * allocations).min(LARGEST_DEFAULT)).unwrap_or_default()
        })
    }
}

pub(super) fn offload(top: &Section<'_>, report: &mut Report<'_>) -> Offload {
    let default = Offload::default();
    let Some(section) = top.section("offload", &schema::OFFLOAD, report) else { return default };
    let mode = section.string("mode", report);
    Offload {
        mode: mode
            .and_then(|word| one_of("`offload.mode`", &word, &OffloadMode::ALL, OffloadMode::as_str, report))
            .unwrap_or_default(),
        interfaces: interfaces(&section, report).unwrap_or_default(),
        channels: section.number("channels", 1..=MAX_CHANNELS, report),
    }
}

fn interfaces(section: &Section<'_>, report: &mut Report<'_>) -> Option<OffloadInterfaces> {
    const EXPECTED: &str = "`offload.interfaces` must be \"auto\" or a list of names";
    let value = section.value("interfaces")?;
    match value.get_ref() {
        DeValue::String(word) if word == AUTO => return Some(OffloadInterfaces::Auto),
        DeValue::String(word) => {
            let hint = match (closest(word, [AUTO]), check_name(word)) {
                (None, Ok(())) => format!("; did you mean [\"{word}\"]?"),
                _ => format!(", not {}", quoted(word)),
            };
            report.error(&value.span(), format!("{EXPECTED}{hint}"));
            return None;
        }
        DeValue::Array(elements) if elements.is_empty() => {
            let message = format!("{EXPECTED}, not an empty list: `offload.mode = \"off\"` switches the offload off");
            report.error(&value.span(), message);
            return None;
        }
        DeValue::Array(_) => {}
        other => {
            section.mismatch("interfaces", value.span(), "\"auto\" or a list of names", other, report);
            return None;
        }
    }
    let mut names: Vec<String> = Vec::new();
    for name in section.strings("interfaces", report)? {
        if let Err(reason) = add(&mut names, &name) {
            report.error(&name.span(), format!("`offload.interfaces`: {} {reason}", quoted(name.get_ref())));
        }
    }
    if names.len() > MAX_INTERFACES {
        let count = names.len();
        report.error(&value.span(), format!("`offload.interfaces` has {count} names; the maximum is {MAX_INTERFACES}"));
    }
    Some(OffloadInterfaces::Given(names))
}

fn add(names: &mut Vec<String>, name: &Spanned<&str>) -> Result<(), String> {
    let name = *name.get_ref();
    check_name(name)?;
    if names.iter().any(|other| other == name) {
        return Err("is there twice".to_owned());
    }
    names.push(name.to_owned());
    Ok(())
}

/// Checks whether an interface can have this name (Linux: `dev_valid_name`).
fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        0 => return Err("is empty".to_owned()),
        1..=LONGEST_NAME => {}
        length => return Err(format!("has {length} bytes; the name of an interface has at most {LONGEST_NAME}")),
    }
    if name == "." || name == ".." {
        return Err("is not the name of an interface".to_owned());
    }
    match name.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':')) {
        Some(c) if c.is_whitespace() => Err("contains white space".to_owned()),
        Some(bad) => Err(format!("contains {}", name_of(bad))),
        None => Ok(()),
    }
}
