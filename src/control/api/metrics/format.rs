//! The two formats of the page, and which of them a client gets.

use std::collections::HashMap;

use hyper::Request;
use hyper::header::ACCEPT;

pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether the client prefers OpenMetrics. Prometheus lists it before its own format.
pub(super) fn accepts_open_metrics<B>(request: &Request<B>) -> bool {
    let accept = request.headers().get_all(ACCEPT);
    let mut accepted = accept.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    accepted.any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let is_open_metrics =
            parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        is_open_metrics && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// Converts a page from OpenMetrics to the text format of Prometheus, in which the family of a counter has the name of
/// its samples, an info is a gauge, and there are neither units nor an end.
pub(super) fn prometheus_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: HashMap<&str, &str> = types.collect();
    for line in page.lines() {
        let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        match comment.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) => {
                let (suffix, shown) = match types.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    other => ("", other.copied().unwrap_or("untyped")),
                };
                let rest = if kind == "# TYPE " { shown } else { rest };
                text += &format!("{kind}{name}{suffix} {rest}\n");
            }
            None if line.starts_with('#') => {}
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}
