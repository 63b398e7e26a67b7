//! The two ioctls of /dev/urandom that give a copied kernel random numbers of its own.

use podflare_wire::guest::ENTROPY_LEN;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use std::os::fd::BorrowedFd;

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a constant: 64")]
const BUFFER_LEN: i32 = ENTROPY_LEN as i32;

/// `struct rand_pool_info` of linux/random.h with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    buffer_len: i32,
    buffer: [u8; ENTROPY_LEN],
}

/// Declared by the kernel with two `int`s as its argument, whatever the buffer's length.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// Mixes the bytes in and credits every bit of them.
pub(crate) fn add(urandom: BorrowedFd<'_>, entropy: &[u8; ENTROPY_LEN]) -> Result<(), Errno> {
    let info = RandPoolInfo { entropy_bits: 8 * BUFFER_LEN, buffer_len: BUFFER_LEN, buffer: *entropy };
    // SAFETY: RNDADDENTROPY reads a `rand_pool_info`, which `RandPoolInfo` is laid out as.
    let request = unsafe { Setter::<RNDADDENTROPY, RandPoolInfo>::new(info) };
    // SAFETY: the kernel reads `buffer_len` bytes behind the two integers, and so many there are.
    unsafe { ioctl(urandom, request) }
}

/// Makes the generator use what was mixed in now, not at its next reseeding.
pub(crate) fn reseed(urandom: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let request = unsafe { NoArg::<RNDRESEEDCRNG>::new() };
    // SAFETY: it reads and writes no memory of this process.
    unsafe { ioctl(urandom, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_have_the_numbers_of_the_kernel() {
        assert_eq!((RNDADDENTROPY, RNDRESEEDCRNG), (0x4008_5203, 0x5207));
        assert_eq!(size_of::<RandPoolInfo>(), 8 + ENTROPY_LEN);
    }
}
