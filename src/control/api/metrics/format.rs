//! The formats of the page, and which of them a client gets.

use std::collections::HashMap;

use hyper::Request;
use hyper::header::ACCEPT;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    /// The draft of OpenMetrics 1.0.0, in which this page is the same.
    OpenMetricsDraft,
    Prometheus,
}

impl Format {
    /// The formats, the preferred ones first.
    const ALL: [Self; 3] = [Self::OpenMetrics, Self::OpenMetricsDraft, Self::Prometheus];

    /// Returns the type and its version.
    fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenMetrics => ("application/openmetrics-text", "1.0.0"),
            Self::OpenMetricsDraft => ("application/openmetrics-text", "0.0.1"),
            Self::Prometheus => ("text/plain", "0.0.4"),
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::OpenMetricsDraft => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Returns the format with the highest quality value in `Accept` (RFC 9110 §12.5.1). Between equal ones, a format
    /// that is named precedes one that only a wildcard includes. A client that accepts none gets the text format of
    /// Prometheus, which every collector understands.
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<Range<'_>> = accept.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
        let mut best = (Self::Prometheus, (0, false));
        for format in Self::ALL {
            let Some(range) = ranges.iter().filter(|range| range.includes(format)).max_by_key(|range| range.rank())
            else {
                continue;
            };
            // OpenMetrics is only for clients that name it.
            let is_named = range.precision() > Precision::Kind;
            let value = (range.quality, is_named);
            if range.quality > 0 && value > best.1 && (is_named || format == Self::Prometheus) {
                best = (format, value);
            }
        }
        best.0
    }
}

/// How much of a media type a range states. The most precise range determines the quality value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    /// `*/*`.
    Any,
    /// Such as `text/*`.
    Kind,
    Type,
    Version,
}

/// A media range of `Accept`.
#[derive(Clone, Copy, Debug)]
struct Range<'r> {
    media_type: &'r str,
    version: Option<&'r str>,
    /// In thousandths. 0: not acceptable.
    quality: u16,
}

impl<'r> Range<'r> {
    /// `None` if it is invalid.
    fn parse(text: &'r str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { media_type: parts.next()?, version: None, quality: 1_000 };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            let (name, value) = (name.trim(), value.trim());
            if name.eq_ignore_ascii_case("q") {
                range.quality = thousandths(value)?;
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            }
        }
        Some(range)
    }

    fn precision(&self) -> Precision {
        match (self.media_type, self.version) {
            ("*/*", _) => Precision::Any,
            (kind, _) if kind.ends_with("/*") => Precision::Kind,
            (_, None) => Precision::Type,
            (_, Some(_)) => Precision::Version,
        }
    }

    fn rank(&self) -> (Precision, u16) {
        (self.precision(), self.quality)
    }

    fn includes(&self, format: Format) -> bool {
        let (media_type, version) = format.media_type();
        match self.precision() {
            Precision::Any => true,
            Precision::Kind => kind_of(self.media_type).eq_ignore_ascii_case(kind_of(media_type)),
            Precision::Type => self.media_type.eq_ignore_ascii_case(media_type),
            Precision::Version => self.media_type.eq_ignore_ascii_case(media_type) && self.version == Some(version),
        }
    }
}

/// Returns the part of a media type before the slash.
fn kind_of(media_type: &str) -> &str {
    media_type.split('/').next().unwrap_or_default()
}

/// Reads a quality value (RFC 9110 §12.4.2), in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u16 = format!("{whole}{decimals:0<3}").parse().ok()?;
    (value <= 1_000).then_some(value)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &[&str]) -> Format {
        let mut request = Request::new(());
        for value in accept {
            request.headers_mut().append(ACCEPT, value.parse().unwrap());
        }
        Format::of(&request)
    }

    #[test]
    fn prometheus_gets_what_it_prefers() {
        for (accept, expected) in [
            // Prometheus 2.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetricsDraft,
            ),
            // Prometheus 3, and with the text format first.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,*/*;q=0.3",
                Format::Prometheus,
            ),
        ] {
            assert_eq!(format(&[accept]), expected, "{accept}");
        }
    }

    #[test]
    fn the_quality_and_the_precision_of_a_range_decide() {
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html, */*;q=0.8", Format::Prometheus),
            ("application/*, */*;q=0.1", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=1", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text, */*", Format::OpenMetrics),
            ("application/openmetrics-text;q=0.9, text/plain", Format::Prometheus),
            ("application/openmetrics-text;q=0.5, text/*;q=0.501", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=0.000, */*;q=0.1", Format::Prometheus),
            ("application/openmetrics-text;q=0.1, */*;q=0", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Prometheus),
            ("application/openmetrics-text, application/openmetrics-text;version=1.0.0;q=0", Format::OpenMetricsDraft),
            ("application/openmetrics-text;q=2, text/plain;q=0.1", Format::Prometheus),
            ("application/openmetrics-text;q=-1", Format::Prometheus),
        ] {
            assert_eq!(format(&[accept]), expected, "{accept}");
        }
        assert_eq!(format(&["text/plain;q=0.2", "application/openmetrics-text;q=0.3"]), Format::OpenMetrics);
    }
}
