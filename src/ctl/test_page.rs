//! The responses about test links as text.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use super::text::{Table, bit_rate, duration, list, number, printable, text};

/// Returns the lines of `test-link`.
pub(crate) fn link(response: &Value) -> Vec<String> {
    let urls: Vec<&str> = list(response, "urls").iter().filter_map(Value::as_str).collect();
    let mut lines: Vec<String> = urls.iter().map(|url| printable(url)).collect();
    lines.push(String::new());
    let which = if urls.len() > 1 { "One of these links works once" } else { "The link works once" };
    lines.push(format!("{which}, within {}.", duration(number(response, "lifetime"))));
    lines.push("`turnserver ctl test-results` shows what its browser finds.".to_owned());
    lines.push(format!("To end it earlier: turnserver ctl revoke {}", printable(text(response, "username"))));
    if urls.iter().all(|url| is_local(url)) {
        lines.push(
            "Only browsers on this machine reach it: set `http.listen` to an address of the network, or `http.url` to \
             the URL of a proxy."
                .to_owned(),
        );
    }
    lines
}

/// Whether the host of a URL is a loopback address.
fn is_local(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().unwrap_or(Ipv4Addr::UNSPECIFIED.into()).is_loopback()
}

/// Returns the lines of `test-results`. `now` is the time in seconds since the Unix epoch.
pub(crate) fn results(response: &Value, now: u64) -> Vec<String> {
    let results = list(response, "results");
    if results.is_empty() {
        return vec!["no results: `turnserver ctl test-link` makes a link for a browser".to_owned()];
    }
    let mut lines = Vec::new();
    for result in results {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let report = result.get("report").unwrap_or(&Value::Null);
        let verdict = match text(report, "verdict") {
            "ok" => "every way works",
            "partial" => "not every way works",
            _ => "no way works",
        };
        let ago = duration(now.saturating_sub(number(result, "received")));
        let client = Some(text(result, "client")).filter(|client| !client.is_empty());
        let client = client.map(|client| format!(", client {}", printable(client))).unwrap_or_default();
        lines.push(format!("{verdict}: link {}, {ago} ago{client}", printable(text(result, "link"))));
        lines.push(printable(text(report, "browser")));
        let ways = list(report, "ways");
        let mut table = Table::new(&["WAY", "", ">LATENCY", ">JITTER", ">LOSS", ">THROUGHPUT"]);
        for way in ways {
            table.row(row(way));
        }
        lines.extend(table.lines());
        lines.extend(ways.iter().flat_map(reasons));
    }
    lines
}

fn row(way: &Value) -> Vec<String> {
    let figure = |name: &str| way.get(name).and_then(Value::as_f64);
    let with_unit = |name: &str, unit: &str| figure(name).map(|value| format!("{value} {unit}")).unwrap_or_default();
    vec![
        text(way, "url").to_owned(),
        if is_ok(way) { "works".to_owned() } else { format!("fails: {}", text(way, "step")) },
        with_unit("rtt_median_ms", "ms"),
        with_unit("jitter_ms", "ms"),
        with_unit("loss_percent", "%"),
        figure("throughput_kbps").map(|kbps| bit_rate(kbps * 125.0)).unwrap_or_default(),
    ]
}

fn is_ok(way: &Value) -> bool {
    way.get("ok").and_then(Value::as_bool).unwrap_or_default()
}

/// Returns why a way does not work, or works poorly.
fn reasons(way: &Value) -> Vec<String> {
    if is_ok(way) && text(way, "reason").is_empty() {
        return Vec::new();
    }
    let errors = list(way, "errors").iter().map(|error| {
        let (code, text) = (number(error, "code"), printable(text(error, "text")));
        format!("  ICE error {code}: {text}")
    });
    let reason = format!("{}: {}", printable(text(way, "url")), printable(text(way, "reason")));
    std::iter::once(reason).chain(errors).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_that_only_this_machine_reaches_is_named_as_such() {
        let lines = |urls: &[&str]| link(&json!({ "urls": urls, "lifetime": 600 })).join("\n");
        for local in [
            "http://127.0.0.1:9641/test#a",
            "https://[::1]:9641/test#a",
            "https://[::1]/test#a",
            "http://localhost:1/test#a",
        ] {
            assert!(lines(&[local]).contains("Only browsers on this machine"), "{local}");
        }
        for outside in ["http://192.0.2.1:9641/test#a", "https://turn.example.org/test#127.0.0.1"] {
            let text = lines(&[outside, "http://127.0.0.1:9641/test#a"]);
            assert!(!text.contains("Only browsers") && text.contains("within 10 min 00 s"), "{text}");
        }
    }

    #[test]
    fn results_show_figures_and_reasons_and_nothing_that_controls_a_terminal() {
        let response = json!({ "results": [{ "link": "a\u{1b}", "received": 40, "client": "192.0.2.7:5", "report": {
            "browser": "B\u{202e}", "verdict": "partial", "ways": [
                { "url": "turn:a:1", "ok": true, "step": "done", "rtt_median_ms": 1.5, "jitter_ms": 0.2,
                  "loss_percent": 0.0, "throughput_kbps": 8000 },
                { "url": "turn:b:1", "ok": true, "step": "done", "reason": "The loss is high.", "loss_percent": 9.5 },
                { "url": "turns:a:2", "ok": false, "step": "gather", "reason": "no response\n",
                  "errors": [{ "code": 701, "text": "timed out" }] },
            ] } }] });
        let lines = results(&response, 100);
        let expected = [
            "not every way works: link a\\u{1b}, 1 min 00 s ago, client 192.0.2.7:5",
            "B\\u{202e}",
            "WAY                       LATENCY  JITTER   LOSS   THROUGHPUT",
            "turn:a:1   works           1.5 ms  0.2 ms    0 %  8.00 Mbit/s",
            "turn:b:1   works                           9.5 %",
            "turns:a:2  fails: gather",
            "turn:b:1: The loss is high.",
            "turns:a:2: no response\\n",
            "  ICE error 701: timed out",
        ];
        assert_eq!(lines, expected);
    }
}
