//! Someone in a room: a window with the page.

use serde_json::{Value, json};

use crate::driver::Driver;
use crate::place::Servers;
use crate::support::TIMEOUT;

const OBSERVER: &str = include_str!("observer.js");

/// Calls `done` with the value of CONDITION as soon as it is true, or at the end of the time with what the page knows.
const WAIT: &str = r##"
    const [limit, done] = arguments;
    (async () => {
      const end = performance.now() + limit;
      for (;;) {
        let value, problem = null;
        try {
          const state = window.rooms.state;
          const [peer] = state.peers;
          value = await (CONDITION);
        } catch (error) {
          problem = String(error);
        }
        if (value) return done({ value });
        if (performance.now() > end) {
          const state = window.rooms?.state;
          const shown = document.querySelector("#join-problem")?.textContent;
          return done({ missing: JSON.stringify({ problem, shown, paths: await observer.paths(), state }) });
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    })();
"##;

/// A window with the page of a room.
pub(crate) struct Participant<'p> {
    servers: &'p Servers,
    pub(crate) driver: &'p dyn Driver,
    pub(crate) window: Value,
}

impl<'p> Participant<'p> {
    pub(crate) fn open(servers: &'p Servers, driver: &'p dyn Driver, url: &str) -> Self {
        let window = driver.open(&format!("{{ {OBSERVER} }}"));
        driver.navigate(&window, url);
        Self { servers, driver, window }
    }

    /// Waits until a JavaScript expression is true, and returns its value. `state` is that of the page, and `peer` its
    /// first peer.
    pub(crate) fn wait(&self, what: &str, condition: &str) -> Value {
        self.wait_minutes(1, what, condition)
    }

    /// The same, for what takes minutes.
    pub(crate) fn wait_minutes(&self, minutes: u32, what: &str, condition: &str) -> Value {
        let script = WAIT.replace("CONDITION", condition);
        let limit = u64::try_from(TIMEOUT.as_millis()).unwrap();
        // A script has a limit, too.
        for last in (0..minutes).map(|minute| minute + 1 == minutes) {
            let mut result = self.driver.execute_async(&self.window, &script, &[limit.into()]);
            let missing = &result["missing"];
            if missing.is_null() {
                return result["value"].take();
            }
            let (browser, output) = (self.driver.name(), self.servers.output());
            assert!(!last, "{browser} waited {minutes} × {TIMEOUT:?} {what}: {missing}\n{output}");
        }
        unreachable!("the last minute returns or panics")
    }

    /// Runs the body of an asynchronous JavaScript function and returns its result.
    pub(crate) fn run(&self, body: &str) -> Value {
        let script = format!(
            "const done = arguments[0];
             (async () => {{ {body} }})().then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));"
        );
        let mut result = self.driver.execute_async(&self.window, &script, &[]);
        assert!(result["error"].is_null(), "{body}: {}", result["error"]);
        result["value"].take()
    }

    /// Waits until this many more frames of each peer have been decoded than at the call.
    pub(crate) fn wait_for_frames(&self, more: u32) {
        self.wait("for a peer", "state.peers.length > 0");
        let before = self.run("return rooms.state.peers.map(({ framesDecoded }) => framesDecoded ?? 0);");
        let condition = format!(
            "state.peers.length === {before}.length &&
               state.peers.every(({{ framesDecoded }}, i) => framesDecoded >= {before}[i] + {more})"
        );
        self.wait(&format!("for {more} more frames than {before}"), &condition);
    }

    /// Returns the paths of all connections, after it has asserted that they lead through the relay on both sides, and
    /// that this side reaches the relay by a transport.
    pub(crate) fn paths_over(&self, transport: &str) -> Vec<Value> {
        self.paths_over_one_of(&[transport])
    }

    /// The same, for one of several transports.
    fn paths_over_one_of(&self, transports: &[&str]) -> Vec<Value> {
        let assert_path = |path: &Value| {
            assert_eq!((&path["local"], &path["remote"]), (&json!("relay"), &json!("relay")), "{path}");
            let used = path["relayProtocol"].as_str();
            assert!(used.is_some_and(|used| transports.contains(&used)), "not over {transports:?}: {path}");
        };
        let paths = self.run("return observer.paths();").as_array().unwrap().clone();
        assert!(!paths.is_empty(), "no connection");
        paths.iter().for_each(assert_path);
        // The page says the same.
        let shown = self.wait(
            "for the pairs of the page",
            "[...state.peers, state.sfu.publish, state.sfu.subscribe].map((link) => link?.pair).filter(Boolean)",
        );
        shown.as_array().unwrap().iter().for_each(assert_path);
        paths
    }

    /// Waits until the connection leads through the relay on both sides: it may begin with a worse path. Returns the
    /// transport by which this side reaches the relay, which is one of those given.
    pub(crate) fn wait_for_relay(&self, transports: &[&str]) -> String {
        let settled = format!(
            "[(await observer.paths())[0], peer.pair].every((path) => path?.local === 'relay' && path.remote === 'relay' &&
               {}.includes(path.relayProtocol))",
            json!(transports)
        );
        self.wait("for the path through the relay", &settled);
        let path = self.paths_over_one_of(transports).remove(0);
        path["relayProtocol"].as_str().unwrap().to_owned()
    }

    /// Returns the milliseconds from the navigation to the first decoded frame.
    pub(crate) fn first_frame(&self) -> u64 {
        let time = self.wait("for the first frame", "observer.firstFrame && Math.round(observer.firstFrame)");
        time.as_u64().unwrap()
    }
}
