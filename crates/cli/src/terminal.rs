//! The terminal that the command runs in.

use anyhow::{Context, bail};
use podflare_api::pty::PtyResize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Write};

/// Of a terminal that does not say its size.
const SIZE: PtyResize = PtyResize { cols: 80, rows: 24 };

/// The host takes no more.
const SIDE_MAX: u16 = 1000;

/// Leaves the alternate screen, gives mouse and pasting back, and shows the cursor: what a program that was cut off
/// may have asked for.
const LEAVE: &[u8] =
    b"\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m\r\n";

/// Refuses to go on without a terminal.
pub(crate) fn check() -> anyhow::Result<()> {
    if !isatty(stdin()) || !isatty(stdout()) {
        bail!("This needs a terminal; `podflare run --bash` runs a script without one");
    }
    Ok(())
}

/// A terminal whose keys all go through as they are; dropping this gives it back.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> anyhow::Result<Raw> {
        let before = tcgetattr(stdin()).context("Cannot read the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("Cannot set the terminal's modes")?;
        Ok(Raw { before })
    }

    /// For a program that did not end by itself and clean up.
    pub(crate) fn leave_programs_modes(&self) {
        // A terminal that is gone has no modes.
        let mut stdout = io::stdout();
        stdout.write_all(LEAVE).and_then(|()| stdout.flush()).ok();
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone has no modes.
        tcsetattr(stdin(), OptionalActions::Now, &self.before).ok();
    }
}

/// The terminal's size, as the host takes it.
pub(crate) fn size() -> PtyResize {
    let Ok(size) = tcgetwinsize(stdin()) else { return SIZE };
    if size.ws_col == 0 || size.ws_row == 0 {
        return SIZE;
    }
    PtyResize { cols: size.ws_col.min(SIDE_MAX), rows: size.ws_row.min(SIDE_MAX) }
}
