//! A minimal client of WebDriver BiDi (<https://w3c.github.io/webdriver-bidi/>), which Firefox speaks without another
//! program.

use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::driver::Driver;
use crate::support::{Process, TIMEOUT, TempDir};
use crate::webdriver::SCRIPT_LIMIT;

const PACKAGE: &str = "firefox-esr";

/// Pages play sound without a click, and everything happens on loopback addresses or in the networks of the tests.
const PREFERENCES: [(&str, &str); 10] = [
    ("app.normandy.enabled", "false"),
    ("browser.safebrowsing.malware.enabled", "false"),
    ("browser.safebrowsing.phishing.enabled", "false"),
    ("datareporting.policy.dataSubmissionEnabled", "false"),
    ("media.autoplay.blocking_policy", "0"),
    ("media.autoplay.default", "0"),
    ("media.peerconnection.ice.loopback", "true"),
    ("network.captive-portal-service.enabled", "false"),
    ("network.connectivity-service.enabled", "false"),
    ("services.settings.server", "\"data:,#remote-settings-dummy/v1\""),
];

/// A headless Firefox with its own profile. Dropping it stops the browser.
pub(crate) struct Firefox {
    connection: Mutex<Connection>,
    process: Process,
    _profile: TempDir,
}

struct Connection {
    socket: WebSocket<TcpStream>,
    commands: u64,
}

impl Firefox {
    /// Starts a browser that accepts every certificate.
    pub(crate) fn start() -> Self {
        let profile = TempDir::new();
        let lines = PREFERENCES.map(|(name, value)| format!("user_pref(\"{name}\", {value});\n"));
        profile.write("user.js", &lines.concat());
        let mut command = Command::new("firefox-esr");
        command.args(["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"]).arg(profile.path());
        // Files outside of the profile go there, too.
        command.env("HOME", profile.path());
        let process = Process::start(&mut command, Some(PACKAGE));
        let url = process.stderr.wait_for(TIMEOUT, |lines| {
            lines.iter().find_map(|line| Some(line.split_once("BiDi listening on ws://")?.1.to_owned()))
        });
        let address = url.unwrap_or_else(|| panic!("Firefox does not start; its output:\n{}", process.output()));
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(SCRIPT_LIMIT + TIMEOUT)).unwrap();
        let (socket, _) = client(format!("ws://{address}/session"), stream).unwrap();
        let connection = Mutex::new(Connection { socket, commands: 0 });
        let firefox = Self { connection, process, _profile: profile };
        firefox.command("session.new", &json!({ "capabilities": { "alwaysMatch": { "acceptInsecureCerts": true } } }));
        firefox
    }

    /// Sends a command and returns its result.
    fn command(&self, method: &str, parameters: &Value) -> Value {
        let response = self.connection.lock().unwrap().exchange(method, parameters);
        response.unwrap_or_else(|error| panic!("{method}: {error}; output of Firefox:\n{}", self.process.output()))
    }
}

impl Connection {
    fn exchange(&mut self, method: &str, parameters: &Value) -> Result<Value, String> {
        self.commands += 1;
        let command = json!({ "id": self.commands, "method": method, "params": parameters });
        self.socket.send(Message::text(command.to_string())).map_err(|error| error.to_string())?;
        loop {
            let message = self.socket.read().map_err(|error| error.to_string())?;
            let Message::Text(text) = message else { continue };
            let mut response: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            if response["id"] == self.commands {
                let succeeded = response["type"] == "success";
                return if succeeded { Ok(response["result"].take()) } else { Err(response.to_string()) };
            }
        }
    }
}

impl Driver for Firefox {
    fn name(&self) -> &'static str {
        "Firefox"
    }

    fn open(&self, preload: &str) -> Value {
        let window = self.command("browsingContext.create", &json!({ "type": "window" }))["context"].take();
        let script = json!({ "functionDeclaration": format!("() => {{ {preload} }}"), "contexts": [window] });
        self.command("script.addPreloadScript", &script);
        window
    }

    fn navigate(&self, window: &Value, url: &str) {
        self.command("browsingContext.navigate", &json!({ "context": window, "url": url, "wait": "complete" }));
    }

    fn execute_async(&self, window: &Value, script: &str, arguments: &[Value]) -> Value {
        // The result travels as text, because BiDi has an encoding of its own for values.
        let function = format!(
            "(values) => new Promise((resolve) => {{
               const done = (value) => resolve(JSON.stringify(value ?? null));
               (function () {{ {script} }})(...JSON.parse(values), done);
             }})"
        );
        let parameters = json!({
            "functionDeclaration": function,
            "arguments": [{ "type": "string", "value": json!(arguments).to_string() }],
            "awaitPromise": true,
            "target": { "context": window },
        });
        let result = self.command("script.callFunction", &parameters);
        let text = result["result"]["value"].as_str().unwrap_or_else(|| panic!("{script}: {result}"));
        serde_json::from_str(text).unwrap()
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        // The processes of the windows end only if the browser ends itself.
        let connection = self.connection.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if connection.exchange("browser.close", &json!({})).is_ok() {
            self.process.stderr.wait_for_end(TIMEOUT);
        }
    }
}
