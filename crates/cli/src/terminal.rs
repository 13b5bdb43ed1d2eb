//! The terminal that a command is typed into, handed to a program elsewhere.

use std::io::IsTerminal as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that passes on what is typed as it is: no echo, no lines, and Ctrl-C is a character for the program at the
/// other end (`cfmakeraw`). It is as it was when this goes.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes the terminal that standard input is; nothing where it is none.
    pub(crate) fn take() -> std::io::Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }

    /// Columns and rows, as they are now; nothing where nobody has said them.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
