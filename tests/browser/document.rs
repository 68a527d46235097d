//! The code of docs/webrtc.md makes a call of a page with itself.

use serde_json::{Value, json};

use crate::page::{Resource, serve};
use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::webdriver::Browser;

const DOCUMENT: &str = include_str!("../../docs/webrtc.md");

/// What the document leaves to the application: signalling, here within the page. Resolves to what the call showed.
const APPLICATION: &str = r#"
async function trial() {
  const errors = [];
  const ice = await fetchIce();
  const ends = [true, false].map((polite) => ({ polite, pc: connect(ice, { relayOnly: true }) }));
  ends.forEach((end, index) => {
    const other = ends[1 - index];
    // As through a server: serialized, in order.
    const send = (message) => setTimeout(() => other.receive(JSON.parse(JSON.stringify(message))));
    end.receive = negotiate(end.pc, { polite: end.polite, send });
    watchErrors(end.pc, (text) => errors.push(text));
    restartWhenNeeded(end.pc);
  });
  const [caller, callee] = ends.map(({ pc }) => pc);
  const channel = caller.createDataChannel("chat");
  const opposite = await new Promise((resolve) => { callee.ondatachannel = (event) => resolve(event.channel); });
  opposite.onmessage = ({ data }) => opposite.send(`${data}!`);
  const echo = (text) => new Promise((resolve) => {
    channel.onmessage = ({ data }) => resolve(data);
    channel.send(text);
  });
  if (channel.readyState !== "open") await new Promise((resolve) => { channel.onopen = resolve; });
  const first = { echo: await echo("one"), paths: [await path(caller), await path(callee)] };

  // Both sides offer at the same moment.
  const tracks = [caller, callee].map((pc) => new Promise((resolve) => { pc.ontrack = resolve; }));
  for (const pc of [caller, callee]) pc.addTransceiver("video");
  await Promise.all(tracks);

  const before = caller.localDescription.sdp.match(/ice-ufrag:(\S+)/)[1];
  await restart(caller);
  while (caller.signalingState !== "stable" || caller.localDescription.sdp.includes(`ice-ufrag:${before}`)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const second = { echo: await echo("two"), state: caller.connectionState };
  ends.forEach(({ pc }) => pc.close());

  // A wrong password is explained.
  const wrong = await fetchIce();
  wrong.iceServers[0].credential = "wrong";
  const refused = connect(wrong, { relayOnly: true });
  const explained = new Promise((resolve) => watchErrors(refused, resolve));
  refused.createDataChannel("chat");
  await refused.setLocalDescription();
  const explanation = await explained;
  refused.close();
  return { first, second, errors, explanation };
}
"#;

/// Returns the blocks of JavaScript, in their order.
fn code() -> String {
    let blocks = DOCUMENT.split("```js\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    blocks.collect()
}

fn the_code_of_the_document_makes_a_call(site: &Site) {
    let server = site.start(&site.config(&[V4], ""));
    let mut ice = server.credential("alice").configuration;
    let urls = ice["iceServers"][0]["urls"].as_array_mut().unwrap();
    urls.retain(|url| url.as_str().unwrap().ends_with("?transport=udp"));
    ice["expires"] = json!(0);
    let page =
        format!("<!doctype html><title>docs/webrtc.md</title><script>\"use strict\";{}{APPLICATION}</script>", code());
    let address = serve(vec![
        Resource { request: "GET / ", kind: "text/html", body: page },
        Resource { request: "POST /api/ice ", kind: "application/json", body: ice.to_string() },
    ]);
    let browser = Browser::start();
    browser.navigate(&format!("http://{address}/"));
    let report = browser.execute_async(
        "const done = arguments[0];
         trial().then(done, (error) => done({ error: `${error.message} ${error.stack}` }));",
        &[],
    );
    println!("docs/webrtc.md: {report}");
    assert_eq!(report["error"], Value::Null, "server output:\n{:#?}", server.logs());
    assert_eq!((&report["first"]["echo"], &report["second"]["echo"]), (&json!("one!"), &json!("two!")));
    for path in report["first"]["paths"].as_array().unwrap() {
        assert_eq!((&path["local"], &path["remote"]), (&json!("relay"), &json!("relay")), "{report}");
        assert_eq!(path["relayProtocol"], "udp");
        assert!(path["roundTripMs"].as_u64().is_some(), "{report}");
    }
    assert_eq!(report["second"]["state"], "connected");
    assert_eq!(report["errors"], json!([]));
    assert!(report["explanation"].as_str().unwrap().contains("rejects the credential"), "{report}");
}

on_each_site! {
    the_code_of_docs_webrtc_md_makes_a_call: the_code_of_the_document_makes_a_call;
}
