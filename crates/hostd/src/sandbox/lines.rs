//! Puts a stream's lines together from the chunks in which a guest writes them.

/// The longest line that becomes one event, in bytes; a longer one is cut. A download by the published
/// SDK is one line.
pub const LINE_LEN_MAX: usize = 16 * 1024 * 1024;

/// Bytes of memory that stay for the next line.
const KEPT_LEN_MAX: usize = 64 * 1024;

/// The longest UTF-8 sequence less its first byte.
const CONTINUATION_LEN_MAX: usize = 3;

/// One output stream's unfinished line.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes a chunk and gives each line that it completes, without its newline.
    pub fn push(&mut self, chunk: &[u8], mut line: impl FnMut(&str)) {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end], &mut line);
            self.give(&mut line);
            rest = &rest[end + 1..];
        }
        self.extend(rest, &mut line);
    }

    pub fn partial_len(&self) -> usize {
        self.partial.len()
    }

    /// Gives what is left when the stream has ended.
    pub fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.give(&mut line);
        }
    }

    /// Gives what there is of an unfinished line, but for a character that has only begun.
    pub fn cut(&mut self, mut line: impl FnMut(&str)) {
        let begun = self.partial.split_off(character_end(&self.partial));
        self.finish(&mut line);
        self.partial = begun;
    }

    fn give(&mut self, line: &mut impl FnMut(&str)) {
        line(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        self.partial.shrink_to(KEPT_LEN_MAX);
    }

    fn extend(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&str)) {
        while self.partial.len() + bytes.len() > LINE_LEN_MAX {
            let (now, later) = bytes.split_at(LINE_LEN_MAX - self.partial.len());
            self.partial.extend_from_slice(now);
            self.cut(&mut *line);
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }
}

/// Where to cut so that no character at the end is torn apart.
fn character_end(bytes: &[u8]) -> usize {
    let tail_start = bytes.len().saturating_sub(CONTINUATION_LEN_MAX);
    for (index, byte) in bytes.iter().enumerate().skip(tail_start).rev() {
        let sequence_len = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if index + sequence_len > bytes.len() { index } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| seen.push(line.to_owned()));
        }
        lines.finish(|line| seen.push(line.to_owned()));
        seen
    }

    #[test]
    fn lines_lose_their_newline_and_nothing_else() {
        assert_eq!(lines_of(&[b"a\n\nb\r\n"]), ["a", "", "b\r"]);
        assert_eq!(lines_of(&[b"no end"]), ["no end"]);
        assert_eq!(lines_of(&[b""]), Vec::<String>::new());
    }

    #[test]
    fn a_character_cut_between_chunks_is_whole() {
        assert_eq!(lines_of(&[b"\xe2\x82", b"\xac\n"]), ["€"]);
    }

    #[test]
    fn what_is_not_text_is_replaced() {
        assert_eq!(lines_of(&[b"\xff\xfeok\n"]), ["\u{fffd}\u{fffd}ok"]);
    }

    #[test]
    fn a_line_over_the_limit_is_cut_between_characters() {
        let mut text = vec![b'x'; LINE_LEN_MAX - 1];
        text.extend_from_slice("€uro\n".as_bytes());
        let lines = lines_of(&text.chunks(64 * 1024).collect::<Vec<_>>());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), LINE_LEN_MAX - 1);
        assert_eq!(lines[1], "€uro");
    }

    #[test]
    fn a_long_lines_memory_is_given_back() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_LEN_MAX], |_| panic!("it has not ended"));
        lines.push(b"\n", |line| assert_eq!(line.len(), LINE_LEN_MAX));
        assert!(lines.partial.capacity() <= KEPT_LEN_MAX);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_wherever_the_chunks_are_cut(
            text in "[a-zäß€😀\n]{0,64}",
            cuts in proptest::collection::vec(0_usize..64, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(lines_of(&chunks), expected);
        }
    }
}
