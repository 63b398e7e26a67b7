//! Bytes of a message, and frames on a byte stream: `u32` length (little endian), then the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a frame's length prefix.
pub const FRAME_PREFIX_LEN: usize = 4;

/// Bytes of memory that an idle [`FrameReader`] keeps.
const RETAINED_LEN: usize = 64 * 1024;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("A frame announces {len} bytes, the limit is {limit}")]
    FrameTooLong { len: usize, limit: usize },
    #[error("A message of {len} bytes is not of this protocol")]
    NotAMessage { len: usize },
}

/// The message as bytes, without a length prefix (for sockets that keep message bounds).
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "writing plain structs to a growing vector has no failure")]
    postcard::to_allocvec(message).expect("a message encodes")
}

/// A message from exactly these bytes.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(DecodeError::NotAMessage { len: bytes.len() }),
    }
}

/// The message with its length prefix (for byte streams).
pub fn encode_frame<M: Serialize>(message: &M) -> Vec<u8> {
    let mut frame = vec![0; FRAME_PREFIX_LEN];
    frame.extend_from_slice(&encode(message));
    let len = u32::try_from(frame.len() - FRAME_PREFIX_LEN).unwrap_or(u32::MAX);
    frame[..FRAME_PREFIX_LEN].copy_from_slice(&len.to_le_bytes());
    frame
}

/// Takes bytes as they arrive on a stream and gives whole messages back.
///
/// Memory grows with the bytes that have arrived, never with the length that a frame announces.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Where the next frame starts in `buffer`.
    start: usize,
    frame_len_max: usize,
}

impl FrameReader {
    pub fn new(frame_len_max: usize) -> FrameReader {
        FrameReader { buffer: Vec::new(), start: 0, frame_len_max }
    }

    /// Appends bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        // A large message is rare; its memory must not stay, in a guest it would be in every fork.
        if self.buffer.is_empty() {
            self.buffer.shrink_to(RETAINED_LEN);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive. After an error the stream is lost.
    pub fn next_message<M: DeserializeOwned>(&mut self) -> Result<Option<M>, DecodeError> {
        let pending = &self.buffer[self.start..];
        let Some((prefix, rest)) = pending.split_first_chunk::<FRAME_PREFIX_LEN>() else { return Ok(None) };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > self.frame_len_max {
            return Err(DecodeError::FrameTooLong { len, limit: self.frame_len_max });
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = decode(body)?;
        self.start += FRAME_PREFIX_LEN + len;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Event, ExecId, OutputStream, Request};
    use proptest::prelude::*;

    #[test]
    fn frames_cut_anywhere_come_back_whole() {
        let events = [
            Event::Output { exec: ExecId(1), stream: OutputStream::Stdout, data: b"one\n".to_vec() },
            Event::Pong { token: 7 },
        ];
        let bytes: Vec<u8> = events.iter().flat_map(encode_frame).collect();
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::new(1024);
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(event) = reader.next_message::<Event>().unwrap() {
                    seen.push(event);
                }
            }
            assert_eq!(seen, events, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_arrives() {
        let mut reader = FrameReader::new(16);
        reader.push(&17_u32.to_le_bytes());
        assert_eq!(reader.next_message::<Event>(), Err(DecodeError::FrameTooLong { len: 17, limit: 16 }));
    }

    #[test]
    fn trailing_bytes_are_not_a_message() {
        let mut bytes = encode(&Request::Ping { token: 1 });
        bytes.push(0);
        assert_eq!(decode::<Request>(&bytes), Err(DecodeError::NotAMessage { len: bytes.len() }));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(decode::<Event>(&bytes));
            drop(decode::<Request>(&bytes));
            drop(decode::<crate::control::Command>(&bytes));
            drop(decode::<crate::control::Message>(&bytes));
        }
    }
}
