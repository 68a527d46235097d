//! The unit of the service, compared with the one that belongs to this version.

use std::fs;
use std::path::Path;

use crate::doctor::finding::Finding;

/// The unit of this version.
const SHIPPED: &str = include_str!("../../../systemd/turnserver.service");

/// The directories in which systemd finds units, the first one first.
const DIRECTORIES: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

const NAME: &str = "turnserver.service";

/// Compares the unit in use. `root` is `/`. `None` if there is no unit.
pub(super) fn examine(root: &Path) -> Option<Finding> {
    let (path, text) = DIRECTORIES.iter().find_map(|directory| {
        let path = root.join(directory).join(NAME);
        let text = fs::read_to_string(&path).ok()?;
        Some((path, text))
    })?;
    let drop_ins =
        DIRECTORIES.iter().filter_map(|directory| fs::read_dir(root.join(directory).join(format!("{NAME}.d"))).ok());
    let mut names: Vec<String> = drop_ins
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".conf"))
        .collect();
    names.sort();
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

    fn check(name: &str, unit: &str, drop_in: Option<&str>) -> Finding {
        let root = std::env::temp_dir().join(format!("turnserver-unit-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let directory = root.join("etc/systemd/system");
        fs::create_dir_all(directory.join("turnserver.service.d")).unwrap();
        fs::write(directory.join(NAME), unit).unwrap();
        if let Some(drop_in) = drop_in {
            fs::write(directory.join("turnserver.service.d").join(drop_in), "[Service]\n").unwrap();
        }
        let finding = examine(&root).unwrap();
        fs::remove_dir_all(root).unwrap();
        finding
    }

    #[test]
    fn the_unit_in_use_is_compared_with_that_of_this_version() {
        let same = check("same", &SHIPPED.replace("/usr/local/bin/", "/usr/bin/"), Some("limits.conf"));
        assert_eq!(
            (same.status, same.what.as_str()),
            (Status::Ok, "as it belongs to this version; changed by limits.conf")
        );
        let old = SHIPPED.replace("LimitNOFILE=65536\n", "LimitNOFILE=1024\n");
        let old = check("old", &old, None);
        assert_eq!(old.status, Status::Warning);
        assert!(old.what.ends_with("; missing: LimitNOFILE=65536; added: LimitNOFILE=1024"), "{old:?}");
        let coturn = check("coturn", "[Service]\nExecStart=/usr/bin/turnserver -c /etc/turnserver.conf\n", None);
        assert!(coturn.what.contains("does not start this server"), "{coturn:?}");
        assert_eq!(examine(Path::new("/nowhere")), None);
    }
}
