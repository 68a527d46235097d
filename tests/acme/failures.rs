//! What can go wrong. Each failure says what is wrong, and leaves TLS serving.

use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use turnserver::clock::unix_seconds;

use crate::issue::{Call, isolated};
use crate::pebble::{
    DIRECTORY, NAME, Place, Settings, TLS, USUAL, presented, status, trusted, wait_for, wait_for_other, wait_for_state,
    wait_until,
};
use crate::proxy::{Proxy, Reply};
use crate::support::client::Client;
use crate::support::{Controlled, TempDir, skip};

const MORE: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

/// A server that has a certificate for [`NAME`], and a call over TLS.
struct Served {
    controlled: Controlled,
    call: Call,
    certificate: Vec<u8>,
}

impl Served {
    fn start(place: &Place, config: &str) -> Self {
        let controlled = Controlled::start_with(config);
        wait_for(&controlled, "certificate", 1);
        let call = Call::begin(Client::on_tls(trusted(place, TLS, NAME)));
        let certificate = presented(TLS, NAME).unwrap();
        Self { controlled, call, certificate }
    }

    /// Reloads with another configuration.
    fn reload(&self, config: &str) {
        let control = format!("[control]\nsocket = {:?}\n", self.controlled.socket);
        self.controlled.server.write_config(&(config.to_owned() + &control));
        self.controlled.lines(&["reload"]);
    }

    /// Checks that an order has failed for this reason, and that the old certificate is served.
    fn assert_failed(&mut self, failures: usize, reason: &str) {
        let failed = wait_for(&self.controlled, "acme-failed", failures);
        assert!(failed.contains(reason), "{failed}");
        assert_eq!(presented(TLS, NAME).unwrap(), self.certificate);
        self.call.relay();
        let shown = wait_for_state(&self.controlled, "failed");
        assert!(shown["last_error"].as_str().unwrap().contains(reason), "{shown}");
        let lines = self.controlled.lines(&["certificates"]).join("\n");
        assert!(lines.contains(reason) && lines.contains("next try"), "{lines}");
    }
}

/// Names of which the second one needs another order.
const TWO: [&str; 2] = [NAME, "other.example.org"];

#[test]
fn a_refused_challenge_says_what_the_authority_has_seen() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let mut served = Served::start(&place, &place.config(&[NAME], MORE));
        // Nothing listens there.
        place.point(TWO[1], "127.0.0.2");
        served.reload(&place.config(&TWO, MORE));
        served.assert_failed(1, "Failed to connect to 127.0.0.2:443");
        let failed = wait_for(&served.controlled, "acme-failed", 1);
        assert!(failed.contains("other.example.org was not approved: "), "{failed}");
        // Once that is corrected, a reload is enough.
        place.point(TWO[1], "127.0.0.1");
        served.controlled.lines(&["reload"]);
        wait_for_other(TLS, NAME, &served.certificate);
        served.call.relay();
        assert_eq!(wait_for_state(&served.controlled, "waiting")["failures"], 0);
    });
}

// RFC 8555 §6.6
#[test]
fn a_rate_limit_is_kept_even_if_the_operator_reloads() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let is_limited = std::sync::Arc::new(std::sync::atomic::AtomicBool::default());
        let limited = std::sync::Arc::clone(&is_limited);
        let proxy = Proxy::start(&place, move |path| match path {
            "/order-plz" if limited.load(std::sync::atomic::Ordering::Relaxed) => Reply::Own(
                429,
                "Retry-After: 7200\r\n",
                r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders"}"#,
            ),
            _ => Reply::Forward,
        });
        let config = |names: &[&str]| place.config_at(proxy.directory(), names, TLS, MORE);
        let mut served = Served::start(&place, &config(&[NAME]));
        is_limited.store(true, std::sync::atomic::Ordering::Relaxed);
        served.reload(&config(&TWO));
        served.assert_failed(1, "the authority limits the rate of orders: too many new orders (rateLimited)");
        let next = status(&served.controlled)["next_try"].as_u64().unwrap();
        assert!((7_100..7_300).contains(&(next - unix_seconds())), "{next}");
        let orders = || proxy.paths().iter().filter(|path| *path == "/order-plz").count();
        let before = orders();
        served.controlled.lines(&["reload"]);
        served.controlled.lines(&["reload"]);
        assert_eq!((orders(), status(&served.controlled)["next_try"].as_u64()), (before, Some(next)));
    });
}

#[test]
fn a_directory_that_is_away_or_hostile_leaves_the_old_certificate() {
    isolated(|| {
        let place = Place::new();
        let pebble = place.pebble(USUAL);
        let mut served = Served::start(&place, &place.config(&[NAME], MORE));
        drop(pebble);
        served.reload(&place.config(&TWO, MORE));
        served.assert_failed(1, "127.0.0.1:14000: cannot connect to 127.0.0.1");

        let mode = std::sync::Arc::new(std::sync::atomic::AtomicUsize::default());
        let rule = std::sync::Arc::clone(&mode);
        let proxy = Proxy::start(&place, move |_| match rule.load(std::sync::atomic::Ordering::Relaxed) {
            0 => Reply::Endless,
            1 => Reply::Own(302, "Location: https://127.0.0.1:1/\r\n", ""),
            2 => Reply::Own(200, "", r#"{"newNonce":"http://127.0.0.1/n","newAccount":"x","newOrder":"x"}"#),
            3 => Reply::Own(200, "Retry-After: 18446744073709551615\r\n", "[[[["),
            _ => Reply::Own(503, "", "<html>"),
        });
        served.reload(&place.config_at(proxy.directory(), &[NAME], TLS, MORE));
        served.assert_failed(2, "is longer than 256 KiB");
        for (next, reason) in [
            (1, "it redirects (302 Found)"),
            (2, "does not begin with https://"),
            (3, "something other than RFC 8555 describes"),
            (4, "it responded with 503 Service Unavailable"),
        ] {
            mode.store(next, std::sync::atomic::Ordering::Relaxed);
            served.controlled.lines(&["reload"]);
            served.assert_failed(next + 2, reason);
        }
    });
}

// RFC 8555 §6.7: pebble forgets every account when it is restarted.
#[test]
fn an_account_that_the_authority_has_forgotten_is_made_anew_once() {
    isolated(|| {
        let place = Place::new();
        let pebble = place.pebble(USUAL);
        let mut served = Served::start(&place, &place.config(&[NAME], MORE));
        drop(pebble);
        let _pebble = place.pebble(USUAL);
        served.reload(&place.config(&TWO, MORE));
        let lost = wait_for(&served.controlled, "acme-account-lost", 1);
        assert!(lost.contains("accountDoesNotExist"), "{lost}");
        wait_for(&served.controlled, "acme-account", 2);
        wait_for_other(TLS, NAME, &served.certificate);
        served.call.relay();
        assert_eq!((served.controlled.events("acme-account"), served.controlled.events("acme-failed")), (2, 0));
    });
}

// RFC 9773 §5: an authority refuses to replace the certificate of another account, also with `unauthorized`.
#[test]
fn an_account_is_kept_if_the_authority_refuses_that_an_order_replaces_a_certificate() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(Settings { life: 30, ..USUAL });
        let is_refused = std::sync::Arc::new(std::sync::atomic::AtomicBool::default());
        let refused = std::sync::Arc::clone(&is_refused);
        let proxy = Proxy::start(&place, move |path| match path {
            "/dir" => Reply::Directory("https://127.0.0.1:14001/renewal"),
            path if path.starts_with("/renewal/") => {
                let (start, end) = crate::proxy::window();
                Reply::RenewalInfo(start, end)
            }
            // Once.
            "/order-plz" if refused.swap(false, std::sync::atomic::Ordering::Relaxed) => Reply::Own(
                403,
                "",
                r#"{"type":"urn:ietf:params:acme:error:unauthorized","detail":"another account has ordered it"}"#,
            ),
            _ => Reply::Forward,
        });
        let controlled = Controlled::start_with(&place.config_at(proxy.directory(), &[NAME], TLS, MORE));
        wait_for(&controlled, "certificate", 1);
        is_refused.store(true, std::sync::atomic::Ordering::Relaxed);
        let first = presented(TLS, NAME).unwrap();
        wait_for_other(TLS, NAME, &first);
        assert!(!is_refused.load(std::sync::atomic::Ordering::Relaxed));
        let events = ["acme-account", "acme-account-lost", "acme-failed"].map(|event| controlled.events(event));
        assert_eq!(events, [1, 0, 0]);
    });
}

// RFC 8555 §7.3.6
#[test]
fn an_account_that_stays_deactivated_is_not_made_anew_for_ever() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let is_refused = std::sync::Arc::new(std::sync::atomic::AtomicBool::default());
        let refused = std::sync::Arc::clone(&is_refused);
        let proxy = Proxy::start(&place, move |path| match path {
            "/order-plz" if refused.load(std::sync::atomic::Ordering::Relaxed) => Reply::Own(
                403,
                "",
                r#"{"type":"urn:ietf:params:acme:error:unauthorized","detail":"the account is deactivated"}"#,
            ),
            _ => Reply::Forward,
        });
        let config = |names: &[&str]| place.config_at(proxy.directory(), names, TLS, MORE);
        let mut served = Served::start(&place, &config(&[NAME]));
        is_refused.store(true, std::sync::atomic::Ordering::Relaxed);
        served.reload(&config(&TWO));
        served.assert_failed(1, "the account is deactivated (unauthorized)");
        served.controlled.lines(&["reload"]);
        served.assert_failed(2, "the account is deactivated (unauthorized)");
        assert_eq!(served.controlled.events("acme-account-lost"), 1);
    });
}

#[test]
fn a_wrong_clock_stops_orders_and_leaves_the_old_certificate() {
    isolated(|| {
        // The program knows where its library is.
        let shown = Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let Some(library) = shown.ok().and_then(|shown| String::from_utf8(shown.stdout).ok()) else {
            return skip("the program faketime is missing");
        };
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let directory = TempDir::new();
        let shift = directory.write("shift", "+0\n");
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &shift).env("FAKETIME_NO_CACHE", "1");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let controlled = Controlled::start_by(&mut command, &place.config(&[NAME], MORE));
        wait_for(&controlled, "certificate", 1);
        let certificate = presented(TLS, NAME).unwrap();
        let mut call = Call::begin(Client::on_tls(trusted(&place, TLS, NAME)));
        let set = |seconds: i64| {
            let new = shift.with_extension("new");
            std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
            std::fs::rename(new, &shift).unwrap();
        };
        // The certificate seems to have expired. The certificate of the directory is valid for 90 days as well.
        set(80 * 86_400);
        controlled.lines(&["reload"]);
        let failed = wait_for(&controlled, "acme-failed", 1);
        assert!(failed.contains("which is 80 d ahead of the clock of the authority: set the clock"), "{failed}");
        call.relay();
        // There is no reload after the clock is set.
        set(0);
        let is_soon = || status(&controlled)["next_try"].as_u64().is_some_and(|next| next <= unix_seconds() + 80);
        wait_until(is_soon, "the next order is as late as the clock was ahead");
        set(-400 * 86_400);
        controlled.lines(&["reload"]);
        let failed = wait_for(&controlled, "acme-failed", 2);
        assert!(failed.contains("which is the time of this machine: check the clock"), "{failed}");
        assert_eq!(presented(TLS, NAME).unwrap(), certificate);
        call.relay();
    });
}

#[test]
fn a_state_directory_that_cannot_be_written_stops_orders_before_they_are_made() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let mut served = Served::start(&place, &place.config(&[NAME], MORE));
        let elsewhere = |path: &str| place.config(&[NAME], MORE).replace(place.state().to_str().unwrap(), path);
        served.reload(&elsewhere("/proc/turnserver"));
        served.assert_failed(1, "/proc/turnserver cannot be written (`tls.acme.state-directory`)");
        assert_eq!(served.controlled.events("acme-ordering"), 1);

        // Another server uses it.
        let other = TempDir::new();
        let state = other.path().to_str().unwrap().to_owned();
        let second = Controlled::start_with(
            &place
                .config_at(DIRECTORY, &[NAME], "127.0.0.3:443", MORE)
                .replace(place.state().to_str().unwrap(), &state),
        );
        second.event("acme-ordering");
        served.reload(&elsewhere(&state));
        served.assert_failed(2, "another server uses ");
    });
}

#[test]
fn a_full_disk_stops_an_order_before_it_is_made_and_room_ends_the_failure() {
    isolated(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        std::fs::create_dir(place.state()).unwrap();
        mount(Some("tmpfs"), &place.state(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
        let mut served = Served::start(&place, &place.config(&[NAME], MORE));
        // Until nothing fits.
        let filler = place.state().join("filler");
        let filled = std::fs::write(&filler, vec![1; 300 * 1024]);
        assert!(filled.is_err());
        served.reload(&place.config(&TWO, MORE));
        served.assert_failed(1, "No space left on device (os error 28); free some space");
        assert_eq!(served.controlled.events("acme-ordering"), 1);
        std::fs::remove_file(filler).unwrap();
        served.controlled.lines(&["reload"]);
        wait_for_other(TLS, NAME, &served.certificate);
    });
}
