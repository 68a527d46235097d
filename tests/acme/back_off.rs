//! A wait after a failure outlives the process and other settings, and a certificate that was issued is not ordered again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use turnserver::clock::unix_seconds;

use crate::issue::isolated;
use crate::pebble::{NAME, Place, TLS, USUAL, files, presented, status, trusted, wait_for, wait_for_state, wait_until};
use crate::proxy::{Proxy, Reply};
use crate::support::Controlled;

/// Ends the server as a crash does.
fn kill(controlled: Controlled) {
    controlled.server.signal(Signal::SIGKILL);
    controlled.server.finish();
}

/// Reloads with another configuration.
fn reload(controlled: &Controlled, config: &str) {
    let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
    controlled.server.write_config(&(config.to_owned() + &control));
    controlled.lines(&["reload"]);
}

fn next_try(controlled: &Controlled) -> Option<u64> {
    wait_for_state(controlled, "failed")["next_try"].as_u64()
}

// RFC 8555 §6.6
#[test]
fn a_wait_that_the_authority_demands_outlives_crashes_and_other_listeners_but_is_not_for_other_names() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let is_limited = Arc::new(AtomicBool::new(true));
        let limited = Arc::clone(&is_limited);
        let proxy = Proxy::start(&place, move |path| match path {
            "/order-plz" if limited.load(Ordering::Relaxed) => Reply::Own(
                429,
                "Retry-After: 7200\r\n",
                r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders"}"#,
            ),
            _ => Reply::Forward,
        });
        let config = |names: &[&str], more: &str| place.config_at(proxy.directory(), names, TLS, more);
        let controlled = Controlled::start_with(&config(&[NAME], ""));
        wait_for(&controlled, "acme-failed", 1);
        let next = next_try(&controlled);
        assert!((7_100..7_300).contains(&(next.unwrap() - unix_seconds())), "{next:?}");
        assert!(files(&place).contains(&("back".to_owned(), 0o600)), "{:?}", files(&place));

        let more = "contact = \"mailto:a@example.org\"\n[http]\nlisten = [\"127.0.0.1:80\"]\n";
        reload(&controlled, &config(&[NAME], more));
        assert_eq!(next_try(&controlled), next);
        kill(controlled);
        kill(Controlled::start_with(&config(&[NAME], more)));
        let again = Controlled::start_with(&config(&[NAME], more));
        let kept = wait_for(&again, "acme-back-off", 1);
        assert!(kept.contains("too many new orders") && kept.contains("as the authority demands"), "{kept}");
        again.lines(&["reload"]);
        assert_eq!(next_try(&again), next);

        is_limited.store(false, Ordering::Relaxed);
        reload(&again, &config(&[NAME, "other.example.org"], ""));
        wait_for(&again, "certificate", 1);
        trusted(&place, TLS, "other.example.org");
        // Nothing else was ordered for the first name alone. Pebble may have refused the nonce of the last order.
        let requests = proxy.requests();
        let orders = requests.iter().filter(|request| request.path == "/order-plz");
        assert_eq!(orders.filter(|order| !order.payload.contains("other.example.org")).count(), 1, "{requests:?}");
        assert!(files(&place).iter().all(|(name, _)| name != "back"), "{:?}", files(&place));
    });
}

#[test]
fn a_server_that_crashes_while_it_orders_waits_longer_at_each_start_until_the_operator_reloads() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let is_silent = Arc::new(AtomicBool::new(true));
        let silent = Arc::clone(&is_silent);
        let proxy = Proxy::start(&place, move |path| match path {
            "/order-plz" if silent.load(Ordering::Relaxed) => Reply::Silence,
            _ => Reply::Forward,
        });
        let config = place.config_at(proxy.directory(), &[NAME], TLS, "");
        let orders_are = |count: usize| {
            wait_until(|| proxy.count("/order-plz") == count, "nothing is ordered");
        };
        let first = Controlled::start_with(&config);
        orders_are(1);
        kill(first);
        let second = Controlled::start_with(&config);
        let kept = wait_for(&second, "acme-back-off", 1);
        assert!(kept.contains("the server ended before the order did") && kept.contains("or at a reload"), "{kept}");
        let next = next_try(&second).unwrap();
        kill(second);
        let third = Controlled::start_with(&config);
        assert_eq!(next_try(&third), Some(next));
        orders_are(1);
        // Only the operator ends the wait.
        third.lines(&["reload"]);
        orders_are(2);
        kill(third);
        let fourth = Controlled::start_with(&config);
        let shown = wait_for_state(&fourth, "failed");
        assert_eq!(shown["failures"], 2, "{shown}");
        assert!(shown["next_try"].as_u64().unwrap() > unix_seconds() + 120, "{shown}");
        is_silent.store(false, Ordering::Relaxed);
        fourth.lines(&["reload"]);
        wait_for(&fourth, "certificate", 1);
        trusted(&place, TLS, NAME);
        assert_eq!(wait_for_state(&fourth, "waiting")["failures"], 0);
    });
}

#[test]
fn a_certificate_that_could_not_be_written_is_written_later_without_another_order() {
    // To the same directory, and to another one.
    for is_moved in [false, true] {
        isolated(|| {
            let place = Place::new();
            let _pebble = place.pebble(USUAL);
            let (state, away) = (place.state(), place.directory.path().join("away"));
            let (from, to) = (state.clone(), away.clone());
            // Between the order and its end, the directory disappears.
            let proxy = Proxy::start(&place, move |path| {
                if path.starts_with("/certZ/") && from.exists() {
                    std::fs::rename(&from, &to).unwrap();
                }
                Reply::Forward
            });
            let config = place.config_at(proxy.directory(), &[NAME], TLS, "");
            let controlled = Controlled::start_with(&config);
            let failed = wait_for(&controlled, "acme-failed", 1);
            assert!(failed.contains("cannot be written (`tls.acme.state-directory`)"), "{failed}");
            presented(TLS, NAME).unwrap_err();
            let orders = proxy.count("/order-plz");
            if is_moved {
                reload(&controlled, &config.replace(state.to_str().unwrap(), away.to_str().unwrap()));
            } else {
                std::fs::rename(&away, &state).unwrap();
                controlled.lines(&["reload"]);
            }
            wait_for(&controlled, "certificate", 1);
            trusted(&place, TLS, NAME);
            assert_eq!(controlled.events("acme-ordering"), 1);
            assert_eq!(proxy.count("/order-plz"), orders);
            assert_eq!(status(&controlled)["failures"], 0);
        });
    }
}
