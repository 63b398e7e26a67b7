//! The serial port. What the guest writes to it is its console, of which the last part is kept.

use podflare_wire::limits::CONSOLE_TAIL_LEN_MAX;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

#[derive(Debug)]
pub(crate) struct SerialConsole {
    uart: Serial<Line, NoEvents, Console>,
    line: Line,
}

impl SerialConsole {
    pub(crate) fn new() -> SerialConsole {
        let line = Line::default();
        SerialConsole { uart: Serial::new(line.clone(), Console::default()), line }
    }

    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// True when the interrupt line must be raised.
    pub(crate) fn write(&mut self, offset: u8, value: u8) -> bool {
        // Only loop-back mode can fail, by filling a buffer that nobody reads.
        drop(self.uart.write(offset, value));
        self.line.0.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn tail(&self) -> Vec<u8> {
        self.uart.writer().tail.iter().copied().collect()
    }

    /// Bytes that the guest has ever written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.uart.writer().written_bytes
    }
}

/// Whether the UART wants an interrupt. Shared with the UART, which knows only how to trigger.
#[derive(Debug, Clone, Default)]
struct Line(Arc<AtomicBool>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Console {
    tail: VecDeque<u8>,
    written_bytes: u64,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(CONSOLE_TAIL_LEN_MAX);
        self.tail.drain(..excess);
        self.written_bytes += u64::try_from(bytes.len()).unwrap_or_default();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_guest_is_remembered_by_its_last_words() {
        let mut console = SerialConsole::new();
        for _ in 0..CONSOLE_TAIL_LEN_MAX {
            console.write(0, b'.');
        }
        for byte in b"panic" {
            console.write(0, *byte);
        }
        let tail = console.tail();
        assert_eq!(tail.len(), CONSOLE_TAIL_LEN_MAX);
        assert!(tail.ends_with(b"..panic"));
        assert_eq!(console.written_bytes(), tail.len() as u64 + 5);
    }
}
