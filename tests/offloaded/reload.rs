//! A new configuration while the kernel relays.

use crate::call::Call;
use crate::world::{PEERS, World, with_server};

fn entries(world: &World<'_>) -> [u64; 2] {
    let offload = world.offload();
    ["to_peers", "to_clients"].map(|to| offload["entries"][to].as_u64().unwrap())
}

#[test]
fn a_peer_that_is_denied_gets_nothing_after_the_reload() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        world.reload(|config| config.replace("[peers]\n", &format!("[peers]\ndeny = [\"{}\"]\n", PEERS[0])));
        call.assert_nothing_arrives();
        assert_eq!(entries(world), [0, 0]);
        call.check();
        call.end();
    });
}

#[test]
fn a_limit_on_bytes_leads_through_user_space_until_it_is_removed() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        for key in ["bytes-per-second-per-allocation", "bytes-per-second-per-user"] {
            world.reload(|config| format!("{config}[limits]\n{key} = 1000000\n"));
            call.wait_for_user_space("limits the bytes per second");
            assert_eq!(entries(world), [0, 0]);
            assert_eq!(world.offload()["in_user_space"]["byte-rate"], 2);
            call.exchange_in_user_space();
            world.reload(str::to_owned);
            call.wait_for_kernel();
            assert_eq!(entries(world), [1, 1]);
            call.exchange_in_kernel();
        }
        call.end();
    });
}

#[test]
fn a_reload_that_changes_nothing_for_a_call_loses_nothing() {
    with_server("", |world| {
        let call = Call::start(world);
        for limit in [10, 20, 30] {
            world.reload(|config| format!("{config}[limits]\nallocations-per-user = {limit}\n"));
            call.exchange(&[&[1; 100], &[2; 200]]);
            call.wait_for_kernel();
            call.check();
        }
        call.end();
    });
}
