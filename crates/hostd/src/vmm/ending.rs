//! How a machine came to its end, in words for the people whose sandbox it was.

use crate::printable::printable;
use podflare_wire::control::EndReason;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The VMM said why.
    Told {
        reason: EndReason,
        console_tail: Vec<u8>,
    },
    /// The VMM's process ended without a word.
    Exited {
        code: i32,
    },
    Killed {
        signal: i32,
    },
    /// The VMM closed its channel or broke the protocol, and nothing else is known.
    Lost {
        detail: String,
    },
    /// hostd ended it.
    AskedFor,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Told { reason: EndReason::Reset, console_tail } => match telling_line(console_tail) {
                Some((line, true)) => write!(f, "guest kernel panic: {line}"),
                Some((line, false)) => write!(f, "the guest reset itself; its console ends with: {line}"),
                None => f.write_str("the guest reset itself"),
            },
            Ending::Told { reason: EndReason::VcpuFailed { detail }, .. } => {
                write!(f, "a virtual CPU failed: {}", printable(detail))
            }
            Ending::Told { reason: EndReason::Failed { detail }, .. } => {
                write!(f, "its VMM failed: {}", printable(detail))
            }
            Ending::Exited { code } => write!(f, "its VMM exited with code {code}"),
            Ending::Killed { signal } => write!(f, "its VMM was killed by signal {signal}"),
            Ending::Lost { detail } => write!(f, "its VMM was lost: {detail}"),
            Ending::AskedFor => f.write_str("it was ended"),
        }
    }
}

/// The line that says most, and whether it tells of a panic.
fn telling_line(console_tail: &[u8]) -> Option<(String, bool)> {
    let text = String::from_utf8_lossy(console_tail);
    let mut lines = text.lines().map(printable).filter(|line| !line.is_empty());
    if let Some(panic) = lines.clone().find(|line| line.contains("Kernel panic")) {
        return Some((panic, true));
    }
    lines.next_back().map(|line| (line, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(console: &str) -> String {
        Ending::Told { reason: EndReason::Reset, console_tail: console.into() }.to_string()
    }

    #[test]
    fn a_panic_is_named_by_its_line() {
        let console = "[1.0] Kernel panic - not syncing: Attempted to kill init!\r\n[1.1] Rebooting\r\n\r\n";
        assert_eq!(
            reset(console),
            "guest kernel panic: [1.0] Kernel panic - not syncing: Attempted to kill init!"
        );
    }

    #[test]
    fn a_reset_without_a_panic_shows_the_last_line() {
        assert_eq!(
            reset("a\nreboot: Power down\n\n"),
            "the guest reset itself; its console ends with: reboot: Power down"
        );
        assert_eq!(reset(""), "the guest reset itself");
    }

    #[test]
    fn a_console_line_cannot_steer_a_terminal_or_be_endless() {
        let text = reset(&format!("\x1b[2J{}", "x".repeat(10_000)));
        assert!(!text.contains('\x1b'));
        assert!(text.len() < 300, "{}", text.len());
    }
}
