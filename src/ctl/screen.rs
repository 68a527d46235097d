//! The terminal as a screen. Dropping it leaves the terminal as it was.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::thread;

use nix::libc::_POSIX_VDISABLE;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;
use turnserver::net::terminal;

/// The size if the terminal does not know it.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Switches to the alternate screen, and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub(crate) struct Screen {
    /// The mode of the terminal on standard input; `None` if that is no terminal.
    mode: Option<Termios>,
}

impl Screen {
    /// Takes over the terminal.
    ///
    /// # Errors
    /// If standard output is no terminal, or it cannot be written to.
    pub(crate) fn enter() -> io::Result<Self> {
        if !io::stdout().is_terminal() {
            return Err(io::Error::other("standard output is no terminal"));
        }
        let mode = tcgetattr(io::stdin()).ok();
        let screen = Self { mode };
        if let Some(mut mode) = screen.mode.clone() {
            // Keys are read one by one and not shown. Ctrl-C still interrupts. Ctrl-Z would leave the screen as it is.
            mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            if let Some(suspend) = mode.control_chars.get_mut(SpecialCharacterIndices::VSUSP as usize) {
                *suspend = _POSIX_VDISABLE;
            }
            tcsetattr(io::stdin(), SetArg::TCSANOW, &mode)?;
        }
        write(ENTER)?;
        Ok(screen)
    }

    /// Shows these lines, as far as there is room.
    pub(crate) fn show(&self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = size();
        let visible = lines.iter().take(rows.into());
        let visible = visible.map(|line| line.chars().take(columns.into()).collect::<String>() + "\x1b[K");
        write(&format!("\x1b[H{}\x1b[J", visible.collect::<Vec<_>>().join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal has gone, there is nothing to restore.
        let _ = write(LEAVE);
        if let Some(mode) = &self.mode {
            let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, mode);
        }
    }
}

/// Returns the columns and the rows of the terminal.
pub(crate) fn size() -> (u16, u16) {
    terminal::size(io::stdout()).unwrap_or(USUAL_SIZE)
}

/// Returns the bytes of the keys that are pressed. The thread that reads them ends with the process.
pub(crate) fn keys() -> io::Result<mpsc::Receiver<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        for byte in io::stdin().lock().bytes() {
            let Ok(byte) = byte else { return };
            if sender.blocking_send(byte).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(receiver)
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
