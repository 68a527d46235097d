//! A minimal WebDriver client (<https://www.w3.org/TR/webdriver2/>), over plain HTTP to a chromedriver that the test
//! starts.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::support::{Process, TIMEOUT, TempDir};

const PACKAGES: &str = "chromium chromium-driver";

/// How often the driver is started. Twice is nearly always enough.
const DRIVERS: usize = 5;

/// Time limit for a script in the page.
pub(crate) const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// A headless Chromium with its own profile. Dropping it stops the browser and its driver.
pub(crate) struct Browser {
    driver: SocketAddr,
    session: String,
    chromedriver: Process,
    profile: TempDir,
}

/// What differs between browsers.
#[derive(Debug)]
struct Options<'h> {
    accept_all: bool,
    shows_addresses: bool,
    has_devices: bool,
    /// The content of `/etc/hosts`.
    hosts: Option<&'h str>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { accept_all: true, shows_addresses: false, has_devices: false, hosts: None }
    }
}

impl Browser {
    /// Starts a browser that accepts every certificate.
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts a browser whose candidates have the addresses of the machine, and not names.
    pub(crate) fn with_addresses() -> Self {
        Self::with(Options { shows_addresses: true, ..Options::default() })
    }

    /// Starts a browser that accepts only certificates of the authorities that browsers trust.
    pub(crate) fn strict() -> Self {
        Self::with(Options { accept_all: false, ..Options::default() })
    }

    /// Starts a browser with made-up cameras, microphones and speakers, and a user who permits everything.
    #[allow(dead_code, reason = "only the tests of rooms use it")]
    pub(crate) fn with_devices() -> Self {
        Self::with(Options { has_devices: true, ..Options::default() })
    }

    /// Starts a browser on a machine with this `/etc/hosts`.
    pub(crate) fn with_hosts(hosts: &str) -> Self {
        Self::with(Options { hosts: Some(hosts), ..Options::default() })
    }

    fn with(options: Options<'_>) -> Self {
        let profile = TempDir::new();
        let mut command = Command::new("chromedriver");
        if let Some(hosts) = options.hosts {
            let file = profile.write("hosts", hosts);
            let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", file.display());
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &script, "sh", "chromedriver"]);
        }
        let (chromedriver, port) = start_driver(command.arg("--port=0"));
        let mut browser =
            Self { driver: (Ipv4Addr::LOCALHOST, port).into(), session: String::new(), chromedriver, profile };
        browser.session = browser.new_session(&options);
        browser
    }

    fn new_session(&self, options: &Options<'_>) -> String {
        let mut arguments = self.arguments();
        if options.accept_all {
            // The browser does not trust the test's certificate. The option applies to WebRTC too.
            arguments.push("--ignore-certificate-errors".to_owned());
        }
        if options.shows_addresses {
            arguments.push("--disable-features=WebRtcHideLocalIpsWithMdns".to_owned());
        }
        if options.has_devices {
            let made_up = ["--use-fake-device-for-media-stream=device-count=3", "--use-fake-ui-for-media-stream"];
            arguments.extend(made_up.map(str::to_owned));
        }
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": options.accept_all,
            "timeouts": { "script": SCRIPT_LIMIT.as_millis() },
            "goog:chromeOptions": { "args": arguments },
        } } });
        let session = self.command("POST", "/session", &capabilities);
        let session = session.unwrap_or_else(|error| panic!("no browser ({error}): apt-get install {PACKAGES}"));
        session["sessionId"].as_str().expect("a new session has an id").to_owned()
    }

    /// Returns the arguments of every browser.
    fn arguments(&self) -> Vec<String> {
        let always = [
            "--headless=new",
            // Tests run as root in containers, where Chromium's sandbox does not work.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            // Limits the browser's traffic to the page and the relay.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-quic",
            // Pages play sound without a click, and a window behind another one is as fast as that.
            "--autoplay-policy=no-user-gesture-required",
            "--disable-background-timer-throttling",
            "--disable-backgrounding-occluded-windows",
            "--disable-renderer-backgrounding",
            "--disable-sync",
            "--no-first-run",
        ];
        let profile = format!("--user-data-dir={}", self.profile.path().join("profile").display());
        always.into_iter().map(str::to_owned).chain([profile]).collect()
    }

    pub(crate) fn navigate(&self, url: &str) {
        self.in_session("POST", "/url", &json!({ "url": url }));
    }

    /// Runs `script` in the page and returns its result. The script ends by calling its last argument with the result.
    pub(crate) fn execute_async(&self, script: &str, arguments: &[Value]) -> Value {
        self.in_session("POST", "/execute/async", &json!({ "script": script, "args": arguments }))
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) {
        self.in_session("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Returns a picture of the whole page as PNG.
    pub(crate) fn picture(&self) -> Vec<u8> {
        let parameters = json!({ "captureBeyondViewport": true });
        let command = json!({ "cmd": "Page.captureScreenshot", "params": parameters });
        let result = self.in_session("POST", "/goog/cdp/execute", &command);
        BASE64.decode(result["data"].as_str().expect("a picture has data")).expect("a picture is base64")
    }

    /// Sends a command to the session and returns its result.
    pub(crate) fn in_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.command(method, &format!("/session/{}{path}", self.session), body)
            .unwrap_or_else(|error| panic!("{path}: {error}; chromedriver output:\n{}", self.chromedriver.output()))
    }

    /// Sends a command. The error is the driver's message.
    fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let (status, response) = self.exchange(method, path, &body.to_string()).map_err(|error| error.to_string())?;
        let mut response: Value = serde_json::from_slice(&response).map_err(|error| error.to_string())?;
        let value = response["value"].take();
        if status == 200 { Ok(value) } else { Err(value["message"].as_str().unwrap_or("no message").to_owned()) }
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.driver)?;
        stream.set_read_timeout(Some(SCRIPT_LIMIT + TIMEOUT))?;
        let (host, length) = (self.driver, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;

        let mut reader = BufReader::new(stream);
        let mut lines = reader.by_ref().lines();
        let mut header = || lines.next().unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into()));
        let status = header()?.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let mut content_length = 0;
        loop {
            let line = header()?;
            match line.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    content_length = value.trim().parse().unwrap_or_default();
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut response = vec![0; content_length];
        reader.read_exact(&mut response)?;
        Ok((status, response))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver stops the browser when the session is deleted. A driver that is killed leaves the browser running.
        if !self.session.is_empty() {
            let _ = self.command("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
    }
}

/// Starts the driver, and returns its port. It takes a free port of IPv6, and ends if another program uses the same port
/// over IPv4; then it is started again.
fn start_driver(command: &mut Command) -> (Process, u16) {
    let mut output = String::new();
    for _ in 0..DRIVERS {
        let chromedriver = Process::start(command, Some(PACKAGES));
        let port = chromedriver.stdout.wait_for(TIMEOUT, |lines| lines.iter().find_map(|line| started_on(line)));
        if let Some(port) = port {
            return (chromedriver, port);
        }
        output = chromedriver.output();
        if !output.contains("port not available") {
            break;
        }
    }
    panic!("chromedriver reports no port; its output:\n{output}");
}

/// Returns the port in `ChromeDriver was started successfully on port 41235.`
fn started_on(line: &str) -> Option<u16> {
    line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok()
}
