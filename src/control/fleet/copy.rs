//! The copy of the common state in the state directory, for a start without the engine.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::Settings;
use super::agent::Session;
use super::state::FleetState;
use crate::clock;
use crate::control::state_directory;
use crate::file;

/// The version of the first line.
const VERSION: u64 = 1;
/// The longest copy in bytes.
const MAX_FILE: u64 = 128 << 20;
/// The pause after a copy could not be written.
const AGAIN: Duration = Duration::from_secs(30);
/// The interval at which the copy is written even if nothing has changed, since it says when the bucket was last read.
const RENEWAL: Duration = Duration::from_secs(600);

/// The bucket that a state comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// When it was created, in seconds since the Unix epoch; 0 if the state comes from none.
    pub(super) created: u32,
    /// Its last revision that this node has read.
    pub(super) revision: u64,
    /// When this node has last read it as a whole, in seconds since the Unix epoch.
    pub(super) read_at: u64,
}

/// A state, and where it comes from.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) state: FleetState,
    pub(super) origin: Origin,
}

/// Reads the copy; `None` if it is of another fleet. It is empty if there is none.
///
/// # Errors
/// If it cannot be read, or is no copy.
pub(super) fn read(path: &Path, settings: &Settings) -> io::Result<Option<Known>> {
    let text = match file::read_up_to(path, MAX_FILE) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Known::default())),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let (first, entries) = text.split_once('\n').unwrap_or_default();
    let origin = parse_origin(first, settings)?;
    Ok(origin.map(|origin| Known { state: FleetState::from_text(entries, clock::unix_seconds()), origin }))
}

/// Reads the copy, and logs if that fails. The second value says whether it may be replaced before the bucket was read: one
/// of another fleet belongs to the former configuration, which may come back.
pub(super) fn read_or_log(path: &Path, settings: &Settings) -> (Known, bool) {
    match read(path, settings) {
        Ok(Some(known)) => (known, true),
        Ok(None) => (Known::default(), false),
        Err(error) => {
            tracing::error!(
                event = "fleet-state-unreadable", %error, file = %path.display(),
                "the copy of the revocations and secrets of the fleet cannot be read, so this node does not know them until \
                 the engine responds. Remove the cause, or the file"
            );
            (Known::default(), false)
        }
    }
}

fn servers(settings: &Settings) -> Vec<String> {
    settings.fleet.servers.iter().map(ToString::to_string).collect()
}

/// Reads the first line; `None` if the copy is of another fleet.
///
/// # Errors
/// If it is no first line, or of another version.
fn parse_origin(line: &str, settings: &Settings) -> io::Result<Option<Origin>> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let line: Value = serde_json::from_str(line).map_err(|_| wrong("its first line is not JSON"))?;
    let number = |key: &str| line.get(key).and_then(Value::as_u64);
    if number("v") != Some(VERSION) {
        return Err(wrong("it is of another version of the server"));
    }
    let fields = || {
        let servers = line.get("servers")?.as_array()?;
        let origin = Origin {
            created: u32::try_from(number("created")?).ok()?,
            revision: number("revision")?,
            read_at: number("read_at")?,
        };
        Some((line.get("fleet")?.as_str()?, servers, origin))
    };
    let (fleet, others, origin) = fields().ok_or_else(|| wrong("its first line lacks a field"))?;
    // Fleets often have the same name, for example the one for tests and the one for users.
    let own = servers(settings);
    let has_common_server = others.iter().filter_map(Value::as_str).any(|server| own.iter().any(|own| own == server));
    Ok((fleet == settings.fleet.name && has_common_server).then_some(origin))
}

fn first_line(origin: Origin, settings: &Settings) -> String {
    let first = json!({
        "v": VERSION,
        "fleet": settings.fleet.name,
        "servers": servers(settings),
        "created": origin.created,
        "revision": origin.revision,
        "read_at": origin.read_at,
    });
    first.to_string()
}

/// Keeps the copy, whenever the state has changed and now and then.
pub(super) async fn keep(session: Rc<Session>) {
    let Some(file) = session.settings.state_file.clone() else { return };
    if session.is_copy_known.get() {
        // The preceding session may have ended before it wrote.
        session.changed.notify_one();
    }
    loop {
        let _ = timeout(RENEWAL, session.changed.notified()).await;
        if !session.is_copy_known.get() {
            continue;
        }
        let (state, first) = {
            let common = session.common.borrow();
            (common.state.clone(), first_line(common.origin, &session.settings))
        };
        let to = file.clone();
        // A disk that hangs must not hold up heartbeats.
        let kept = spawn_blocking(move || write(to, &first, &state));
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(
                event = "fleet-state-unsaved", %error, file = %file.display(),
                "the revocations and secrets of the fleet could not be kept, so that a start without the engine does not \
                 know them"
            );
            sleep(AGAIN).await;
            session.changed.notify_one();
        }
    }
}

fn write(to: PathBuf, first: &str, state: &FleetState) -> io::Result<()> {
    // A session that has ended may still write.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    state_directory::make(to.parent().unwrap_or(Path::new(".")))?;
    state_directory::replace_by(&to, |file| {
        let mut file = BufWriter::new(file);
        writeln!(file, "{first}")?;
        state.write(&mut file)?;
        file.flush()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(name: &str, server: &str) -> Settings {
        let text = format!("[fleet]\nname = {name:?}\nservers = [{server:?}]\n");
        super::super::settings(&Config::parse(&text, "t.toml").unwrap()).unwrap()
    }

    #[test]
    fn a_copy_of_another_fleet_is_not_used() {
        let origin = Origin { created: 7, revision: 9, read_at: 11 };
        let of = settings("turn", "nats://192.0.2.1");
        let first = first_line(origin, &of);
        assert_eq!(parse_origin(&first, &of).unwrap(), Some(origin));
        for other in [settings("test", "nats://192.0.2.1"), settings("turn", "nats://192.0.2.2")] {
            assert_eq!(parse_origin(&first, &other).unwrap(), None);
        }
        for wrong in ["secret.a {}", r#"{"v":2}"#, r#"{"v":1,"fleet":"turn"}"#, ""] {
            assert!(parse_origin(wrong, &of).is_err(), "{wrong}");
        }
    }
}
