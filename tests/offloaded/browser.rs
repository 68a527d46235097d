//! A headless Chromium calls itself over the offload (Debian packages `chromium` and `chromium-driver`). Needs the
//! feature `browser`.
//!
//! Only the caller uses the relay. The callee is the peer: two relayed transport addresses of one server would be
//! relayed in user space.

use serde_json::{Value, json};

use crate::interfaces::wait_until;
use crate::network::ip;
use crate::page::serve_page;
use crate::webdriver::Browser;
use crate::world::{CLIENTS, LISTENERS, RELAYS, in_host, with_server};

const BYTES: usize = 10 << 20;
/// The longest message of SCTP that Chromium sends in one packet, at most.
const LONGEST: usize = 1200;

#[test]
fn a_call_of_browsers_goes_through_the_kernel() {
    with_server("", |world| {
        let credential = world.controlled.server.credential("alice");
        let listener = world.controlled.server.udp_address_on(LISTENERS[0].parse().unwrap());
        let mut caller = credential.configuration.clone();
        caller["iceServers"][0]["urls"] = json!([format!("turn:{listener}?transport=udp")]);
        let callee = json!({ "iceServers": [], "iceTransportPolicy": "all" });
        let before = world.in_kernel();
        let report = in_host(&world.network.client, move || {
            // Chromium uses the address with which it would reach the internet.
            ip(&format!("route replace default via {}", LISTENERS[0]));
            let browser = Browser::with_addresses();
            browser.navigate(&format!("http://{}/", serve_page()));
            browser.execute_async(
                "const [configurations, bytes, done] = arguments;
                 call(configurations, bytes).then(done, (error) => done({ error: error.message }));",
                &[json!([caller, callee]), BYTES.into()],
            )
        });
        println!("browser over the offload: {report}");
        assert_eq!(report["error"], Value::Null, "server output:\n{:#?}", world.controlled.server.logs());
        assert_eq!((&report["receivedBytes"], &report["receivedHash"]), (&json!(BYTES), &report["sentHash"]));
        let pairs = report["pairs"].as_array().unwrap();
        assert_eq!(
            (&pairs[0]["local"]["candidateType"], &pairs[0]["local"]["address"]),
            (&json!("relay"), &json!(RELAYS[0]))
        );
        assert_eq!(pairs[1]["local"]["address"], CLIENTS[0]);

        // Nearly all data went through the kernel: only the first packets came before the channel.
        let relayed = wait_until(|| {
            let relayed = world.in_kernel().since(before);
            if relayed.bytes[0] > BYTES as u64 { Ok(relayed) } else { Err(format!("{relayed:?}")) }
        });
        println!("the kernel has relayed {relayed:?}");
        assert!(relayed.packets[0] > (BYTES / LONGEST) as u64 && relayed.packets[1] > 0, "{relayed:?}");
        world.assert_checksums();
    });
}
