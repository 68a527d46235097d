//! `turnserver offload`, run as a process in namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use turnserver::offload::maps::Maps;
use turnserver::offload::pinned;
use turnserver::offload::program::Sizes;

use crate::attach::{GROUP, index, ip, program_on, with_interfaces};
use crate::example::entry;
use crate::layout::Direction;

/// What a command printed, and its exit code.
#[derive(Debug)]
struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Where a test runs commands: a configuration, and the directory of the program.
struct Place {
    config: PathBuf,
    directory: PathBuf,
}

impl Place {
    fn new(files: &Path, offload: &str) -> Self {
        let place =
            Self { config: files.parent().unwrap().join("turnserver.toml"), directory: files.join("turnserver") };
        place.configure(offload);
        place
    }

    /// Writes the configuration. The command does not read the file with the secrets, which does not exist.
    fn configure(&self, offload: &str) {
        let secrets = "[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\"\n";
        fs::write(&self.config, format!("{secrets}[limits]\nallocations = 10\n[offload]\n{offload}\n")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.arg("offload").args(arguments).arg("--config").arg(&self.config);
        command.arg("--directory").arg(&self.directory).env_remove("CREDENTIALS_DIRECTORY");
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments))
    }

    fn maps(&self) -> Maps {
        pinned::read(&self.directory).unwrap()
    }
}

fn finish(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn named_interfaces_get_the_program_until_it_is_detached() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0', 'absent', 'lo']");
        let nothing = place.run(&["status"]);
        assert!(nothing.code == Some(0) && nothing.stdout.contains("to no interface"), "{nothing:?}");
        let attached = place.run(&["attach", "--group", &GROUP.to_string()]);
        assert_eq!((attached.code, &*attached.stdout), (Some(0), "the program is attached to v0\n"), "{attached:?}");
        let lines: Vec<&str> = attached.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("not attached to absent: this machine has no")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("not attached to lo: its driver")), "{lines:?}");
        let program = program_on("v0").expect("it is attached");
        assert_eq!(fs::metadata(place.directory.join("maps/to_peer")).unwrap().gid(), GROUP);
        let mut maps = place.maps();
        assert_eq!((maps.entries(), maps.slots()), (40, Sizes::for_channels(40).slots));

        maps.insert(&entry(Direction::ToPeer, true, true)).unwrap();
        let status = place.run(&["status"]);
        let expected = format!(
            "attached    v0 (index {}, driver unknown)\nto peers    1 of 40 entries\nto clients  0 of 40 entries\n\
             counters    {}\npackets     none\n",
            index("v0"),
            Sizes::for_channels(40).slots
        );
        assert_eq!((status.code, &*status.stdout), (Some(0), &*expected), "{status:?}");

        // The maps stay, and with them what a running server has written.
        place.configure("interfaces = ['v0', 'v1']");
        let more = place.run(&["attach", "--running"]);
        assert_eq!((more.code, &*more.stdout), (Some(0), "the program is attached to v0, v1\n"), "{more:?}");
        assert_eq!((program_on("v0"), program_on("v1")), (Some(program), Some(program)));
        assert_eq!(place.maps().count(Direction::ToPeer).unwrap(), 1);

        // A start replaces it.
        assert_eq!(place.run(&["attach"]).code, Some(0));
        assert!(program_on("v0").is_some_and(|second| second != program));
        assert_eq!(place.maps().count(Direction::ToPeer).unwrap(), 0);

        assert_eq!(place.run(&["detach"]).code, Some(0));
        assert_eq!((program_on("v0"), program_on("v1")), (None, None));
        assert!(!place.directory.exists());
        assert_eq!(place.run(&["detach"]).code, Some(0));
        let late = place.run(&["attach", "--running"]);
        assert!(late.code == Some(1) && late.stderr.contains("no program is loaded"), "{late:?}");
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn mode_off_detaches() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0']");
        for arguments in [&["attach"][..], &["attach", "--running"]] {
            place.configure("interfaces = ['v0']");
            assert_eq!(place.run(&["attach"]).code, Some(0));
            place.configure("interfaces = ['v0']\nmode = 'off'");
            let off = place.run(arguments);
            assert!(off.code == Some(0) && off.stdout.contains("`offload.mode` is \"off\""), "{off:?}");
            assert_eq!((program_on("v0"), place.directory.exists()), (None, false));
        }
    });
}

// Two units may share a machine.
#[test]
fn a_program_that_a_server_uses_is_not_replaced_or_detached() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0']");
        assert_eq!(place.run(&["attach"]).code, Some(0));
        let program = program_on("v0").expect("it is attached");
        let server = pinned::open(&place.directory).unwrap();
        let attach = place.run(&["attach"]);
        assert!(attach.code == Some(1) && attach.stderr.contains("a running server uses the program"), "{attach:?}");
        assert_eq!(place.run(&["attach", "--running"]).code, Some(0));
        let ended = finish(place.command(&["detach"]).env("SERVICE_RESULT", "success"));
        assert!(ended.code == Some(0) && ended.stdout.contains("it stays attached"), "{ended:?}");
        place.configure("mode = 'off'");
        let off = place.run(&["attach"]);
        assert!(off.code == Some(0) && off.stdout.contains("it stays attached"), "{off:?}");
        assert_eq!(program_on("v0"), Some(program));
        drop(server);
        assert_eq!(place.run(&["attach"]).code, Some(0));
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn after_a_failure_of_the_service_the_program_stays() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0']");
        assert_eq!(place.run(&["attach"]).code, Some(0));
        let program = program_on("v0");
        for result in ["signal", "exit-code", "watchdog"] {
            let kept = finish(place.command(&["detach"]).env("SERVICE_RESULT", result));
            assert!(kept.code == Some(0) && kept.stdout.contains(result), "{kept:?}");
            assert_eq!(program_on("v0"), program);
        }
        assert_eq!(finish(place.command(&["detach"]).env("SERVICE_RESULT", "success")).code, Some(0));
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn if_no_interface_takes_the_program_nothing_stays_unless_one_may_come() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['lo']");
        let failed = place.run(&["attach"]);
        assert!(failed.code == Some(1) && failed.stderr.contains("no interface takes the program"), "{failed:?}");
        assert!(!place.directory.exists());

        place.configure("");
        let automatic = place.run(&["attach"]);
        assert_eq!((automatic.code, &*automatic.stdout), (Some(1), ""), "{automatic:?}");
        let veth = automatic.stderr.lines().find(|line| line.contains("it is a veth interface")).unwrap();
        assert!(veth.contains("v0") && veth.contains("v1") && veth.contains("`offload.interfaces`"), "{veth}");
        assert_eq!((program_on("v0"), place.directory.exists()), (None, false));

        place.configure("interfaces = ['late']");
        let failed = place.run(&["attach"]);
        assert!(failed.code == Some(1) && failed.stderr.contains("attach --running"), "{failed:?}");
        let status = place.run(&["status"]);
        assert!(status.stdout.contains("to no interface") && status.stdout.contains("0 of 40"), "{status:?}");
        rename("v1", "late");
        assert_eq!(place.run(&["attach", "--running"]).code, Some(0));
        assert!(program_on("late").is_some());
    });
}

#[test]
fn mistakes_are_reported_and_change_nothing() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0']");
        assert_eq!(place.run(&["attach"]).code, Some(0));
        let program = program_on("v0");
        let unknown = place.run(&["attach", "--group", "no-such-group"]);
        assert!(unknown.code == Some(1) && unknown.stderr.contains("no group \"no-such-group\""), "{unknown:?}");
        place.configure("mode = 'on'");
        let wrong = place.run(&["attach"]);
        assert!(wrong.code == Some(1) && wrong.stderr.contains("`offload.mode` must be one of"), "{wrong:?}");
        assert_eq!(place.run(&["attach", "--running", "--group", "0"]).code, Some(2));
        assert_eq!(place.run(&["attach", "--wait", "1"]).code, Some(2));
        assert_eq!(program_on("v0"), program);
    });
}

/// Returns the command of the unit turnserver-offload, but for this many seconds.
fn unit_command(place: &Place, seconds: &str) -> Command {
    let unit = include_str!("../../systemd/turnserver-offload.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=-/usr/local/bin/turnserver offload "));
    let (arguments, _) = command.unwrap().split_once(" --config ").unwrap();
    let (arguments, _) = arguments.rsplit_once(' ').unwrap();
    let mut arguments: Vec<&str> = arguments.split(' ').collect();
    assert_eq!(arguments.last(), Some(&"--wait"));
    arguments.push(seconds);
    place.command(&arguments)
}

fn run_unit(place: &Place, seconds: &str) -> (Option<i32>, String, String) {
    let Finished { code, stdout, stderr } = finish(&mut unit_command(place, seconds));
    (code, stdout, stderr)
}

fn nothing() -> (Option<i32>, String, String) {
    (Some(0), String::new(), String::new())
}

#[test]
fn the_second_unit_attaches_what_is_ready_later_and_reports_nothing_else() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['late']");
        assert_eq!(run_unit(&place, "300"), nothing(), "no program is loaded");
        assert_eq!(place.run(&["attach"]).code, Some(1));
        assert_eq!(run_unit(&place, "0"), nothing());
        let maps = place.maps();
        rename("v0", "late");
        let attached = (Some(0), "the program is attached to late\n".to_owned(), String::new());
        // It does not wait, because there is nothing to wait for.
        assert_eq!(run_unit(&place, "300"), attached);
        assert!(program_on("late").is_some() && pinned::is_current(&place.directory, &maps).unwrap());
        assert_eq!(run_unit(&place, "300"), nothing());

        place.configure("interfaces = ['late', 'lo']");
        let (code, stdout, stderr) = run_unit(&place, "300");
        assert!(code == Some(0) && stdout.is_empty() && stderr.contains("not attached to lo: its driver"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");

        place.configure("interfaces = ['late']\nmode = 'off'");
        assert_eq!(run_unit(&place, "300"), nothing());
        assert!(program_on("late").is_some(), "only the next start switches it off");
    });
}

#[test]
fn the_second_unit_waits_for_an_interface_and_keeps_the_others() {
    with_interfaces(|files| {
        let place = Place::new(files, "interfaces = ['v0', 'late']");
        assert_eq!(place.run(&["attach"]).code, Some(0));
        let program = program_on("v0").expect("it is attached");
        let mut command = unit_command(&place, "300");
        let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        rename("v1", "late");
        let output = waiting.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{:?}", output.stderr);
        assert_eq!(stdout, "the program is attached to late\n");
        assert_eq!((program_on("v0"), program_on("late")), (Some(program), Some(program)));
    });
}

// A veth interface is not selected, so the wait ends without an attachment.
#[test]
fn with_automatic_interfaces_the_program_waits_for_the_first_interface() {
    with_interfaces(|files| {
        ip("link del v0");
        let place = Place::new(files, "");
        // Without any interface except loopback: the kernel may not have found them yet.
        let failed = place.run(&["attach"]);
        assert!(failed.code == Some(1) && failed.stderr.contains("attach --running"), "{failed:?}");
        assert!(pinned::is_loaded(&place.directory).unwrap());
        assert_eq!(run_unit(&place, "0"), nothing());
        assert!(pinned::is_loaded(&place.directory).unwrap());
        let mut command = unit_command(&place, "300");
        let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        ip("link add v0 type veth peer name v1");
        let output = waiting.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(program_on("v0"), None);
    });
}

/// Renames an interface. Old kernels do so only while it is down.
fn rename(interface: &str, name: &str) {
    ip(&format!("link set {interface} down"));
    ip(&format!("link set {interface} name {name}"));
    ip(&format!("link set {name} up"));
}
