//! One request of the block device: parsed from a chain of buffers, carried out, answered.
//!
//! A request that names what is not there gets an error status. One that has no room for a header or a
//! status cannot be answered, and breaks the queue.

use super::disk::Disk;
use crate::devices::virtio::{GuestMemory, QueueError};
use std::io::{self, Read, Write};
use virtio_bindings::virtio_blk as blk;
use virtio_queue::{DescriptorChain, Reader, Writer};

pub(super) const SECTOR_LEN: u64 = 512;

/// Buffers of one request, and bytes of each: a request moves less than 16 MiB.
pub(super) const SEGMENTS_MAX: u32 = 254;
pub(super) const SEGMENT_LEN_MAX: u32 = 64 * 1024;
const DATA_LEN_MAX: usize = 254 * 64 * 1024;

/// Ranges of one discard, and sectors of each: 8 MiB. A request must be quick, since the device is locked, and a
/// fork waits, for as long as it takes. A range whose blocks are scattered in the layer's file costs a system call
/// for each of them: 64 MiB took 77 ms, 8 MiB take 8 (natively, p50 of 10).
pub(super) const DISCARD_SEGMENTS_MAX: u32 = 1;
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 14;

/// What is moved at once. Most requests are no longer than this: the guest kernel's usual read-ahead.
pub(super) const BOUNCE_LEN: usize = 128 * 1024;
const BOUNCE_BYTES: u64 = BOUNCE_LEN as u64;

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;

const SERIAL: [u8; blk::VIRTIO_BLK_ID_BYTES as usize] = *b"podflare-root\0\0\0\0\0\0\0";

/// Why a request was not carried out, as its status says it.
enum Refusal {
    Failed,
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Refusal {
        Refusal::Failed
    }
}

/// Returns how many bytes were written to the chain.
pub(super) fn serve(
    chain: DescriptorChain<&GuestMemory>,
    memory: &GuestMemory,
    disk: &mut Disk,
    bounce: &mut [u8],
) -> Result<u32, QueueError> {
    let mut reader = chain.clone().reader(memory)?;
    let mut writer = chain.writer(memory)?;
    let status_offset = writer.available_bytes().checked_sub(1).ok_or(QueueError::InvalidChain)?;
    let mut status_writer = writer.split_at(status_offset)?;
    let mut header = [0; HEADER_LEN];
    reader.read_exact(&mut header).map_err(|_| QueueError::InvalidChain)?;

    let status = match carry_out(header, &mut reader, &mut writer, disk, bounce) {
        Ok(()) => blk::VIRTIO_BLK_S_OK,
        Err(Refusal::Failed) => blk::VIRTIO_BLK_S_IOERR,
        Err(Refusal::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
    };
    let status = u8::try_from(status).unwrap_or(u8::MAX);
    status_writer.write_all(&[status]).map_err(|_| QueueError::InvalidChain)?;
    u32::try_from(writer.bytes_written() + 1).map_err(|_| QueueError::DescriptorChainOverflow)
}

fn carry_out(
    header: [u8; HEADER_LEN],
    reader: &mut Reader,
    writer: &mut Writer,
    disk: &mut Disk,
    bounce: &mut [u8],
) -> Result<(), Refusal> {
    let (kind, sector) = (le_u32(&header[..4]), le_u64(&header[8..]));
    match kind {
        blk::VIRTIO_BLK_T_IN => read(start(sector)?, writer, disk, bounce),
        blk::VIRTIO_BLK_T_OUT => write(start(sector)?, reader, disk, bounce),
        // See the module above for why there is nothing to do.
        blk::VIRTIO_BLK_T_FLUSH => Ok(()),
        blk::VIRTIO_BLK_T_GET_ID => Ok(writer.write_all(&SERIAL)?),
        blk::VIRTIO_BLK_T_DISCARD => with_range(reader, 0, |offset, len| disk.discard(offset, len)),
        blk::VIRTIO_BLK_T_WRITE_ZEROES => {
            // Whether the driver allows blocks to be freed or not: no request ever reserves space.
            let known_flags = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            with_range(reader, known_flags, |offset, len| disk.write_zeroes(offset, len))
        }
        _ => Err(Refusal::Unsupported),
    }
}

fn read(start: u64, writer: &mut Writer, disk: &Disk, bounce: &mut [u8]) -> Result<(), Refusal> {
    for (offset, len) in chunks(disk, start, writer.available_bytes())? {
        disk.read_at(offset, &mut bounce[..len])?;
        writer.write_all(&bounce[..len])?;
    }
    Ok(())
}

fn write(start: u64, reader: &mut Reader, disk: &mut Disk, bounce: &mut [u8]) -> Result<(), Refusal> {
    for (offset, len) in chunks(disk, start, reader.available_bytes())? {
        reader.read_exact(&mut bounce[..len])?;
        disk.write_at(offset, &bounce[..len])?;
    }
    Ok(())
}

/// Cuts a transfer into pieces that fit the bounce buffer and end at multiples of its length, so that no
/// block is split between two pieces. Refuses the whole of one that is not wholly on the disk.
fn chunks(
    disk: &Disk,
    start: u64,
    len: usize,
) -> Result<impl Iterator<Item = (u64, usize)> + use<>, Refusal> {
    let byte_len = u64::try_from(len).map_err(|_| Refusal::Failed)?;
    if len > DATA_LEN_MAX || !byte_len.is_multiple_of(SECTOR_LEN) {
        return Err(Refusal::Failed);
    }
    disk.check_range(start, byte_len)?;
    let end = start + byte_len;
    let mut offset = start;
    Ok(std::iter::from_fn(move || {
        let piece_end = (offset + 1).next_multiple_of(BOUNCE_BYTES).min(end);
        let piece = (offset, usize::try_from(piece_end - offset).ok()?);
        offset = piece_end;
        (piece.1 > 0).then_some(piece)
    }))
}

/// Calls `act` with the offset and length in bytes of the range that a discard or its like names.
fn with_range(
    reader: &mut Reader,
    known_flags: u32,
    act: impl FnOnce(u64, u64) -> io::Result<()>,
) -> Result<(), Refusal> {
    if reader.available_bytes() != RANGE_LEN {
        return Err(Refusal::Failed);
    }
    let mut range = [0; RANGE_LEN];
    reader.read_exact(&mut range)?;
    let (sector, sectors, flags) = (le_u64(&range[..8]), le_u32(&range[8..12]), le_u32(&range[12..]));
    if flags & !known_flags != 0 {
        return Err(Refusal::Unsupported);
    }
    if sectors > DISCARD_SECTORS_MAX {
        return Err(Refusal::Failed);
    }
    Ok(act(start(sector)?, u64::from(sectors) * SECTOR_LEN)?)
}

/// The offset of a sector in bytes.
fn start(sector: u64) -> Result<u64, Refusal> {
    sector.checked_mul(SECTOR_LEN).ok_or(Refusal::Failed)
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
