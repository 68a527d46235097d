//! Whether the account of the systemd service can read a file, for `check-config` as root.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Group, User, geteuid, getgrouplist};

use crate::config::{self, Config};
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
    let account = path.filter(|path| starts_with_config(&unit, path)).and_then(|_| Account::of_unit(&unit));
    account.map_or_else(Vec::new, |account| errors(config, path, &account))
}

/// Returns whether it is known that the service can write to a directory: only root sees it, and only of the configuration
/// in use.
///
/// # Errors
/// Why it cannot, with advice.
pub fn may_write(directory: &Path, path: Option<&Path>) -> Result<bool, String> {
    let unit = unit_text(&UNIT_DIRECTORIES.map(Path::new));
    if !geteuid().is_root() || !path.is_some_and(|path| starts_with_config(&unit, path)) {
        return Ok(false);
    }
    obstacle_to_writing(&unit, directory).map_or(Ok(true), Err)
}

fn obstacle_to_writing(unit: &str, directory: &Path) -> Option<String> {
    let words = |key| list(unit, key).into_iter().flat_map(str::split_whitespace);
    // systemd creates it for the user of the service, at each start.
    if words("StateDirectory").any(|name| directory.starts_with(Path::new("/var/lib").join(name))) {
        return None;
    }
    let shown = directory.display();
    if last_value(unit, "ProtectSystem") == Some("strict")
        && !words("ReadWritePaths").any(|path| directory.starts_with(path.trim_start_matches(['-', '+'])))
    {
        return Some(format!(
            "the sandbox of the unit makes it read-only. Set ReadWritePaths={shown} in a drop-in of the unit (systemctl \
             edit turnserver), or use /var/lib/turnserver with StateDirectory=turnserver"
        ));
    }
    let account = Account::of_unit(unit)?;
    // A missing directory is created in the one above.
    let existing = directory.ancestors().find(|path| path.exists())?;
    let metadata = fs::metadata(existing).ok()?;
    let Account { name, group, .. } = &account;
    (!account.has(&metadata, 2) || !account.has(&metadata, 1)).then(|| {
        format!(
            "the user {name} of the service may not write to it. Run `install -d -m 700 -o {name} -g {group} {shown}`"
        )
    })
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

/// Returns the values of a setting in their order.
fn values<'u>(unit: &'u str, key: &'u str) -> impl Iterator<Item = &'u str> {
    let assignments = unit.lines().filter_map(|line| line.split_once('='));
    assignments.filter(move |(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

/// Returns the last value of a setting; `None` if it is empty.
fn last_value<'u>(unit: &'u str, key: &'u str) -> Option<&'u str> {
    values(unit, key).last().filter(|value| !value.is_empty())
}

/// Returns the values of a setting that is a list. An empty value removes the earlier ones.
fn list<'u>(unit: &'u str, key: &'u str) -> Vec<&'u str> {
    let values: Vec<&str> = values(unit, key).collect();
    values.rsplit(|value| value.is_empty()).next().unwrap_or_default().to_vec()
}

/// Whether the service of a unit starts with this configuration.
fn starts_with_config(unit: &str, path: &Path) -> bool {
    let starts = list(unit, "ExecStart");
    let words = || starts.iter().flat_map(|start| start.split_whitespace()).map(|word| word.trim_matches(['"', '\'']));
    let directory = Path::new(last_value(unit, "WorkingDirectory").unwrap_or("/").trim_start_matches('-'));
    let same = |used: &Path| {
        let (used, path) = (fs::canonicalize(directory.join(used)), fs::canonicalize(path));
        used.is_ok_and(|used| path.is_ok_and(|path| path == used))
    };
    if words().any(|word| word.starts_with("--config")) {
        return words().any(|word| same(Path::new(word.strip_prefix("--config=").unwrap_or(word))));
    }
    let is_server = words().any(|word| Path::new(word).file_name() == Some(OsStr::new("turnserver")));
    is_server && config::default_path_in(directory).is_some_and(|used| same(&used))
}

impl Account {
    /// Finds the account of a unit; `None` for root.
    fn of_unit(unit: &str) -> Option<Self> {
        let user = last_value(unit, "User").filter(|user| !matches!(*user, "root" | "0"))?;
        let further: Vec<&str> =
            list(unit, "SupplementaryGroups").into_iter().flat_map(str::split_whitespace).collect();
        Self::find(user, last_value(unit, "Group"), &further)
    }

    /// Finds a user by name or number. `group` replaces its primary group; `further` are groups in addition to its own.
    fn find(user: &str, group: Option<&str>, further: &[&str]) -> Option<Self> {
        let by_number = || User::from_uid(user.parse::<u32>().ok()?.into()).ok().flatten();
        let User { name, uid, gid, .. } = User::from_name(user).ok().flatten().or_else(by_number)?;
        let gid = match group {
            Some(group) => group_id(group)?,
            None => gid,
        };
        let own = CString::new(name.as_str()).ok().and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default();
        let mut groups = vec![gid.as_raw()];
        for group in own.into_iter().chain(further.iter().filter_map(|group| group_id(group))).map(Gid::as_raw) {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let group = Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
        Some(Self { name, uid: uid.as_raw(), group, groups })
    }

    /// Returns the file, or the directory on the way to it, whose permissions deny the account to read the file. If
    /// these deny it, an access control list may allow it.
    fn obstacle(&self, file: &Path) -> Option<PathBuf> {
        let (directories, target) = way(file)?;
        let denies = |path: &Path, bit| !fs::metadata(path).is_ok_and(|metadata| self.has(&metadata, bit));
        let closed = directories.into_iter().find(|directory| denies(directory, 1));
        let obstacle = closed.or_else(|| denies(&target, 4).then_some(target))?;
        (!self.opens(file)).then_some(obstacle)
    }

    /// Whether the permissions of a file contain `bit` for this account: 4 to read, 2 to write, 1 to enter a directory.
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

    /// Whether a process of this account may read the file.
    fn opens(&self, file: &Path) -> bool {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let group = self.groups.first().copied().unwrap_or(self.uid);
        let mut test = Command::new("setpriv");
        test.args([format!("--reuid={}", self.uid), format!("--regid={group}")]);
        test.arg(format!("--groups={}", groups.join(","))).args(["test", "-r"]).arg(file);
        test.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

/// Finds a group by name or number.
fn group_id(group: &str) -> Option<Gid> {
    let by_number = || group.parse::<u32>().ok().map(Gid::from_raw);
    Group::from_name(group).ok().flatten().map(|group| group.gid).or_else(by_number)
}

/// The most symbolic links that the kernel follows on the way to a file.
const MAX_LINKS: usize = 40;

/// Returns the directories that the kernel searches on the way to a file, which include those of symbolic links, and the
/// file to which the way leads.
fn way(file: &Path) -> Option<(Vec<PathBuf>, PathBuf)> {
    let (mut directories, mut place, mut links) = (Vec::new(), PathBuf::new(), 0);
    let absolute = std::path::absolute(file).ok()?;
    let reversed = |path: &Path| -> Vec<OsString> {
        let components = path.components().filter(|component| *component != Component::CurDir);
        components.rev().map(|component| component.as_os_str().to_owned()).collect()
    };
    let mut rest = reversed(&absolute);
    while let Some(component) = rest.pop() {
        if component == "/" {
            place = PathBuf::from("/");
            continue;
        }
        if !directories.contains(&place) {
            directories.push(place.clone());
        }
        let next = place.join(&component);
        if component == ".." {
            place.pop();
        } else if !fs::symlink_metadata(&next).ok()?.is_symlink() {
            place = next;
        } else if links < MAX_LINKS {
            links += 1;
            rest.extend(reversed(&fs::read_link(&next).ok()?));
        } else {
            return None;
        }
    }
    Some((directories, place))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::net::testing::skip;
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

    /// Returns the user, the primary group and the further groups of a unit, as numbers.
    fn account_of(settings: &str) -> Option<(u32, Vec<u32>)> {
        Account::of_unit(&format!("[Service]\n{settings}\n")).map(|account| (account.uid, account.groups))
    }

    #[test]
    fn the_user_of_the_unit_is_the_last_one_that_is_set() {
        let shipped = include_str!("../../systemd/turnserver.service");
        assert_eq!(last_value(shipped, "User"), Some("turnserver"));
        let nobody = Account::find("nobody", None, &[]).unwrap();
        for user in ["User=nobody", "User = nobody", "User=daemon\nUser=nobody", "User=\nUser=nobody", "User=65534"] {
            assert_eq!(Account::of_unit(&format!("[Service]\n{user}\n")), Some(nobody.clone()), "{user}");
        }
        for root in ["User=root", "User=", "User=0", "User=nobody\nUser=root", "#User=nobody", "ExecStart=/bin/true"] {
            assert_eq!(account_of(root), None, "{root}");
        }
    }

    #[test]
    fn the_groups_of_the_unit_are_those_of_the_account() {
        let (uid, own) = account_of("User=nobody").unwrap();
        let with = |first: Option<u32>, more: &[u32]| {
            let primary = first.map_or_else(|| own.clone(), |first| vec![first]);
            Some((uid, primary.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()))
        };
        for (settings, expected) in [
            ("Group=54321", with(Some(54_321), &[])),
            ("Group=54320\nGroup=54321", with(Some(54_321), &[])),
            ("Group=54321\nGroup=", with(None, &[])),
            ("SupplementaryGroups=54321 54322\nSupplementaryGroups=54323 54321", with(None, &[54_321, 54_322, 54_323])),
            ("SupplementaryGroups=54321\nSupplementaryGroups=\nSupplementaryGroups=54322", with(None, &[54_322])),
            ("SupplementaryGroups=54321\nSupplementaryGroups=", with(None, &[])),
            ("Group=54321\nSupplementaryGroups=54322 no-such-group", with(Some(54_321), &[54_322])),
        ] {
            assert_eq!(account_of(&format!("User=nobody\n{settings}")), expected, "{settings}");
        }
        // The advice names the primary group.
        assert_eq!(Account::find("nobody", Some("daemon"), &[]).unwrap().group, "daemon");
        assert_eq!(Account::find("nobody", Some("54321"), &[]).unwrap().group, "54321");
        assert_eq!(Account::find("nobody", Some("no-such-group"), &[]), None);
    }

    #[test]
    fn a_process_of_the_account_has_its_further_groups() {
        if !geteuid().is_root() {
            return skip("there is no root");
        }
        let directory = Directory::new("groups");
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.write("file", 0o640);
        std::os::unix::fs::chown(&file, None, Some(54_323)).unwrap();
        assert!(other_account(vec![54_322, 54_323]).opens(&file));
        assert!(!other_account(vec![54_322]).opens(&file));
    }

    #[test]
    fn a_directory_that_the_sandbox_or_the_permissions_close_cannot_be_written() {
        if !geteuid().is_root() {
            return skip("there is no root");
        }
        let directory = Directory::new("writing");
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o755)).unwrap();
        let obstacle = |unit: &str, path: &Path| obstacle_to_writing(unit, path);
        let (own, shipped) = (directory.0.as_path(), include_str!("../../systemd/turnserver.service"));
        assert_eq!(obstacle(shipped, Path::new("/var/lib/turnserver")), None);
        assert!(obstacle(shipped, own).unwrap().contains("Set ReadWritePaths="));
        let opened = format!("User=nobody\nProtectSystem=strict\nReadWritePaths={}\n", own.display());
        for path in [own, &own.join("state")] {
            let closed = obstacle(&opened, path).unwrap();
            assert!(closed.contains("the user nobody of the service may not write"), "{closed}");
        }
        std::os::unix::fs::chown(own, Some(Account::find("nobody", None, &[]).unwrap().uid), None).unwrap();
        assert_eq!(obstacle(&opened, &own.join("state")), None);
        assert_eq!(obstacle("User=root\n", own), None);
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
    fn a_unit_without_the_option_uses_the_default_configuration_of_its_directory() {
        let directory = Directory::new("default");
        let other = directory.write("other.toml", 0o600);
        let used = directory.write("turnserver.toml", 0o600);
        let unit = |start: &str| format!("WorkingDirectory=-{}\nExecStart={start}\n", directory.0.display());
        let server = unit("/bin/turnserver --log-level info");
        assert!(starts_with_config(&server, &used) && !starts_with_config(&server, &other));
        let named = unit("/bin/turnserver --config other.toml");
        assert!(starts_with_config(&named, &other) && !starts_with_config(&named, &used));
        assert!(!starts_with_config(&unit("/bin/true"), &used));
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
        let root = Account::find("root", None, &[]).unwrap();
        assert_eq!((root.name.as_str(), root.uid, root.group.as_str(), root.groups[0]), ("root", 0, "root", 0));
        assert_eq!(Account::find("0", None, &[]), Some(root));
        assert_eq!(Account::find("no-such-user", None, &[]), None);
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

    // As certbot has them: live/privkey.pem is a link to ../../archive/privkey1.pem.
    #[test]
    fn a_closed_directory_on_the_way_of_a_symbolic_link_is_an_obstacle() {
        let directory = Directory::new("links");
        let [live, archive] = ["live", "archive"].map(|name| directory.0.join(name));
        let site = live.join("site");
        fs::create_dir_all(&site).unwrap();
        fs::create_dir_all(&archive).unwrap();
        directory.write("archive/privkey1.pem", 0o644);
        let link = site.join("privkey.pem");
        symlink("../.././archive/privkey1.pem", &link).unwrap();
        let short = directory.0.join("short");
        symlink(&site, &short).unwrap();
        let account = other_account(vec![54_321]);
        for file in [&link, &short.join("privkey.pem")] {
            assert_eq!(account.obstacle(file), None);
            for closed in [&live, &site, &archive] {
                fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).unwrap();
                assert_eq!(account.obstacle(file), fs::canonicalize(closed).ok(), "{}", file.display());
                fs::set_permissions(closed, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let endless = directory.0.join("endless");
        symlink("endless", &endless).unwrap();
        assert_eq!(account.obstacle(&endless), None);
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
