use super::*;

#[test]
fn a_clock_that_differs_from_that_of_the_authority_by_more_than_an_hour_stops_an_order() {
    for ahead in [None, Some(0), Some(3_600), Some(-3_600)] {
        assert_eq!(check_clock(ahead), Ok(()), "{ahead:?}");
    }
    let message = |ahead| check_clock(Some(ahead)).unwrap_err().message;
    assert!(
        message(60 * 86_400).contains("which is 60 d ahead of the clock of the authority"),
        "{}",
        message(5_184_000)
    );
    assert!(message(i64::MIN).contains(" behind the clock of the authority: set the clock"));
}

#[test]
fn a_clock_that_was_ahead_does_not_put_off_the_next_order_after_it_is_set() {
    const NOW: u64 = 1_800_000_000;
    let ahead = NOW + 60 * 86_400;
    let mut certificate = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
    certificate.record(Err(Failure::new("the clock is wrong")), ahead);
    certificate.follow_clock(NOW);
    let due = certificate.due(NOW);
    assert!((NOW + 60..=NOW + 75).contains(&due), "{due}");
    // The time passes.
    certificate.follow_clock(NOW + 30);
    assert_eq!(certificate.due(NOW + 30), due);
    certificate.record(Ok(()), ahead);
    certificate.follow_clock(NOW);
    assert!(certificate.due(NOW) <= NOW + HOUR && certificate.ask_at <= NOW + 24 * HOUR);
}

#[test]
fn a_certificate_that_is_valid_a_moment_later_is_kept() {
    const NOW: u64 = 1_800_000_000;
    let authority = crate::test_certificates::Authority::new(NOW);
    let certificate = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
    let check = |from: u64, to: u64| {
        let issued = authority.issue_for(&["turn.example.org"], from, to);
        let chain = authority.chain(&issued);
        certificate.check(&Issued { chain, key: issued.key.clone().into() }, NOW)
    };
    assert_eq!(check(NOW - 60, NOW + 60), Ok(()));
    assert_eq!(check(NOW + 1, NOW + 86_400), Ok(()));
    assert_eq!(check(NOW + MAX_SKEW, NOW + 86_400), Ok(()));
    assert!(check(NOW + MAX_SKEW + 1, NOW + 86_400).is_err());
    assert!(check(NOW - 60, NOW - 1).is_err());
}

// A proxy in the way, for example: the next try goes to the other challenge, and a reload begins with the first one.
#[test]
fn each_failure_moves_on_to_the_next_challenge_until_a_reload() {
    let mut certificate = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
    assert_eq!(certificate.challenge(), AcmeChallenge::TlsAlpn01);
    certificate.record(Err(Failure::new("refused")), 1_800_000_000);
    assert_eq!(certificate.challenge(), AcmeChallenge::Http01);
    certificate.retry();
    assert_eq!(certificate.challenge(), AcmeChallenge::TlsAlpn01);
}

// The server ended between the last step of an order and the removal of the file.
#[test]
fn a_wait_that_began_before_the_certificate_was_written_is_over() {
    const NOW: u64 = 1_800_000_000;
    let mut back_off = BackOff::default();
    back_off.add(&Failure::new("the server ended before the order did"), NOW, None, 0.0);
    for (written, failures) in [(NOW + 5, 0), (NOW, 0), (NOW - 1, 1)] {
        let mut managed = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
        managed.certificate = Some(StoredCertificate {
            validity: schedule::Validity { from: NOW - 86_400, to: NOW + 86_400 },
            written,
            names: settings().acme.domains,
            directory: settings().acme.directory,
            der: Vec::new(),
        });
        managed.continue_wait(back_off.clone(), NOW + 10);
        assert_eq!(managed.back_off.failures, failures, "{written}");
    }
}

#[test]
fn only_the_operator_ends_a_wait_that_began_before_the_start() {
    const NOW: u64 = 1_800_000_000;
    for (is_reloaded, demanded, expected) in
        [(false, None, NOW + 60), (true, None, 0), (true, Some(7_200), NOW + 7_200)]
    {
        let mut back_off = BackOff::default();
        back_off.add(&Failure { wait: demanded, ..Failure::new("refused") }, NOW, None, 0.0);
        let mut managed = Managed::new(Arc::new(settings()), ChallengeSender::new().0, is_reloaded);
        managed.continue_wait(back_off, NOW + 1);
        assert_eq!(managed.due(NOW + 1), expected, "{is_reloaded} {demanded:?}");
    }
}

#[test]
fn a_reload_while_the_state_directory_is_closed_ends_the_wait_in_it() {
    const NOW: u64 = 1_800_000_000;
    let mut back_off = BackOff::default();
    (0..6).for_each(|_| back_off.add(&Failure::new("refused"), NOW, None, 0.0));
    for (is_reloaded, expected) in [(false, NOW + 14_580), (true, 0)] {
        let mut managed = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
        managed.record_closed(Failure::new("another server uses it"), NOW);
        if is_reloaded {
            managed.retry();
        }
        managed.continue_wait(back_off.clone(), NOW + 1);
        assert_eq!(managed.due(NOW + 1), expected, "{is_reloaded}");
    }
}

// The operator has corrected the listeners, the contact or the directory of the state.
#[test]
fn other_settings_keep_what_is_known_about_the_same_certificate() {
    const NOW: u64 = 1_800_000_000;
    let with = |change: &dyn Fn(&mut Settings), wait| {
        let mut managed = Managed::new(Arc::new(settings()), ChallengeSender::new().0, false);
        managed.record(Err(Failure { wait, ..Failure::new("refused") }), NOW);
        managed.unsaved = Some(Issued { chain: String::new(), key: String::new().into() });
        let mut other = settings();
        change(&mut other);
        let managed = managed.with(Arc::new(other));
        (managed.due(NOW + 1), managed.unsaved.is_some())
    };
    let moved = |settings: &mut Settings| settings.acme.state_directory = "/elsewhere".into();
    let in_capitals = |settings: &mut Settings| settings.acme.domains = vec!["TURN.example.org".to_owned()];
    let names = |settings: &mut Settings| settings.acme.domains.push("a.example.org".to_owned());
    let authority = |settings: &mut Settings| settings.acme.directory = "https://other.example.org/".to_owned();
    assert_eq!(with(&|settings| settings.challenges.truncate(1), None), (0, true));
    assert_eq!(with(&moved, Some(7_200)), (NOW + 7_200, true));
    assert_eq!(with(&in_capitals, Some(7_200)), (NOW + 7_200, true));
    assert_eq!(with(&names, Some(7_200)), (NOW + 1, false));
    assert_eq!(with(&authority, Some(7_200)), (NOW + 1, false));
}

fn settings() -> Settings {
    let acme = Acme::of(&["turn.example.org"]);
    Settings { acme, challenges: vec![AcmeChallenge::TlsAlpn01, AcmeChallenge::Http01] }
}
