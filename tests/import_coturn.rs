//! `turnserver import-coturn`: ten configurations, each imported, started, and used by a client of the old server.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "import_coturn/cases.rs"]
mod cases;
#[cfg(test)]
mod support;

#[cfg(test)]
mod import_coturn {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use turnserver::clock::unix_seconds;
    use turnserver::stun::attribute::Data;

    use crate::cases::{Access, CASES, Case, adapted};
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login};
    use crate::support::{Finished, Process, Server, TIMEOUT, TempDir, run};

    fn import(directory: &TempDir, arguments: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        run(command.arg("import-coturn").args(arguments).current_dir(directory.path()), None, TIMEOUT)
    }

    /// Returns the report without line breaks.
    fn report(finished: &Finished) -> String {
        finished.stderr.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// Relays data from one allocation to another.
    fn relay(server: &Server, case: &Case, login: &Login) {
        let [one, other] = [(), ()].map(|()| Client::new(server.udp_address()));
        let (session, relayed) = one.allocate(login).unwrap();
        let (other_session, other_relayed) = other.allocate(login).unwrap();
        one.permit(&session, other_relayed);
        other.permit(&other_session, relayed);
        one.send_to_peer(other_relayed, b"through both");
        assert_eq!(other.receive().get::<Data<'_>>().unwrap().0, b"through both", "{}", case.name);
        let stranger = Client::new(server.udp_address()).allocate(&Login::new("mallory", "x"));
        assert_eq!(stranger.map(|_| ()), Err(401));
    }

    fn import_start_and_use(name: &str) {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let directory = TempDir::new();
        let (finished, path) = case.import(&directory, "turnserver.toml");
        let report = report(&finished);
        assert_eq!(finished.code, Some(i32::from(!case.cannot.is_empty())), "{report}");
        assert_eq!(finished.stdout, [""; 0]);
        let count = format!("{} cannot be taken over, ", case.cannot.len());
        assert!(report.contains(&count), "{report}");
        let (cannot, _) = report.split_once("taken over (").unwrap_or((&report, ""));
        let part = if case.cannot.is_empty() { cannot } else { report.split("taken over (").nth(1).unwrap() };
        for line in case.cannot {
            assert!(part.contains(&format!("{line}: ")), "{line} is not in: {part}");
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("realm = {:?}", case.realm)), "{text}");
        for written in case.written {
            assert!(text.contains(written), "{written} is not in:\n{text}");
        }
        // No secret is in the report.
        let secret = match case.access {
            Access::Secret(secret) | Access::User(_, secret) => secret,
            Access::Printed => "n33dle",
        };
        assert!(!report.contains(secret) && !report.contains("n33dle"), "{report}");
        let has_secrets = !matches!(case.access, Access::Printed);
        assert!(!has_secrets || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777 == 0o600);

        let authority = Authority::new(unix_seconds());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let server = Server::start(&adapted(&text, "127.0.0.1", &files).to_string());
        let login = case.login().unwrap_or_else(|| {
            let credential = server.printed_credential();
            Login::new(&credential.username, &credential.password)
        });
        relay(&server, case, &login);
        assert_eq!(server.terminate().code, Some(0));
    }

    #[test]
    fn a_configuration_for_synapse_works_after_the_import() {
        import_start_and_use("synapse");
    }

    #[test]
    fn a_configuration_for_jitsi_works_after_the_import() {
        import_start_and_use("jitsi");
    }

    #[test]
    fn a_configuration_for_nextcloud_talk_works_after_the_import() {
        import_start_and_use("nextcloud");
    }

    #[test]
    fn a_configuration_for_bigbluebutton_works_after_the_import() {
        import_start_and_use("bigbluebutton");
    }

    #[test]
    fn a_configuration_for_netbird_works_after_the_import() {
        import_start_and_use("netbird");
    }

    #[test]
    fn arguments_of_docker_work_after_the_import() {
        import_start_and_use("docker");
    }

    #[test]
    fn users_with_keys_authenticate_with_their_passwords_after_the_import() {
        import_start_and_use("keys");
    }

    #[test]
    fn a_file_with_every_form_of_lines_works_after_the_import() {
        import_start_and_use("quirks");
    }

    #[test]
    fn a_configuration_with_databases_starts_after_the_import() {
        import_start_and_use("database");
    }

    #[test]
    fn a_configuration_with_limits_and_metrics_works_after_the_import() {
        import_start_and_use("metered");
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let directory = TempDir::new();
        directory.write("turnserver.conf", "realm=example.org\n");
        directory.write("there.toml", "mine");
        let finished = import(&directory, &["turnserver.conf", "--output", "there.toml"]);
        assert_eq!(finished.code, Some(2));
        assert_eq!(
            report(&finished),
            "turnserver: there.toml exists already: name another file, or keep it as there.toml.old with --force"
        );
        assert_eq!(std::fs::read_to_string(directory.path().join("there.toml")).unwrap(), "mine");
    }

    /// The package installs a `turnserver.toml`, which the group of the service can read.
    #[test]
    fn an_existing_file_is_replaced_by_force_and_kept() {
        let directory = TempDir::new();
        directory.write("turnserver.conf", "realm=example.org\nstatic-auth-secret=0123456789abcdef\n");
        directory.write("there.toml", "mine");
        let path = |name: &str| directory.path().join(name);
        let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
        let set_mode = |mode| std::fs::set_permissions(path("there.toml"), PermissionsExt::from_mode(mode)).unwrap();
        set_mode(0o644);
        let arguments = ["turnserver.conf", "--output", "there.toml", "--force"];
        let finished = import(&directory, &arguments);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(std::fs::read_to_string(path("there.toml")).unwrap().contains("realm = \"example.org\""));
        assert_eq!(
            (std::fs::read_to_string(path("there.toml.old")).unwrap().as_str(), mode("there.toml.old")),
            ("mine", 0o644)
        );
        // Its secrets are not for everyone.
        assert_eq!(mode("there.toml"), 0o640);
        // A second import must not replace the first copy.
        directory.write("there.toml", "changed");
        let finished = import(&directory, &arguments);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(report(&finished).ends_with("there.toml.old exists already: move it away"), "{finished:?}");
        assert_eq!(std::fs::read_to_string(path("there.toml")).unwrap(), "changed");
        let mut names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["there.toml", "there.toml.old", "turnserver.conf"]);
        // A new file needs no force, but may have it.
        assert_eq!(import(&directory, &["turnserver.conf", "--output", "new.toml", "--force"]).code, Some(0));
        assert_eq!(mode("new.toml"), 0o600);
    }

    #[test]
    fn a_result_with_open_questions_is_not_called_valid() {
        let directory = TempDir::new();
        directory.write("open.conf", "realm=example.org\nkeep-address-family\n");
        directory.write("closed.conf", "realm=example.org\nlistening-device=eth0\n");
        directory.write("good.conf", "realm=example.org\n");
        for (name, code, expected) in [
            ("good.conf", 0, "is valid"),
            ("open.conf", 1, "decide on what cannot be taken over"),
            ("closed.conf", 1, "the server would not start with turnserver.toml: correct it"),
        ] {
            let finished = import(&directory, &[name]);
            let report = report(&finished);
            assert_eq!(finished.code, Some(code), "{report}");
            assert!(report.contains(expected) && report.contains("is valid") == (code == 0), "{report}");
        }
        let finished = import(&directory, &["closed.conf"]);
        assert!(report(&finished).contains("unknown key `undecided`"), "{finished:?}");
    }

    #[test]
    fn an_unreadable_file_and_a_wrong_command_line_are_exit_code_2() {
        let directory = TempDir::new();
        directory.write("empty.conf", "# nothing\n");
        for (arguments, expected) in [
            (&["missing.conf"][..], "missing.conf cannot be read: "),
            (&["empty.conf"], "there is no option of coturn in it"),
            (&[], "required arguments were not provided"),
            (&["empty.conf", "--what"], "unexpected argument"),
        ] {
            let finished = import(&directory, arguments);
            assert_eq!(finished.code, Some(2), "{finished:?}");
            assert!(report(&finished).contains(expected), "{finished:?}");
        }
    }

    #[test]
    fn without_an_output_the_new_configuration_goes_to_standard_output() {
        let directory = TempDir::new();
        directory.write("one.conf", "realm=one.example\nmin-port=50000\n");
        directory.write("two.conf", "realm=two.example\n");
        let finished = import(&directory, &["one.conf", "two.conf", "--arguments", "--max-port 50999"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let text = finished.stdout.join("\n");
        assert!(text.contains("# two.conf:1: realm\nrealm = \"two.example\""), "{text}");
        assert!(text.contains("# one.conf:2: min-port, argument 1: max-port\nports = \"50000-50999\""), "{text}");
        assert!(report(&finished).contains("one.conf:1: realm=one.example: two.conf:1 sets it again"), "{finished:?}");
    }

    #[test]
    fn arguments_with_secrets_can_be_read_from_standard_input() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let mut process = Process::start(command.args(["import-coturn", "--arguments", "-"]), None);
        process.take_stdin().write_all(b"--realm=example.org --static-auth-secret 0123456789abcdef").unwrap();
        let finished = process.finish(TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stdout.join("\n").contains("secrets = [\"0123456789abcdef\"]"), "{finished:?}");
    }

    #[test]
    fn an_invalid_result_is_reported_with_its_errors() {
        let directory = TempDir::new();
        directory.write("turnserver.conf", "realm=a\\b\n");
        let finished = import(&directory, &["turnserver.conf", "--output", "new.toml"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(report(&finished).contains("error: new.toml:"), "{finished:?}");
        assert!(report(&finished).ends_with("the server would not start with new.toml: correct it"), "{finished:?}");
    }
}
