//! The last output of a terminal, and where in all of its output that is.

use podflare_wire::limits::TERMINAL_RING_LEN;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes that there have been.
    end: u64,
}

impl Ring {
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let kept = &data[data.len().saturating_sub(TERMINAL_RING_LEN)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(TERMINAL_RING_LEN);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// Where what is kept begins, and where it ends.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// At most so many bytes from a place on, or from the first place after it that is kept, and that place.
    pub(crate) fn read(&self, from: u64, len_max: usize) -> (u64, Vec<u8>) {
        let from = from.clamp(self.start(), self.end);
        let skipped = usize::try_from(from - self.start()).unwrap_or(usize::MAX).min(self.bytes.len());
        (from, self.bytes.iter().skip(skipped).take(len_max).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_all_bytes_and_the_last_are_kept() {
        let mut ring = Ring::default();
        ring.push(b"0123456789");
        assert_eq!(ring.read(3, 4), (3, b"3456".to_vec()));
        assert_eq!(ring.read(10, 4), (10, Vec::new()));
        assert_eq!(ring.read(99, 4), (10, Vec::new()));
        ring.push(&vec![b'x'; TERMINAL_RING_LEN - 5]);
        assert_eq!((ring.start(), ring.end()), (5, TERMINAL_RING_LEN as u64 + 5));
        assert_eq!(ring.read(0, 6), (5, b"56789x".to_vec()));
    }

    #[test]
    fn more_than_it_holds_at_once_is_cut_at_its_beginning() {
        let mut ring = Ring::default();
        ring.push(b"before");
        let long: Vec<u8> = (0..=255).cycle().take(TERMINAL_RING_LEN + 7).collect();
        ring.push(&long);
        assert_eq!(ring.read(0, TERMINAL_RING_LEN), (13, long[7..].to_vec()));
    }
}
