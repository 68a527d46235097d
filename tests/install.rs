//! The scripts and the unit in docs/install.md and `systemd`, run with replacements for the system's commands.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod install {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::Command;

    use crate::support::{Finished, Server, TIMEOUT, TempDir, config, run};

    fn file(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    }

    /// Returns the deploy hook in docs/install.md.
    fn hook() -> String {
        let document = file("docs/install.md");
        let start = document.find("#!/bin/sh\n").unwrap();
        document[start..].split("```").next().unwrap().to_owned()
    }

    /// Runs the hook. Returns the calls of `install` and `systemctl`.
    fn run_hook(is_active: i32, reload: i32) -> (Finished, String) {
        let directory = TempDir::new();
        let executable = |name: &str, script: &str| {
            let path = directory.write(name, script);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        executable("install", "#!/bin/sh\necho install >> \"$CALLS\"\n");
        let systemctl = format!(
            "#!/bin/sh\necho \"systemctl $1\" >> \"$CALLS\"\n\
             case $1 in is-active) exit {is_active};; reload) exit {reload};; *) exit 9;; esac\n"
        );
        executable("systemctl", &systemctl);
        let (hook, calls) = (executable("hook", &hook()), directory.path().join("calls"));
        let mut command = Command::new("/bin/sh");
        command.arg(hook).env("PATH", directory.path()).env("CALLS", &calls).env("RENEWED_LINEAGE", "/nowhere");
        (run(&mut command, None, TIMEOUT), fs::read_to_string(calls).unwrap())
    }

    // README.md creates the certificate before it starts the service. certbot reports a hook that fails.
    #[test]
    fn the_deploy_hook_succeeds_while_the_service_does_not_run() {
        let (finished, calls) = run_hook(3, 9);
        assert_eq!((finished.code, calls.as_str()), (Some(0), "install\nsystemctl is-active\n"), "{finished:?}");
    }

    #[test]
    fn the_deploy_hook_reloads_the_running_service_and_reports_its_failure() {
        for reload in [0, 1] {
            let (finished, calls) = run_hook(0, reload);
            let expected = "install\nsystemctl is-active\nsystemctl reload\n";
            assert_eq!((finished.code, calls.as_str()), (Some(reload), expected), "{finished:?}");
        }
    }

    #[test]
    fn each_restart_in_the_document_follows_a_check_of_the_configuration() {
        let document = file("docs/install.md");
        let mut restarts = 0;
        for (before, _) in document.match_indices("restart turnserver").map(|(at, _)| document.split_at(at)) {
            // A command may continue in the next line.
            let before = before.replace("\\\n", "");
            let line = before.rsplit('\n').next().unwrap();
            // In the table, the command is explained.
            if !line.starts_with('|') {
                restarts += 1;
                assert!(follows_a_check(line), "{line}");
            }
        }
        assert!(restarts > 0);
    }

    /// Whether a restart at the end of this text runs only if a check of the configuration succeeds.
    fn follows_a_check(command: &str) -> bool {
        let Some((_, after)) = command.rsplit_once("turnserver check-config ") else { return false };
        let Some(arguments) = after.trim_end().strip_suffix("systemctl") else { return false };
        arguments.trim_end().strip_suffix("&&").is_some_and(|arguments| !arguments.contains([';', '|', '&']))
    }

    #[test]
    fn only_a_restart_that_depends_on_the_check_follows_it() {
        assert!(follows_a_check("A=b turnserver check-config --config c && systemctl "));
        for command in [
            "systemctl ",
            "a && systemctl ",
            "turnserver check-config --config c; systemctl ",
            "turnserver check-config --config c || true && systemctl ",
            "turnserver check-config --config c && a; systemctl ",
            "a && b; turnserver check-config --config c; systemctl ",
        ] {
            assert!(!follows_a_check(command), "{command}");
        }
    }

    #[test]
    fn a_reload_of_the_unit_waits_for_the_result_and_fails_with_the_message() {
        let unit = file("systemd/turnserver.service");
        let reload: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
        let [reload] = reload[..] else { panic!("{reload:?}") };
        let arguments = reload.strip_prefix("/usr/local/bin/turnserver ").unwrap();
        let directory = TempDir::new();
        let socket = directory.path().join("control.sock");
        let text = format!("{}[control]\nsocket = {socket:?}\n", config(&["127.0.0.1"], ""));
        let server = Server::start(&text);
        let reload = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            // The socket of the unit is at its default place.
            command.args(arguments.split(' ')).arg("--socket").arg(&socket);
            run(&mut command, None, TIMEOUT)
        };
        let finished = reload();
        // The journal has the result from the server.
        assert_eq!((finished.code, finished.stdout.as_slice()), (Some(0), &[][..]), "{finished:?}");
        server.wait_for_log(|line| line.field("event").as_deref() == Some("reload-done"));
        server.write_config("relm = 1\n");
        let finished = reload();
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr[0].contains("unknown key `relm`"), "{finished:?}");
    }

    #[test]
    fn the_documents_name_the_rust_version_of_the_manifest() {
        let manifest = file("Cargo.toml");
        let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
        for document in ["README.md", "docs/install.md"] {
            assert!(file(document).contains(&format!("Rust {version} or later")), "{document}");
        }
    }

    // systemd.unit(5): until the interval ends, a start by hand is refused, too.
    #[test]
    fn systemd_gives_up_after_a_configuration_error_and_soon_permits_a_start_by_hand() {
        let unit = file("systemd/turnserver.service");
        let seconds = |key: &str| -> u32 {
            let mut values = unit.lines().filter_map(|line| line.strip_prefix(key));
            values.next().unwrap().parse().unwrap()
        };
        let tries = seconds("RestartSec=") * seconds("StartLimitBurst=");
        let interval = seconds("StartLimitIntervalSec=");
        assert!(tries < interval && interval <= tries + 10, "{tries} s of tries, {interval} s");
    }

    // systemd.special(7): services that need the right time are ordered after the target and do not pull it in.
    #[test]
    fn the_unit_is_ordered_after_the_clock_is_set() {
        let unit = file("systemd/turnserver.service");
        let values = |key: &str| -> Vec<String> {
            let lines = unit.lines().filter_map(|line| line.strip_prefix(key));
            lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
        };
        assert!(values("After=").contains(&"time-sync.target".to_owned()));
        assert!(!values("Wants=").contains(&"time-sync.target".to_owned()));
    }

    // At boot, interfaces have no addresses when the server starts: a second unit attaches them, and the first does not wait.
    #[test]
    fn the_second_unit_runs_after_each_start_and_nothing_waits_for_the_network() {
        let (first, second) = (file("systemd/turnserver.service"), file("systemd/turnserver-offload.service"));
        let has = |unit: &str, line: &str| unit.lines().any(|other| other == line);
        assert!(has(&first, "Wants=turnserver-offload.service"));
        // Services that wait for the network may wait for minutes.
        assert!(!first.contains("network-online.target") && !second.contains("network-online.target"));
        assert!(has(&second, "After=turnserver.service"));
        assert!(has(&second, "PartOf=turnserver.service"));
        // Otherwise a start would find it active and not run it.
        assert!(!second.contains("RemainAfterExit"));
        // Without [Install], there is nothing to enable, neither here nor in the package.
        assert!(!second.contains("[Install]"));
        // A failure does not make the state of the system degraded.
        assert!(second.contains("\nExecStart=-/usr/local/bin/turnserver offload attach --running --wait "));
    }

    #[test]
    fn the_document_and_the_package_install_and_remove_both_units() {
        let document = file("docs/install.md");
        let install =
            "install -m 644 systemd/turnserver.service systemd/turnserver-offload.service /etc/systemd/system/";
        assert_eq!(document.matches(install).count(), 2, "install and upgrade");
        let (_, uninstall) = document.split_once("## Uninstall").unwrap();
        let removed = uninstall.lines().find(|line| line.starts_with("rm /etc/systemd/system/")).unwrap();
        for unit in ["turnserver.service", "turnserver-offload.service"] {
            assert!(removed.contains(&format!("/etc/systemd/system/{unit}")), "{unit}");
            assert!(file("Cargo.toml").contains(&format!("[\"target/packaging/deb/{unit}\", ")), "{unit}");
        }
    }

    // docs/offload.md has been tried with exactly these lines.
    #[test]
    fn the_unit_has_the_lines_of_the_document_about_privileges() {
        let (document, unit) = (file("docs/offload.md"), file("systemd/turnserver.service"));
        let (_, section) = document.split_once("## Privileges").unwrap();
        let block = section.split("```").nth(1).unwrap();
        let settings: Vec<&str> = block.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect();
        assert_eq!(settings.len(), 4, "{settings:?}");
        for setting in settings {
            assert!(unit.lines().any(|line| line == setting), "{setting}");
        }
        // A later line with `~` would take it away again.
        let filters: Vec<&str> = unit.lines().filter(|line| line.starts_with("SystemCallFilter=")).collect();
        assert_eq!(filters.last(), Some(&"SystemCallFilter=bpf"), "{filters:?}");
        // A failure of these commands does not keep the server from running.
        assert!(unit.contains("\nExecStartPre=+-") && unit.contains("\nExecStopPost=+-"));
    }
}
