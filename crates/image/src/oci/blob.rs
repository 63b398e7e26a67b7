//! Blobs: verified by their digests while they are read, unpacked within bounds.

use super::OciError;
use super::archive::{Archive, Slice};
use super::manifest::{Digest, Layer};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

const BUFFER_BYTES: usize = 256 * 1024;
/// A frame that needs more memory than this to be unpacked was not made for a layer (128 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Unpacks a layer to a plain tar file without a name. `room` is what may still be written for all layers.
pub(crate) fn unpack_layer(
    archive: &Archive,
    layer: &Layer,
    scratch: &Path,
    room: &mut u64,
) -> Result<File, OciError> {
    let mut unpacked = tempfile::tempfile_in(scratch).map_err(OciError::Write)?;
    let mut packed = Hashing::new(archive.reader(&layer.member)?);
    let (reader, _) = decompressed(&mut packed)?;
    let mut plain = Hashing::new(reader);
    *room -= copy_bounded(&mut plain, &mut unpacked, *room)?;
    layer.diff_id.check(&format!("unpacked layer {}", layer.member), &plain.digest())?;
    drop(plain);
    // What follows the compressed data belongs to the blob, too.
    io::copy(&mut packed, &mut io::sink()).map_err(OciError::Read)?;
    if let Some(digest) = &layer.digest {
        digest.check(&format!("layer {}", layer.member), &packed.digest())?;
    }
    Ok(unpacked)
}

/// Whatever it is compressed with, which its first bytes tell more surely than its name. And whether it is.
pub(crate) fn decompressed<'a>(reader: impl Read + 'a) -> Result<(Box<dyn Read + 'a>, bool), OciError> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    let head = reader.fill_buf().map_err(OciError::Read)?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok((Box::new(MultiGzDecoder::new(reader)), true));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(reader).map_err(OciError::Read)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(OciError::Read)?;
        return Ok((Box::new(decoder), true));
    }
    Ok((Box::new(reader), false))
}

/// Copies all, if it is not more than `max` bytes; says how many it was.
pub(crate) fn copy_bounded(mut from: impl Read, to: &mut File, max: u64) -> Result<u64, OciError> {
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    loop {
        let count = from.read(&mut buffer).map_err(OciError::Read)?;
        if count == 0 {
            to.flush().map_err(OciError::Write)?;
            return Ok(copied);
        }
        copied += count as u64;
        if copied > max {
            return Err(OciError::TooMuch { what: "bytes in its layers", max });
        }
        to.write_all(&buffer[..count]).map_err(OciError::Write)?;
    }
}

/// Digests what is read through it.
struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(reader: R) -> Hashing<R> {
        Hashing { reader, hash: Sha256::new() }
    }

    fn digest(&self) -> Digest {
        Digest::of(self.hash.clone())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl Slice<'_> {
    /// The digest of what is left to be read.
    #[cfg(test)]
    pub(crate) fn digest(self) -> Digest {
        let mut hashing = Hashing::new(self);
        io::copy(&mut hashing, &mut io::sink()).unwrap();
        hashing.digest()
    }
}
