//! The size of a terminal.

use std::os::fd::AsFd;

use super::sys;

/// Returns the columns and the rows of a terminal; `None` if it is none, or if its size is unknown.
#[must_use]
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    sys::window_size(terminal.as_fd()).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

#[cfg(test)]
mod tests {
    use nix::pty::{Winsize, openpty};

    use super::*;

    #[test]
    fn a_terminal_has_a_size_and_a_pipe_has_none() {
        let size_of = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(Some(&size_of), None).unwrap();
        assert_eq!(size(&terminal.slave), Some((80, 24)));
        assert_eq!(size(openpty(None, None).unwrap().slave), None);
        assert_eq!(size(std::io::pipe().unwrap().0), None);
    }
}
