//! The unit of the service, compared with the one that belongs to this version.

use std::fs;
use std::path::{Path, PathBuf};

use crate::doctor::finding::Finding;

/// The unit of this version.
const SHIPPED: &str = include_str!("../../../systemd/turnserver.service");

/// The directories in which systemd finds units, the first one first.
pub(super) const DIRECTORIES: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

const NAME: &str = "turnserver.service";

/// The limit of open files that systemd sets without `LimitNOFILE=`.
const DEFAULT_OPEN_FILES: u64 = 524_288;

/// The unit in use.
struct Unit {
    path: PathBuf,
    text: String,
    /// Its drop-ins, in the order of their names.
    drop_ins: Vec<PathBuf>,
}

impl Unit {
    /// Reads the unit. `root` is `/`. `None` if there is none.
    fn read(root: &Path) -> Option<Self> {
        let (path, text) = DIRECTORIES.iter().find_map(|directory| {
            let path = root.join(directory).join(NAME);
            let text = fs::read_to_string(&path).ok()?;
            Some((path, text))
        })?;
        let directories = DIRECTORIES.iter().map(|directory| root.join(directory).join(format!("{NAME}.d")));
        let mut drop_ins: Vec<PathBuf> = directories
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flat_map(|entries| entries.flatten())
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        // Of several with one name, the first directory has precedence. The sort is stable.
        drop_ins.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
        drop_ins.dedup_by(|later, earlier| later.file_name() == earlier.file_name());
        Some(Self { path, text, drop_ins })
    }
}

/// Returns the limit of open files of the service. `root` is `/`. `None` if there is no unit.
pub(super) fn open_files(root: &Path) -> Option<u64> {
    let unit = Unit::read(root)?;
    let drop_ins = unit.drop_ins.iter().filter_map(|path| fs::read_to_string(path).ok());
    let mut limit = None;
    for text in std::iter::once(unit.text).chain(drop_ins) {
        let mut values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == "LimitNOFILE").then_some(value)
        });
        // The second one of `soft:hard`.
        limit =
            values.next_back().and_then(|value| value.rsplit(':').next()).map(|hard| hard.trim().to_owned()).or(limit);
    }
    match limit.as_deref() {
        None | Some("") => Some(DEFAULT_OPEN_FILES),
        Some("infinity") => Some(u64::MAX),
        Some(number) => number.parse().ok(),
    }
}

/// Compares the unit in use. `root` is `/`. `None` if there is no unit.
pub(super) fn examine(root: &Path) -> Option<Finding> {
    let Unit { path, text, drop_ins } = Unit::read(root)?;
    let names: Vec<_> = drop_ins.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let changed = if names.is_empty() { String::new() } else { format!("; changed by {}", names.join(", ")) };
    // coturn's package does not have a unit of this name, but older guides make one.
    if !text.contains("turnserver.toml") {
        return Some(
            Finding::warning(
                "unit",
                "this unit does not start this server: it names no turnserver.toml",
                "it may be one for coturn: see docs/install.md",
            )
            .of(path.display()),
        );
    }
    let (missing, added) = (absent(SHIPPED, &text), absent(&text, SHIPPED));
    let finding = if missing.is_empty() && added.is_empty() {
        Finding::ok("unit", format!("as it belongs to this version{changed}"))
    } else {
        let lines = |lines: &[&str]| if lines.is_empty() { "none".to_owned() } else { lines.join(" | ") };
        Finding::warning(
            "unit",
            format!(
                "it differs from that of this version{changed}; missing: {}; added: {}",
                lines(&missing),
                lines(&added)
            ),
            "install the unit of this version, and put changes into a drop-in (systemctl edit turnserver)",
        )
    };
    Some(finding.of(path.display()))
}

/// Returns the settings of one unit that another lacks. Programs may be at another place.
fn absent<'u>(unit: &'u str, other: &str) -> Vec<&'u str> {
    let same_place = |line: &str| line.replace("/usr/local/bin/", "/usr/bin/");
    let settings = |text: &str| text.lines().map(str::trim).map(same_place).collect::<Vec<_>>();
    let other = settings(other);
    let is_setting = |line: &&str| !line.is_empty() && !line.starts_with(['#', ';', '[']);
    unit.lines().map(str::trim).filter(is_setting).filter(|line| !other.contains(&same_place(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Status;

    /// Returns the finding, and the limit of open files.
    fn check(name: &str, unit: &str, drop_in: Option<(&str, &str)>) -> (Finding, Option<u64>) {
        let root = std::env::temp_dir().join(format!("turnserver-unit-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let directory = root.join("etc/systemd/system");
        fs::create_dir_all(directory.join("turnserver.service.d")).unwrap();
        fs::write(directory.join(NAME), unit).unwrap();
        if let Some((drop_in, text)) = drop_in {
            fs::write(directory.join("turnserver.service.d").join(drop_in), text).unwrap();
        }
        let (finding, limit) = (examine(&root).unwrap(), open_files(&root));
        fs::remove_dir_all(root).unwrap();
        (finding, limit)
    }

    #[test]
    fn the_unit_in_use_is_compared_with_that_of_this_version() {
        let (same, limit) = check(
            "same",
            &SHIPPED.replace("/usr/local/bin/", "/usr/bin/"),
            Some(("limits.conf", "[Service]\nLimitNOFILE = 1024:200000\n")),
        );
        assert_eq!(
            (same.status, same.what.as_str()),
            (Status::Ok, "as it belongs to this version; changed by limits.conf")
        );
        assert_eq!(limit, Some(200_000));
        let old = SHIPPED.replace("LimitNOFILE=65536\n", "LimitNOFILE=1024\n");
        let (old, limit) = check("old", &old, None);
        assert_eq!((old.status, limit), (Status::Warning, Some(1024)));
        assert!(old.what.ends_with("; missing: LimitNOFILE=65536; added: LimitNOFILE=1024"), "{old:?}");
        let coturn = "[Service]\nExecStart=/usr/bin/turnserver -c /etc/turnserver.conf\n";
        let (coturn, limit) = check("coturn", coturn, Some(("x.conf", "[Service]\nLimitNOFILE=infinity\n")));
        assert!(coturn.what.contains("does not start this server"), "{coturn:?}");
        assert_eq!(limit, Some(u64::MAX));
        assert_eq!(check("none", "[Service]\n", None).1, Some(DEFAULT_OPEN_FILES));
        assert_eq!(open_files(Path::new("/nowhere")), None);
        assert_eq!(examine(Path::new("/nowhere")), None);
    }
}
