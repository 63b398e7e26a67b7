//! Files that only who has the host's key can read: XChaCha20-Poly1305 over pieces of 1 MiB, each bound to its place, to
//! the last one's being the last, and to the name that the file goes by.
//!
//! ```text
//!   magic (8)  nonce (19)  piece + tag (16)  piece + tag  …  last piece + tag
//! ```

use chacha20poly1305::aead::Payload;
use chacha20poly1305::aead::stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"PODFSEA1";

/// Of XChaCha20's 24 bytes the last five are the piece's number and whether it is the last.
const NONCE_LEN: usize = 19;

const PIECE_LEN: usize = 1 << 20;
const TAG_LEN: usize = 16;

/// The shortest secret that is taken for one.
const SECRET_LEN_MIN: usize = 32;
const SECRET_LEN_MAX: u64 = 4096;

/// Seals and opens.
#[derive(Clone)]
pub struct SealingKey {
    key: [u8; 32],
    /// Tells keys apart without telling anything of them.
    id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SealingKeyError {
    #[error("Could not read the key of the Spaces in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "The key of the Spaces in {} must have {SECRET_LEN_MIN} to {SECRET_LEN_MAX} bytes; `openssl rand -hex 32` makes one",
        path.display()
    )]
    Length { path: PathBuf },
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PartialEq for SealingKey {
    fn eq(&self, other: &SealingKey) -> bool {
        self.id == other.id
    }
}

impl SealingKey {
    /// Any bytes, but for white space around them.
    pub fn read(path: &Path) -> Result<SealingKey, SealingKeyError> {
        let failed = |source| SealingKeyError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut secret = Vec::new();
        file.take(SECRET_LEN_MAX + 1).read_to_end(&mut secret).map_err(failed)?;
        let is_short = secret.trim_ascii().len() < SECRET_LEN_MIN;
        if is_short || u64::try_from(secret.len()).unwrap_or(u64::MAX) > SECRET_LEN_MAX {
            return Err(SealingKeyError::Length { path: path.to_owned() });
        }
        Ok(SealingKey::of(secret.trim_ascii()))
    }

    fn of(secret: &[u8]) -> SealingKey {
        let key: [u8; 32] =
            Sha256::new_with_prefix("podflare spaces: key\0").chain_update(secret).finalize().into();
        let id = Sha256::new_with_prefix("podflare spaces: id\0").chain_update(secret).finalize();
        SealingKey { key, id: id.iter().take(8).map(|byte| format!("{byte:02x}")).collect() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Writes what is in one file into another, for nobody without the key to read.
    pub(super) fn seal(&self, name: &str, plain: &mut impl Read, sealed: &mut impl Write) -> io::Result<()> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        sealed.write_all(MAGIC)?;
        sealed.write_all(&nonce)?;
        let mut encryptor = EncryptorBE32::from_aead(XChaCha20Poly1305::new(&self.key.into()), &nonce.into());
        let (mut piece, mut next) = (read_piece(plain, PIECE_LEN)?, Vec::new());
        loop {
            // Only what follows tells that a whole piece is not the last.
            if piece.len() == PIECE_LEN {
                next = read_piece(plain, PIECE_LEN)?;
            }
            let payload = Payload { msg: &piece, aad: name.as_bytes() };
            if next.is_empty() {
                let last = encryptor.encrypt_last(payload).map_err(|_| cannot_seal())?;
                return sealed.write_all(&last);
            }
            sealed.write_all(&encryptor.encrypt_next(payload).map_err(|_| cannot_seal())?)?;
            piece = std::mem::take(&mut next);
        }
    }

    /// The way back. Nothing of a file that is not as it was sealed is of use.
    pub(super) fn open(&self, name: &str, sealed: &mut impl Read, plain: &mut impl Write) -> io::Result<()> {
        let mut magic = [0; MAGIC.len()];
        let mut nonce = [0; NONCE_LEN];
        sealed
            .read_exact(&mut magic)
            .and_then(|()| sealed.read_exact(&mut nonce))
            .map_err(|_| not_sealed())?;
        if &magic != MAGIC {
            return Err(not_sealed());
        }
        let mut decryptor = DecryptorBE32::from_aead(XChaCha20Poly1305::new(&self.key.into()), &nonce.into());
        let (mut piece, mut next) = (read_piece(sealed, PIECE_LEN + TAG_LEN)?, Vec::new());
        loop {
            if piece.len() == PIECE_LEN + TAG_LEN {
                next = read_piece(sealed, PIECE_LEN + TAG_LEN)?;
            }
            let payload = Payload { msg: &piece, aad: name.as_bytes() };
            if next.is_empty() {
                return plain.write_all(&decryptor.decrypt_last(payload).map_err(|_| not_sealed())?);
            }
            plain.write_all(&decryptor.decrypt_next(payload).map_err(|_| not_sealed())?)?;
            piece = std::mem::take(&mut next);
        }
    }
}

/// As much as there is, up to a whole piece.
fn read_piece(file: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    file.take(u64::try_from(len).unwrap_or(u64::MAX)).read_to_end(&mut piece)?;
    Ok(piece)
}

fn cannot_seal() -> io::Error {
    io::Error::other("it is too long to be sealed")
}

fn not_sealed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is damaged, or was sealed with another key or for another Space",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SealingKey {
        SealingKey::of(b"0123456789abcdef0123456789abcdef")
    }

    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        key().seal("name", &mut &*content, &mut sealed).unwrap();
        sealed
    }

    fn open(key: &SealingKey, name: &str, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        key.open(name, &mut &*sealed, &mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_was_sealed_comes_back_whatever_its_length() {
        for len in [0, 1, PIECE_LEN - 1, PIECE_LEN, PIECE_LEN + 1, 2 * PIECE_LEN, 3 * PIECE_LEN + 7] {
            let content: Vec<u8> = (0..251).cycle().take(len).collect();
            let sealed = sealed(&content);
            assert!(len < 16 || !sealed.windows(16).any(|window| window == &content[..16]));
            assert_eq!(open(&key(), "name", &sealed).unwrap(), content, "{len}");
        }
    }

    #[test]
    fn another_key_or_another_name_opens_nothing() {
        let sealed = sealed(b"content");
        assert!(open(&SealingKey::of(b"another"), "name", &sealed).is_err());
        assert!(open(&key(), "another", &sealed).is_err());
    }

    #[test]
    fn pieces_that_are_missing_or_in_another_order_are_noticed() {
        let content: Vec<u8> = vec![7; 3 * PIECE_LEN];
        let sealed = sealed(&content);
        let head = MAGIC.len() + NONCE_LEN;
        let piece = PIECE_LEN + TAG_LEN;
        assert!(open(&key(), "name", &sealed[..head + 2 * piece]).is_err());
        let mut other = sealed.clone();
        other[head..head + 2 * piece].rotate_left(piece);
        assert!(open(&key(), "name", &other).is_err());
        assert!(open(&key(), "name", &[&sealed[..], &sealed[head..]].concat()).is_err());
    }

    #[test]
    fn a_key_is_long_enough_and_tells_nothing_of_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(matches!(SealingKey::read(file.path()), Err(SealingKeyError::Length { .. })));
        std::fs::write(file.path(), " 0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(SealingKey::read(file.path()).unwrap(), key());
        assert!(!format!("{:?}", key()).contains("0123"));
    }

    proptest! {
        #[test]
        fn no_byte_can_be_changed_unnoticed(content: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8) {
            let mut sealed = sealed(&content);
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(open(&key(), "name", &sealed).is_err());
        }

        #[test]
        fn anything_else_is_refused(garbage: Vec<u8>) {
            prop_assert!(open(&key(), "name", &garbage).is_err());
        }
    }
}
