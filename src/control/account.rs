//! Whether the account of the systemd service can read a file, for `check-config` as root.

use std::ffi::{CString, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Group, User, geteuid, getgrouplist};

use crate::config::Config;
use crate::file;

/// The directories of units. A file in an earlier one replaces the file of the same name in a later one.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The unit of the service.
const UNIT: &str = "turnserver.service";

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    /// The name of the primary group.
    group: String,
    /// The primary group first.
    groups: Vec<u32>,
}

/// Returns an error for each file that the account of the service cannot read. Empty unless this process is root.
#[must_use]
pub fn unreadable_files(config: &Config, path: Option<&Path>) -> Vec<String> {
    if !geteuid().is_root() {
        return Vec::new();
    }
    let unit = unit_text(&UNIT_DIRECTORIES.map(Path::new));
    // Without a service that uses this configuration, no other user has to read the files.
    let user = path.filter(|path| starts_with_config(&unit, path)).and_then(|_| user_of_unit(&unit));
    user.and_then(|user| Account::find(&user)).map_or_else(Vec::new, |account| errors(config, path, &account))
}

fn errors(config: &Config, path: Option<&Path>, account: &Account) -> Vec<String> {
    let files = config.files.iter().map(|(key, file)| (format!("`{key}`: "), file.as_path()));
    let files = path.map(|path| (String::new(), path)).into_iter().chain(files);
    let Account { name, uid, group, .. } = account;
    let error = |(key, file): (String, &Path)| {
        let obstacle = account.obstacle(file)?;
        let (shown, directory) = (file.display(), obstacle.display());
        let advice = if obstacle.is_dir() {
            format!(
                "may not enter the directory `{directory}`. Copy the file to a directory that it may enter, for \
                 certificates in a deploy hook (docs/install.md), or use a systemd credential"
            )
        } else {
            format!("may not read it. Run `chgrp {group} {shown}; chmod 640 {shown}`, or use a systemd credential")
        };
        Some(format!("{key}`{shown}`: the service will not start, because its user {name} (uid {uid}) {advice}"))
    };
    files.filter_map(error).collect()
}

/// Returns the unit and its drop-ins in the order in which systemd reads them, with continued lines joined.
fn unit_text(directories: &[&Path]) -> String {
    let mut drop_ins: Vec<(OsString, PathBuf)> = Vec::new();
    for directory in directories {
        for entry in fs::read_dir(directory.join(format!("{UNIT}.d"))).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let is_replaced = drop_ins.iter().any(|(other, _)| *other == name);
            if path.extension().is_some_and(|extension| extension == "conf") && !is_replaced {
                drop_ins.push((name, path));
            }
        }
    }
    drop_ins.sort();
    let unit = directories.iter().map(|directory| directory.join(UNIT)).find(|path| path.exists());
    let read = |path: PathBuf| {
        file::read(&path).map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
    };
    let files = unit.into_iter().chain(drop_ins.into_iter().map(|(_, path)| path));
    files.map(|path| read(path) + "\n").collect::<String>().replace("\\\n", " ")
}

/// Whether the service of a unit starts with this configuration.
fn starts_with_config(unit: &str, path: &Path) -> bool {
    let same = |word: &str| {
        let word = word.trim_matches(['"', '\'']);
        let word = word.strip_prefix("--config=").unwrap_or(word);
        let (word, path) = (fs::canonicalize(word), fs::canonicalize(path));
        word.is_ok_and(|word| path.is_ok_and(|path| path == word))
    };
    let starts = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    // An empty value removes the earlier ones.
    let starts: Vec<&str> = starts.collect();
    let last = starts.rsplit(|start| start.trim().is_empty()).next().unwrap_or_default();
    last.iter().flat_map(|start| start.split_whitespace()).any(same)
}

/// Returns the user of a unit; `None` for root.
fn user_of_unit(text: &str) -> Option<String> {
    let user = text.lines().filter_map(|line| line.trim().strip_prefix("User=")).next_back()?.trim();
    (!matches!(user, "" | "root" | "0")).then(|| user.to_owned())
}

impl Account {
    /// Finds a user by name or number.
    fn find(user: &str) -> Option<Self> {
        let by_number = || User::from_uid(user.parse::<u32>().ok()?.into()).ok().flatten();
        let User { name, uid, gid, .. } = User::from_name(user).ok().flatten().or_else(by_number)?;
        let groups =
            CString::new(name.as_str()).ok().and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default();
        let further = groups.into_iter().filter(|group| *group != gid).map(|group| group.as_raw());
        let group = Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
        Some(Self { name, uid: uid.as_raw(), group, groups: std::iter::once(gid.as_raw()).chain(further).collect() })
    }

    /// Returns the file, or the directory above it, whose permissions deny the account to read the file. If these deny
    /// it, an access control list may allow it.
    fn obstacle(&self, file: &Path) -> Option<PathBuf> {
        let file = fs::canonicalize(file).ok()?;
        let denies = |path: &Path, bit| !fs::metadata(path).is_ok_and(|metadata| self.has(&metadata, bit));
        let mut directories: Vec<&Path> = file.ancestors().skip(1).collect();
        directories.reverse();
        let closed = directories.into_iter().find(|directory| denies(directory, 1));
        let obstacle = closed.or_else(|| denies(&file, 4).then_some(file.as_path()))?;
        (!self.opens(&file)).then(|| obstacle.to_owned())
    }

    /// Whether the permissions of a file contain `bit` for this account: 4 to read, 1 to enter a directory.
    fn has(&self, file: &Metadata, bit: u32) -> bool {
        let shift = if file.uid() == self.uid {
            6
        } else if self.groups.contains(&file.gid()) {
            3
        } else {
            0
        };
        file.mode() >> shift & bit != 0
    }

    /// Whether a process of this account, without its further groups, may read the file.
    fn opens(&self, file: &Path) -> bool {
        let group = self.groups.first().copied().unwrap_or(self.uid);
        let mut test = Command::new("test");
        test.arg("-r").arg(file).uid(self.uid).gid(group).stderr(Stdio::null());
        test.status().is_ok_and(|status| status.success())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;
    use crate::setting::{AUTH_SECRETS_FILE, TLS_CERTIFICATE, TLS_PRIVATE_KEY};

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("turnserver-account-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, "content").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Returns an account that does not own the files of this test.
    fn other_account(groups: Vec<u32>) -> Account {
        Account { name: "turnserver".to_owned(), uid: 54_321, group: "relay".to_owned(), groups }
    }

    #[test]
    fn the_user_of_the_unit_is_the_last_one_that_is_set() {
        let shipped = include_str!("../../systemd/turnserver.service");
        assert_eq!(user_of_unit(shipped).as_deref(), Some("turnserver"));
        assert_eq!(user_of_unit(&format!("{shipped}\n[Service]\nUser=other\n")).as_deref(), Some("other"));
        for root in ["User=root", "User=", "User=0"] {
            assert_eq!(user_of_unit(&format!("{shipped}\n{root}\n")), None);
        }
        assert_eq!(user_of_unit("[Service]\nExecStart=/bin/true\n"), None);
    }

    #[test]
    fn only_the_configuration_of_the_service_is_checked() {
        let directory = Directory::new("unit");
        let (used, other) = (directory.write("used.toml", 0o600), directory.write("other.toml", 0o600));
        for option in ["--config ", "--config=", "--log-level=info \\\n --config "] {
            fs::write(
                directory.0.join(UNIT),
                format!("[Service]\nExecStart=/bin/turnserver {option}{}\n", used.display()),
            )
            .unwrap();
            let unit = unit_text(&[Path::new("/nonexistent"), &directory.0]);
            assert!(starts_with_config(&unit, &used) && starts_with_config(&unit, &directory.0.join("./used.toml")));
            assert!(!starts_with_config(&unit, &other) && !starts_with_config("", &used), "{unit}");
            let replaced = format!("{unit}\nExecStart=\nExecStart=/bin/turnserver --config {}\n", other.display());
            assert!(starts_with_config(&replaced, &other) && !starts_with_config(&replaced, &used));
        }
    }

    #[test]
    fn an_earlier_directory_replaces_the_units_and_drop_ins_of_a_later_one() {
        let (first, second) = (Directory::new("first"), Directory::new("second"));
        let drop_ins = [&first, &second].map(|directory| {
            let drop_ins = directory.0.join(format!("{UNIT}.d"));
            fs::create_dir_all(&drop_ins).unwrap();
            drop_ins
        });
        fs::write(second.0.join(UNIT), "User=unit").unwrap();
        fs::write(drop_ins[0].join("b.conf"), "User=b").unwrap();
        fs::write(drop_ins[1].join("b.conf"), "User=replaced").unwrap();
        fs::write(drop_ins[1].join("a.conf"), "User=a").unwrap();
        fs::write(drop_ins[1].join("c.txt"), "User=c").unwrap();
        // A drop-in that is not a regular file must not block the check.
        assert!(Command::new("mkfifo").arg(drop_ins[1].join("d.conf")).status().unwrap().success());
        let directories = [first.0.as_path(), second.0.as_path()];
        assert_eq!(unit_text(&directories), "User=unit\nUser=a\nUser=b\n\n");
        fs::write(first.0.join(UNIT), "User=first").unwrap();
        assert_eq!(unit_text(&directories), "User=first\nUser=a\nUser=b\n\n");
    }

    #[test]
    fn an_account_is_found_by_name_and_by_number() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.name.as_str(), root.uid, root.group.as_str(), root.groups[0]), ("root", 0, "root", 0));
        assert_eq!(Account::find("0"), Some(root));
        assert_eq!(Account::find("no-such-user"), None);
    }

    #[test]
    fn a_file_is_readable_with_the_permissions_of_the_file_and_of_its_directories() {
        let directory = Directory::new("modes");
        let group = fs::metadata(&directory.0).unwrap().gid();
        let (other, member) = (other_account(vec![54_321]), other_account(vec![group]));
        let reads = |account: &Account, file: &Path| account.obstacle(file).is_none();
        for (mode, by_other, by_member) in
            [(0o600, false, false), (0o640, false, true), (0o644, true, true), (0o604, true, false)]
        {
            let file = directory.write("file", mode);
            assert_eq!((reads(&other, &file), reads(&member, &file)), (by_other, by_member), "{mode:o}");
        }
        let file = directory.write("file", 0o644);
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!((reads(&other, &file), reads(&member, &file)), (false, true));
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(member.obstacle(&file), fs::canonicalize(&directory.0).ok());
    }

    #[test]
    fn each_unreadable_file_is_one_error_with_advice() {
        let directory = Directory::new("errors");
        let (closed, open) = (directory.write("key.pem", 0o600), directory.write("chain.pem", 0o644));
        let secrets = directory.write("secrets", 0o600);
        let files = vec![
            (AUTH_SECRETS_FILE, secrets.clone()),
            (TLS_CERTIFICATE, open.clone()),
            (TLS_PRIVATE_KEY, closed.clone()),
        ];
        let config = Config { files, ..Config::default() };
        let found = errors(&config, Some(&open), &other_account(vec![54_321]));
        assert_eq!(found.len(), 2, "{found:?}");
        let begin = format!("`auth.secrets-file`: `{}`: the service will not start", secrets.display());
        assert!(found[0].starts_with(&begin), "{found:?}");
        let advice = format!("`chgrp relay {0}; chmod 640 {0}`", closed.display());
        assert!(found[1].starts_with("`tls.private-key`: ") && found[1].contains(&advice), "{found:?}");

        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o700)).unwrap();
        let found = errors(&config, Some(&open), &other_account(vec![54_321]));
        let place = format!("may not enter the directory `{}`", fs::canonicalize(&directory.0).unwrap().display());
        assert_eq!(
            found.iter().filter(|error| error.contains(&place) && !error.contains("chgrp")).count(),
            4,
            "{found:?}"
        );
    }
}
