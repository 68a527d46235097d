//! The server's JSON log, line by line.

use std::fmt;

use serde_json::Value;

/// A line that a server wrote to standard error.
#[derive(Clone)]
pub(crate) struct LogLine {
    text: String,
    json: Option<Value>,
}

impl LogLine {
    pub(crate) fn parse(text: &str) -> Self {
        Self { text: text.to_owned(), json: serde_json::from_str(text).ok() }
    }

    /// Returns the line as written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the message. Empty for a line that is not a log event (a panic, for example).
    pub(crate) fn message(&self) -> &str {
        self.pointer("/fields/message").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns `ERROR`, `WARN`, `INFO`, … Empty for a line that is not a log event.
    pub(crate) fn level(&self) -> &str {
        self.pointer("/level").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns a field of the event as text, including numbers and booleans.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        match self.pointer("/fields")?.get(name)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    fn pointer(&self, path: &str) -> Option<&Value> {
        self.json.as_ref()?.pointer(path)
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_gives_its_message_level_and_fields() {
        let line = LogLine::parse(
            r#"{"timestamp":"2026-01-02T03:04:05.678Z","level":"INFO","fields":{"message":"listening","transport":"udp","address":"[::1]:40123","workers":2},"target":"turnserver"}"#,
        );
        assert_eq!((line.message(), line.level()), ("listening", "INFO"));
        assert_eq!(line.field("address").as_deref(), Some("[::1]:40123"));
        assert_eq!(line.field("workers").as_deref(), Some("2"));
        assert_eq!(line.field("client"), None);
    }

    #[test]
    fn a_line_that_is_not_an_event_keeps_its_text() {
        for text in ["thread 'main' panicked at src/main.rs:1:1:", "", "{\"level\":", "[1]", "42"] {
            let line = LogLine::parse(text);
            assert_eq!((line.text(), line.message(), line.level()), (text, "", ""));
            assert_eq!(line.field("message"), None);
        }
    }
}
