//! The forms of values, as coturn reads them. An error is a clause for the report.

use std::net::IpAddr;

use super::options::{Argument, CoturnOption};

/// Returns whether a switch is on. coturn looks at the first character, except for `on` and `off`.
pub(super) fn switch(value: &str) -> Result<bool, String> {
    let value = uncommented(value);
    match value.chars().next() {
        None => Ok(true),
        Some('0' | 'n' | 'N' | 'f' | 'F') => Ok(false),
        Some('1'..='9' | 'y' | 'Y' | 't' | 'T') => Ok(true),
        _ if value.eq_ignore_ascii_case("off") => Ok(false),
        _ if value.eq_ignore_ascii_case("on") => Ok(true),
        _ => Err("its value is neither on nor off, so coturn does not start: write `yes` or `no`".to_owned()),
    }
}

/// Returns a value without a comment or semicolon after it, for values that contain no blanks. coturn reads numbers
/// this way.
pub(super) fn uncommented(value: &str) -> &str {
    value.split([' ', '\t', '#', ';']).next().unwrap_or_default()
}

pub(super) fn number(value: &str) -> Result<u64, String> {
    uncommented(value).parse().map_err(|_| "its value is not a whole number".to_owned())
}

pub(super) fn port(value: &str) -> Result<u16, String> {
    let port = number(value)?;
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is not a port (1 to 65535)"))
}

pub(super) fn address(value: &str) -> Result<IpAddr, String> {
    let value = uncommented(value);
    let bare = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(value);
    bare.parse().map_err(|_| format!("`{value}` is not an IP address: write the address"))
}

/// Returns the path in a value. Blanks and `#` may be part of it, but not together.
pub(super) fn path(value: &str) -> &str {
    value.split_once(" #").map_or(value, |(path, _)| path).trim_end()
}

/// Returns why the value is a placeholder, if it is one: coturn does not replace any.
pub(super) fn placeholder(option: &CoturnOption, value: &str, is_argument: bool) -> Option<String> {
    // Of a user, the password.
    let content = if option.name == "user" { value.split_once(':').map_or(value, |(_, rest)| rest) } else { value };
    let what = if content.contains("$(") || content.starts_with('`') {
        "the output of a command"
    } else if is_variable(content.trim(), option.is_secret) {
        "a variable"
    } else if content.contains("{{") {
        "a template"
    } else {
        return None;
    };
    Some(if is_argument {
        format!(
            "its value is {what}, which the shell or the container replaces: pass the arguments with the real value"
        )
    } else {
        format!(
            "its value is {what}, and coturn does not replace it in a file: import the file that coturn reads, with the \
             real value (for example, `envsubst < OLD > NEW`)"
        )
    })
}

/// Whether a value is, or contains, `$NAME` or `${NAME}`. A secret may contain `$`.
fn is_variable(value: &str, is_secret: bool) -> bool {
    let is_name = |name: &str| {
        let mut characters = name.chars();
        characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let braced = value.split("${").skip(1).filter_map(|rest| rest.split(['}', ':', '-']).next());
    let mut braced = braced.filter(|_| value.contains('}'));
    if braced.any(is_name) || value.strip_prefix('$').is_some_and(is_name) {
        return true;
    }
    // In other values, `$` has no meaning.
    !is_secret && value.split('$').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Whether an option is a switch that its value turns off.
pub(super) fn is_off(option: &CoturnOption, value: &str) -> Result<bool, String> {
    if option.argument == Argument::Switch { switch(value).map(|on| !on) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::super::options::find;
    use super::*;

    #[test]
    fn a_switch_is_read_as_coturn_reads_it() {
        for on in ["", "1", "yes", "true", "on", "ON", "9", "y # comment"] {
            assert_eq!(switch(on), Ok(true), "{on}");
        }
        for off in ["0", "no", "false", "off", "Off", "0 # comment", "F"] {
            assert_eq!(switch(off), Ok(false), "{off}");
        }
        assert!(switch("maybe").is_err());
    }

    #[test]
    fn numbers_ports_addresses_and_paths_may_have_comments() {
        assert_eq!(number("3600 # an hour"), Ok(3600));
        assert_eq!(number("3600;"), Ok(3600));
        assert_eq!(port("3478#x"), Ok(3478));
        assert!(port("0").is_err() && port("65536").is_err() && number("").is_err());
        assert_eq!(address("[2001:db8::7] # x"), Ok("2001:db8::7".parse().unwrap()));
        assert_eq!(
            address("turn.example.org").unwrap_err(),
            "`turn.example.org` is not an IP address: write the address"
        );
        assert_eq!(path("/etc/a b#c.pem # the chain"), "/etc/a b#c.pem");
    }

    #[test]
    fn placeholders_are_recognized_and_secrets_with_dollars_are_not() {
        let is = |option: &str, value: &str| placeholder(find(option).unwrap(), value, false).is_some();
        for (option, value) in [
            ("external-ip", "$PUBLIC_IP"),
            ("external-ip", "$PUBLIC_IP/10.0.0.5"),
            ("external-ip", "$(detect-external-ip)"),
            ("realm", "${TURN_REALM:-example.org}"),
            ("static-auth-secret", "$SECRET"),
            ("static-auth-secret", "${SECRET}"),
            ("user", "ann:$PASSWORD"),
            ("realm", "{{ turn_realm }}"),
        ] {
            assert!(is(option, value), "{option}={value}");
        }
        for (option, value) in [
            ("static-auth-secret", "a$b$C1d"),
            ("user", "ann:pa$$W0RD"),
            ("cli-password", "$5$79a316b350311570$81df9cfb"),
            ("realm", "example.org"),
        ] {
            assert!(!is(option, value), "{option}={value}");
        }
    }
}
