//! The vsock packet: its header, and the guest's buffers that it is read from or written to. Lengths
//! are the guest's word until they are compared with the buffers.

use crate::devices::virtio::{GuestMemory, QueueError};
use std::io;
use std::os::unix::net::UnixStream;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Bytes, GuestMemory as _, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

pub(super) const HEADER_LEN: usize = 44;

/// The only socket type here: a stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations (virtio 1.2, section 5.10.6).
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of SHUTDOWN: what its sender will no longer do.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_LEN], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

/// The part of one chain that can be read, or the part that can be written, as host memory.
#[derive(Debug)]
pub(super) struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Descriptors of the ring that the chain occupies, at least.
    pub(super) descriptors: usize,
}

impl<'m> Buffers<'m> {
    /// What the driver has sent.
    pub(super) fn readable(
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Result<Buffers<'m>, QueueError> {
        Buffers::of(chain.readable(), memory, Permissions::Read)
    }

    /// What the driver wants filled.
    pub(super) fn writable(
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Result<Buffers<'m>, QueueError> {
        Buffers::of(chain.writable(), memory, Permissions::Write)
    }

    fn of(
        parts: impl Iterator<Item = Descriptor>,
        memory: &'m GuestMemory,
        access: Permissions,
    ) -> Result<Buffers<'m>, QueueError> {
        let mut buffers = Buffers { slices: Vec::with_capacity(2), descriptors: 0 };
        for part in parts {
            let len = usize::try_from(part.len()).map_err(|_| QueueError::InvalidChain)?;
            let slices = memory.get_slices(part.addr(), len, access).map_err(QueueError::GuestMemory)?;
            for slice in slices {
                buffers.slices.push(slice.map_err(QueueError::GuestMemory)?);
            }
            buffers.descriptors += 1;
        }
        Ok(buffers)
    }

    pub(super) fn len(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum()
    }

    /// Splits the header's part off the front. The payload may begin in the same buffer or in the next.
    pub(super) fn split_header(mut self) -> Result<(Buffers<'m>, Buffers<'m>), QueueError> {
        if self.len() < HEADER_LEN {
            return Err(QueueError::InvalidChain);
        }
        let mut header = Buffers { slices: Vec::with_capacity(1), descriptors: 0 };
        let mut left = HEADER_LEN;
        let mut whole = 0;
        for slice in &mut self.slices {
            let (head, tail) =
                slice.split_at(left.min(slice.len())).map_err(QueueError::VolatileMemoryError)?;
            left -= head.len();
            header.slices.push(head);
            *slice = tail;
            if left == 0 {
                break;
            }
            whole += 1;
        }
        self.slices.drain(..whole);
        Ok((header, self))
    }

    /// Leaves only the first `len` bytes, or all if there are fewer.
    pub(super) fn truncate(&mut self, len: usize) -> Result<(), QueueError> {
        let mut left = len;
        for slice in &mut self.slices {
            *slice = slice.subslice(0, left.min(slice.len())).map_err(QueueError::VolatileMemoryError)?;
            left -= slice.len();
        }
        self.slices.retain(|slice| !slice.is_empty());
        Ok(())
    }

    pub(super) fn read_header(&self) -> Result<Header, QueueError> {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = &mut bytes[..];
        for slice in &self.slices {
            let (part, tail) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.read_slice(part, 0).map_err(QueueError::VolatileMemoryError)?;
            rest = tail;
        }
        Ok(Header::from_bytes(&bytes))
    }

    pub(super) fn write_header(&self, header: Header) -> Result<(), QueueError> {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        for slice in &self.slices {
            let (part, tail) = rest.split_at(slice.len().min(rest.len()));
            slice.write_slice(part, 0).map_err(QueueError::VolatileMemoryError)?;
            rest = tail;
        }
        Ok(())
    }

    /// Reads from a stream straight into the buffers, until they are full or the stream has no more for
    /// now. `WouldBlock` is an error only when nothing was read.
    pub(super) fn fill_from(&self, mut stream: &UnixStream) -> io::Result<usize> {
        let mut filled = 0;
        for slice in &self.slices {
            let read = match without_interruption(|| stream.read_volatile(&mut slice.clone())) {
                Ok(read) => read,
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            };
            filled += read;
            if read < slice.len() {
                break;
            }
        }
        Ok(filled)
    }

    /// Writes the buffers straight into a stream, as much as it takes for now.
    pub(super) fn drain_to(&self, mut stream: &UnixStream) -> io::Result<usize> {
        let mut drained = 0;
        for slice in &self.slices {
            let written = match without_interruption(|| stream.write_volatile(slice)) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            drained += written;
            if written < slice.len() {
                break;
            }
        }
        Ok(drained)
    }

    /// Appends everything from byte `start` on.
    pub(super) fn append_to(&self, backlog: &mut Vec<u8>, start: usize) -> Result<(), VolatileMemoryError> {
        let mut skip = start;
        for slice in &self.slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            backlog.write_all_volatile(&slice.offset(skipped)?)?;
        }
        Ok(())
    }
}

fn without_interruption(mut act: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match act() {
            Ok(len) => return Ok(len),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_as_it_was_written() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.to_bytes(), bytes);
    }
}
