//! Whether the account of the systemd service can read a file, for `check-config` as root.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::config::Config;

/// The unit and its drop-ins.
const UNIT: &str = "/etc/systemd/system/turnserver.service";

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    /// The primary group first.
    groups: Vec<u32>,
}

/// Returns a warning for each file that the account of the service cannot read. Empty unless this process is root.
#[must_use]
pub fn unreadable_files(config: &Config, path: Option<&Path>) -> Vec<String> {
    // The owner of this directory is the effective user of the process.
    if fs::metadata("/proc/self").map_or(true, |own| own.uid() != 0) {
        return Vec::new();
    }
    let unit = unit_text();
    // Without a service that uses this configuration, no other user has to read the files.
    let Some(user) = path.filter(|path| starts_with_config(&unit, path)).and_then(|_| user_of_unit(&unit)) else {
        return Vec::new();
    };
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let Some(account) = Account::find(&user, &read("/etc/passwd"), &read("/etc/group")) else { return Vec::new() };
    warnings(config, path, &account)
}

fn warnings(config: &Config, path: Option<&Path>, account: &Account) -> Vec<String> {
    let files = config.files.iter().map(|(key, file)| (format!("`{key}`: "), file.as_path()));
    let files = path.map(|path| (String::new(), path)).into_iter().chain(files);
    let unreadable = files.filter(|(_, file)| !account.can_read(file));
    let Account { name, uid, .. } = account;
    let warning = |(key, file): (String, &Path)| {
        let shown = file.display();
        format!(
            "{key}`{shown}` cannot be read by the user of the service, {name} (uid {uid}), so the service will not start: run \
             `chgrp {name} {shown}; chmod 640 {shown}`, or use a systemd credential"
        )
    };
    unreadable.map(warning).collect()
}

/// Returns the unit and its drop-ins in the order in which systemd reads them.
fn unit_text() -> String {
    let entries = fs::read_dir(format!("{UNIT}.d")).into_iter().flatten().flatten();
    let mut drop_ins: Vec<_> = entries.map(|entry| entry.path()).collect();
    drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    drop_ins.sort();
    let files = std::iter::once(UNIT.into()).chain(drop_ins);
    files.map(|path| fs::read_to_string(path).unwrap_or_default() + "\n").collect()
}

/// Whether the service of a unit starts with this configuration.
fn starts_with_config(unit: &str, path: &Path) -> bool {
    let same = |word: &str| {
        let (word, path) = (fs::canonicalize(word), fs::canonicalize(path));
        word.is_ok_and(|word| path.is_ok_and(|path| path == word))
    };
    let starts = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    starts.flat_map(str::split_whitespace).any(same)
}

/// Returns the user of a unit; `None` for root.
fn user_of_unit(text: &str) -> Option<String> {
    let user = text.lines().filter_map(|line| line.trim().strip_prefix("User=")).next_back()?.trim();
    (!matches!(user, "" | "root" | "0")).then(|| user.to_owned())
}

impl Account {
    /// Finds a user in the text of `/etc/passwd`, and its groups in that of `/etc/group`.
    fn find(user: &str, passwd: &str, group: &str) -> Option<Self> {
        let (name, uid, primary) = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (name == user || uid == user).then_some((name, uid.parse().ok()?, gid.parse().ok()?))
        })?;
        let member_of = group.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let (gid, members) = (fields.next()?, fields.next()?);
            members.split(',').any(|member| member == name).then(|| gid.parse().ok()).flatten()
        });
        let groups = std::iter::once(primary).chain(member_of).collect();
        Some(Self { name: name.to_owned(), uid, groups })
    }

    /// Whether the account can read a file, according to the permissions of the file and its directories. If these deny
    /// it, an access control list may allow it.
    fn can_read(&self, file: &Path) -> bool {
        let Ok(file) = fs::canonicalize(file) else { return true };
        let allows = |path: &Path, bit| fs::metadata(path).is_ok_and(|metadata| self.has(&metadata, bit));
        (allows(&file, 4) && file.ancestors().skip(1).all(|directory| allows(directory, 1))) || self.opens(&file)
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
    fn stranger(groups: Vec<u32>) -> Account {
        Account { name: "turnserver".to_owned(), uid: 54_321, groups }
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
        let unit = format!("[Service]\nExecStart=/usr/local/bin/turnserver --config {}\n", used.display());
        assert!(starts_with_config(&unit, &used) && starts_with_config(&unit, &directory.0.join("./used.toml")));
        assert!(!starts_with_config(&unit, &other) && !starts_with_config("", &used));
    }

    #[test]
    fn an_account_has_its_primary_and_further_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nturnserver:x:998:997:TURN server:/:/usr/sbin/nologin\n";
        let group = "root:x:0:\nssl-cert:x:110:postgres,turnserver\nturnserver:x:997:\nturn:x:5:turnserver2\n";
        let account = Account::find("turnserver", passwd, group).unwrap();
        assert_eq!(account, Account { name: "turnserver".to_owned(), uid: 998, groups: vec![997, 110] });
        assert_eq!(Account::find("998", passwd, group), Some(account));
        assert_eq!(Account::find("nobody", passwd, group), None);
    }

    #[test]
    fn a_file_is_readable_with_the_permissions_of_the_file_and_of_its_directories() {
        let directory = Directory::new("modes");
        let group = fs::metadata(&directory.0).unwrap().gid();
        let (stranger, member) = (stranger(vec![54_321]), stranger(vec![group]));
        for (mode, by_stranger, by_member) in
            [(0o600, false, false), (0o640, false, true), (0o644, true, true), (0o604, true, false)]
        {
            let file = directory.write("file", mode);
            assert_eq!((stranger.can_read(&file), member.can_read(&file)), (by_stranger, by_member), "{mode:o}");
        }
        let file = directory.write("file", 0o644);
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!((stranger.can_read(&file), member.can_read(&file)), (false, true));
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!member.can_read(&file));
    }

    #[test]
    fn each_unreadable_file_causes_one_warning_with_advice() {
        let directory = Directory::new("warnings");
        let (closed, open) = (directory.write("key.pem", 0o600), directory.write("chain.pem", 0o644));
        let secrets = directory.write("secrets", 0o600);
        let files = vec![
            (AUTH_SECRETS_FILE, secrets.clone()),
            (TLS_CERTIFICATE, open.clone()),
            (TLS_PRIVATE_KEY, closed.clone()),
        ];
        let config = Config { files, ..Config::default() };
        let warnings = warnings(&config, Some(&open), &stranger(vec![54_321]));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with(&format!("`auth.secrets-file`: `{}` cannot be read", secrets.display())));
        let advice = format!("`chgrp turnserver {0}; chmod 640 {0}`", closed.display());
        assert!(warnings[1].starts_with("`tls.private-key`: ") && warnings[1].contains(&advice), "{warnings:?}");
    }
}
