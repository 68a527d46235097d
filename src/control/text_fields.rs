//! The fields of a line of the text log. Text is in quotes; addresses, numbers and booleans are not. A text value
//! therefore cannot look like another field.

use std::fmt::{self, Debug};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::printable::Escaped;

/// Formats the fields of the text log.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = self.try_put(field, value);
        }
    }

    fn try_put(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.writer.write_char(' ')?;
        }
        match (field.name(), self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        self.writer.write_fmt(value)
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            // A message may contain text of a file or of the kernel. One event is one line.
            self.put(field, format_args!("{}", Escaped(text)));
        } else {
            self.put(field, format_args!("{text:?}"));
        }
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        let is_address =
            text.parse::<SocketAddr>().is_ok() || text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
        if is_address { self.put(field, format_args!("{text}")) } else { self.put_text(field, &text) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field, format_args!("{value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.put(field, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(ansi: bool, work: impl FnOnce()) -> String {
        let written = Written::default();
        let out = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_target(false)
            .with_ansi(ansi)
            .fmt_fields(TextFields)
            .with_writer(move || out.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_quoted_in_one_way_and_addresses_and_numbers_are_not_quoted() {
        let error = io::Error::other("no \"space\" left client=192.0.2.9:9");
        let client: SocketAddr = "[2001:db8::7]:5000".parse().unwrap();
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let line = logged(false, || {
            tracing::info!(
                event = "e", user = "ann", reason = %"not valid", transport = %"udp", %error, %client, %address,
                count = 3_u64, channel = format_args!("{:#06x}", 0x5000), ok = true, "it happened"
            );
        });
        let fields = "event=\"e\" user=\"ann\" reason=\"not valid\" transport=\"udp\" \
                      error=\"no \\\"space\\\" left client=192.0.2.9:9\" client=[2001:db8::7]:5000 address=192.0.2.7 \
                      count=3 channel=\"0x5000\" ok=true";
        assert_eq!(line, format!(" INFO it happened {fields}\n"));
    }

    #[test]
    fn a_network_is_written_like_an_address() {
        let client: IpNet = "192.0.2.0/24".parse().unwrap();
        assert_eq!(logged(false, || tracing::info!(%client, "m")), " INFO m client=192.0.2.0/24\n");
    }

    // A Display value that begins and ends with a quotation mark is quoted like any other.
    #[test]
    fn a_value_with_quotation_marks_is_one_value() {
        let line = logged(false, || tracing::warn!(reason = %"\"a\" client=\"b\"", "m"));
        assert_eq!(line, " WARN m reason=\"\\\"a\\\" client=\\\"b\\\"\"\n");
    }

    #[test]
    fn a_message_with_control_characters_is_one_line() {
        let line = logged(false, || tracing::warn!("{}", "a\r\nb \u{1b}[2J"));
        assert_eq!(line, " WARN a\\r\\nb \\u{1b}[2J\n");
    }

    #[test]
    fn names_of_fields_are_styled_on_a_terminal() {
        assert!(
            logged(true, || tracing::info!(count = 3, "m")).contains("\u{1b}[3mcount\u{1b}[0m\u{1b}[2m=\u{1b}[0m3")
        );
    }
}
