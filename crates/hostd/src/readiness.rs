//! Registers descriptors with the async runtime: the only unsafe code of this program.

use podflare_channel::Channel;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor to wait on until it can be read.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor for as long as it lives, and nothing here replaces the
    // one inside.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// A channel to wait on until it can be read.
pub(crate) fn readable_channel(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a Channel is one OwnedFd, which it does not change, and nothing here replaces the channel.
    Ok(unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE) }?)
}
