//! The serial port. What the guest writes to it is its console, of which the last part is kept.

use super::DeviceStateError;
use podflare_wire::limits::CONSOLE_TAIL_LEN_MAX;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};

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

    pub(crate) fn state(&self) -> ConsoleState {
        let uart = self.uart.state();
        ConsoleState {
            baud_divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line: [uart.line_control, uart.line_status],
            modem: [uart.modem_control, uart.modem_status],
            scratch: uart.scratch,
            in_buffer: uart.in_buffer,
            tail: self.tail(),
            written_bytes: self.written_bytes(),
        }
    }

    /// A port that is as it was saved.
    pub(crate) fn of(state: ConsoleState) -> Result<SerialConsole, DeviceStateError> {
        if state.tail.len() > CONSOLE_TAIL_LEN_MAX {
            return Err(DeviceStateError::Console);
        }
        let uart = SerialState {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line[0],
            line_status: state.line[1],
            modem_control: state.modem[0],
            modem_status: state.modem[1],
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        };
        let console = Console { tail: state.tail.into(), written_bytes: state.written_bytes };
        let line = Line::default();
        let uart = Serial::from_state(&uart, line.clone(), NoEvents, console);
        Ok(SerialConsole { uart: uart.map_err(|_| DeviceStateError::Console)?, line })
    }

    /// Bytes that the guest has ever written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.uart.writer().written_bytes
    }
}

/// The serial port as it is saved: its registers, what it has received, and what is kept of the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    /// Control and status, as those of the modem.
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    in_buffer: Vec<u8>,
    tail: Vec<u8>,
    written_bytes: u64,
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
        // A saved count may be anything.
        self.written_bytes =
            self.written_bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or_default());
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

    #[test]
    fn a_console_comes_back_as_it_was_saved() {
        let mut console = SerialConsole::new();
        console.write(1, 2);
        console.write(0, b'a');
        let state = console.state();
        let mut other = SerialConsole::of(state.clone()).unwrap();
        assert_eq!(other.state(), state);
        other.write(0, b'b');
        assert_eq!((other.tail(), other.written_bytes()), (b"ab".to_vec(), 2));
        let endless = ConsoleState { tail: vec![0; CONSOLE_TAIL_LEN_MAX + 1], ..state.clone() };
        assert!(SerialConsole::of(endless).is_err());
        assert!(SerialConsole::of(ConsoleState { in_buffer: vec![0; 65], ..state }).is_err());
    }
}
