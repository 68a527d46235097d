use std::sync::Mutex;

use super::*;
use crate::privacy::{ClientAddresses, Usernames};
use crate::turn::{
    AllocationSummary, AuthCause, Denial, DropReason, EndReason, FiveTuple, SocketId, Traffic, Transport,
};

/// Settings that hide nothing.
fn open() -> Arc<Privacy> {
    Arc::new(Privacy::new(ClientAddresses::Full, Usernames::Full, [0; 32]))
}

fn at(second: u64) -> Instant {
    Instant::from_elapsed(Duration::from_secs(second))
}

/// Collects the log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the lines that `work` logs at level *info* and above.
pub(in crate::worker) fn logged(work: impl FnOnce()) -> Vec<String> {
    logged_at(tracing::Level::INFO, work)
}

fn logged_at(level: tracing::Level, work: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    lines.0.lock().unwrap().clone()
}

fn tuple() -> FiveTuple {
    let address = |text: &str| text.parse().unwrap();
    let (client, server) = (address("192.0.2.1:5000"), address("192.0.2.200:3478"));
    FiveTuple { client, server, transport: Transport::Udp }
}

/// The rate-limited events of the core, and their lines per minute.
fn events() -> Vec<(Event, usize)> {
    let (user, username, tuple, relay) = ("ann".to_owned(), "ann".to_owned(), tuple(), tuple().server);
    let id = SocketId::for_tests(0).allocation();
    let summary = AllocationSummary {
        id,
        user: user.clone(),
        tuple,
        relay: relay.into(),
        duration: WINDOW,
        traffic: Traffic::default(),
        reason: EndReason::Deleted,
    };
    let redirected = |cause| Event::AllocationRedirected { user: "ann".to_owned(), tuple, server: relay, cause };
    let denied =
        |label| Event::PeerDenied { id, user: "ann".to_owned(), tuple, peer: relay, denial: Denial::Special(label) };
    let reading = crate::auth::time_limited::Reading::ExpiryFirst;
    let mut events = vec![
        (Event::AllocationCreated { id, user: user.clone(), tuple, relay: relay.into(), lifetime: 600 }, 600),
        (Event::AllocationEnded(Box::new(summary)), 600),
        (Event::PeersRevoked { id, user: user.clone(), tuple, permissions: 1, channels: 1 }, 6_000),
        (Event::AuthenticationFailed { id: None, username, tuple, cause: AuthCause::Expired { ago: 5, reading } }, 5),
        (Event::SourceWaits { id: None, username: "ann".to_owned(), tuple, waiting: Waiting::User }, 5),
        (Event::Rfc5766Channel { id, user: user.clone(), tuple, number: 0x5000 }, 5),
        (Event::AllocationRejected { user: user.clone(), tuple, reason: "tunnel" }, 5),
        (redirected(RedirectCause::Limit(Limit::RelayPorts)), 5),
        (denied("loopback"), 1),
        (denied("private"), 1),
    ];
    let limits =
        Limit::ALL.iter().map(|limit| Event::LimitReached { id: None, user: user.clone(), tuple, limit: *limit });
    events.extend(limits.map(|event| (event, 5)));
    events
}

// Each kind has its own limit.
#[test]
fn events_are_rate_limited_per_minute_and_summed_up() {
    for (event, most) in events() {
        let mut log = EventLog::new(0, open());
        let mut minute = |from: u64| {
            logged(|| {
                (0..10_000).for_each(|_| log.log(at(from), &event));
                (1..=60).for_each(|second| log.tick(at(from + second)));
            })
        };
        for (round, from) in [0, 70].into_iter().enumerate() {
            let lines = minute(from);
            if most == 1 {
                // Logged only once.
                assert_eq!(lines.len(), 1 - round, "{event:?}");
                continue;
            }
            assert_eq!(lines.len(), most + 1, "{event:?}");
            let sum = &lines[most];
            assert!(sum.contains(&format!("count={}", 10_000 - most)), "{sum}");
        }
    }
}

#[test]
fn the_churn_of_a_few_users_does_not_hide_the_allocations_of_others() {
    let created = |user: String| Event::AllocationCreated {
        id: SocketId::for_tests(0).allocation(),
        user,
        tuple: tuple(),
        relay: tuple().server.into(),
        lifetime: 600,
    };
    let mut log = EventLog::new(0, open());
    let lines = logged(|| {
        for user in 0..20 {
            (0..10_000).for_each(|_| log.log(at(1), &created(format!("churn {user}"))));
        }
    });
    assert!((3_000..6_000).contains(&lines.len()), "{}", lines.len());
    // A user may share a counter with one of the others.
    let others = logged(|| (0..20).for_each(|user| log.log(at(2), &created(format!("caller {user}")))));
    assert!(others.len() >= 18, "{others:?}");
    // The next minute is not affected, and the sum contains the lines of every user.
    let sum = logged(|| log.tick(at(61)));
    let suppressed = 20 * 10_000 + 20 - lines.len() - others.len();
    assert!(sum[0].contains(&format!("count={suppressed}")), "{sum:?}");
    assert_eq!(logged(|| log.log(at(61), &created("churn 0".to_owned()))).len(), 1);
}

#[test]
fn no_event_names_a_client_or_a_user_against_the_settings() {
    let settings = [(ClientAddresses::Prefix, Usernames::Hash), (ClientAddresses::None, Usernames::None)];
    for (addresses, names) in settings {
        let privacy = Arc::new(Privacy::new(addresses, names, [7; 32]));
        for (event, _) in events() {
            let mut log = EventLog::new(0, Arc::clone(&privacy));
            let line = logged_at(tracing::Level::DEBUG, || log.log(at(1), &event)).concat();
            assert!(line.contains("event="), "{line}");
            assert!(!line.contains("192.0.2.1:") && !line.contains("\"ann\""), "{line}");
            assert_eq!(line.contains("client=192.0.2.0/24"), addresses == ClientAddresses::Prefix, "{line}");
            assert_eq!(line.contains(" user=\""), names == Usernames::Hash, "{line}");
        }
    }
}

#[test]
fn one_kind_of_event_does_not_hide_another() {
    let mut log = EventLog::new(0, open());
    let lines = logged(|| {
        for (event, _) in events().into_iter().cycle().take(events().len() * 4) {
            log.log(at(1), &event);
        }
    });
    assert_eq!(lines.len(), (events().len() - 2) * 4 + 2);
}

// A browser or a scanner may try again and again.
#[test]
fn connections_for_another_kind_of_listener_are_one_line_a_minute_and_a_sum() {
    let mut log = EventLog::new(0, open());
    let mut minute = |from: u64| {
        logged(|| {
            for _ in 0..10 {
                log.plain_on_tls(at(from), tuple());
                log.tls_without_certificate(at(from), tuple());
            }
            log.tick(at(from + 60));
        })
    };
    for from in [0, 70] {
        let lines = minute(from);
        let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
        let parts = ["without TLS to a port of listen.tls", "but the server has no certificate", "count=9"];
        assert_eq!((parts.map(count), lines.len()), ([1, 1, 2], 4), "{lines:?}");
    }
}

// The level debug is for a search after a fault. A flood during the search must not fill the disk.
#[test]
fn lines_about_packets_are_limited_for_each_outcome() {
    let (dropped, rejected) = (Outcome::Dropped(DropReason::NoAllocation), Outcome::RejectedByLimit(Limit::ALL[0]));
    let (client, peer) = (Host::Client(tuple().client), Host::Peer(tuple().server));
    let lines = logged_at(tracing::Level::DEBUG, || {
        let mut log = PacketLog::new(open());
        (0..10_000).for_each(|_| log.log_at(at(1), client, dropped, 1));
        log.log_at(at(1), peer, rejected, 3);
        log.tick(at(61));
        log.finish();
    });
    assert_eq!(lines.len(), 1_002);
    assert!(
        lines[0].contains(&format!("{dropped} event=\"packet-failed\" client=192.0.2.1:5000 packets=1")),
        "{}",
        lines[0]
    );
    assert!(
        lines[1_000].contains(&format!("{rejected} event=\"packet-failed\" peer=192.0.2.200:3478 packets=3")),
        "{}",
        lines[1_000]
    );
    assert!(lines[1_001].contains(&dropped.to_string()) && lines[1_001].contains("count=9000"), "{}", lines[1_001]);
}

#[test]
fn packets_are_logged_only_at_level_debug_and_only_failures() {
    let mut log = PacketLog::new(open());
    let (clock, client) = (Clock::start(), Host::Client(tuple().client));
    let dropped = Outcome::Dropped(DropReason::NoAllocation);
    let mut lines = |level, outcome| logged_at(level, || log.log(&clock, client, outcome, 1)).len();
    assert_eq!(lines(tracing::Level::INFO, dropped), 0);
    assert_eq!(lines(tracing::Level::DEBUG, Outcome::RelayedToPeer), 0);
    assert_eq!(lines(tracing::Level::DEBUG, dropped), 1);
}

#[test]
fn a_limit_is_logged_with_its_setting_the_user_and_the_client() {
    for limit in Limit::ALL {
        let event = Event::LimitReached { id: None, user: "ann".to_owned(), tuple: tuple(), limit: *limit };
        let lines = logged(|| EventLog::new(0, open()).log(at(1), &event));
        let setting = format!("limit=\"{}\"", for_operator(limit.setting()));
        for part in [" WARN ", "user=\"ann\"", "client=192.0.2.1:5000", &setting, limit.note()] {
            assert!(lines[0].contains(part), "{part} in {lines:?}");
        }
    }
}

#[test]
fn a_window_allows_a_few_lines_and_counts_the_rest() {
    let mut limit = RateLimit::of(LINES);
    assert_eq!((0..1_000).filter(|_| limit.allows(at(1))).count(), 5);
    assert_eq!(limit.summary(at(60)), None);
    assert_eq!(limit.summary(at(61)), Some(995));
    assert_eq!(limit.summary(at(62)), None);
    assert!(limit.allows(at(62)));
}

#[test]
fn a_stop_reports_suppressed_lines_before_the_window_ends() {
    let mut limit = RateLimit::of(LINES);
    assert_eq!((0..7).filter(|_| limit.allows(at(1))).count(), 5);
    assert_eq!((limit.rest(), limit.rest()), (Some(2), None));
}

#[test]
fn each_line_about_an_existing_allocation_names_its_session() {
    let id = SocketId::for_tests(2 * 17).allocation();
    let (user, tuple, peer) = (|| "ann".to_owned(), tuple(), tuple().server);
    let cause = AuthCause::Failure(crate::auth::AuthFailure::WrongPassword);
    let events = |id: AllocationId| {
        let at = Some(id);
        [
            Event::AllocationCreated { id, user: user(), tuple, relay: peer.into(), lifetime: 600 },
            Event::PeerDenied { id, user: user(), tuple, peer, denial: Denial::Operator },
            Event::Rfc5766Channel { id, user: user(), tuple, number: 0x5000 },
            Event::PeersRevoked { id, user: user(), tuple, permissions: 1, channels: 1 },
            Event::LimitReached { id: at, user: user(), tuple, limit: Limit::Permissions },
            Event::AuthenticationFailed { id: at, username: user(), tuple, cause },
            Event::SourceWaits { id: at, username: user(), tuple, waiting: Waiting::User },
        ]
    };
    for event in events(id) {
        let lines = logged(|| EventLog::new(3, open()).log(at(0), &event));
        assert!(lines[0].contains(" session=3-17-0 "), "{lines:?}");
    }
    let closed = logged(|| EventLog::new(3, open()).allocated_connections_exceeded(at(0), tuple.client, Some(id)));
    assert!(closed[0].contains(" session=3-17-0 "), "{closed:?}");
    let limit = Event::LimitReached { id: None, user: user(), tuple, limit: Limit::AllocationsPerUser };
    let lines = logged(|| EventLog::new(3, open()).log(at(0), &limit));
    assert!(!lines[0].contains("session"), "{lines:?}");
}
