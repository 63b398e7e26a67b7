//! Takes the uncompressed kernel out of a distribution's `vmlinuz`.
//!
//! The file's own header says where the payload is (Documentation/arch/x86/boot.rst, protocol 2.08), so
//! nothing is searched for.

use crate::error::BuildError;
use crate::tool;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

const SETUP_SECTORS: usize = 0x1f1;
const SIGNATURE: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
/// The first protocol that tells where the payload is.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x208;
/// The kernel's build appends the unpacked size to every payload that does not end with it (all but gzip).
const APPENDED_SIZE_BYTES: usize = 4;

/// Magic number, and the program that unpacks what follows it.
const PACKERS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// Writes the ELF file that is packed in `vmlinuz` to `vmlinux`.
pub(crate) fn unpack(vmlinuz: &Path, vmlinux: &Path) -> Result<(), BuildError> {
    let image = fs::read(vmlinuz).map_err(BuildError::file("read", vmlinuz))?;
    let refuse = |reason| BuildError::Kernel { path: vmlinuz.to_owned(), reason };
    let (program, payload) = payload(&image).map_err(refuse)?;
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, payload).map_err(BuildError::file("write", &packed))?;
    let input = File::open(&packed).map_err(BuildError::file("open", &packed))?;
    let mut unpacker = tool::command(program)?;
    let unpacked = tool::output(unpacker.args(["-d", "-c"]).stdin(Stdio::from(input)))?;
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(refuse("the payload is not an ELF file"));
    }
    fs::write(vmlinux, unpacked).map_err(BuildError::file("write", vmlinux))?;
    fs::remove_file(&packed).map_err(BuildError::file("remove", &packed))
}

fn payload(image: &[u8]) -> Result<(&'static str, &[u8]), &'static str> {
    if image.get(SIGNATURE..SIGNATURE + 4) != Some(b"HdrS") {
        return Err("it has no x86 boot header");
    }
    if u16_at(image, PROTOCOL).is_none_or(|protocol| protocol < PROTOCOL_WITH_PAYLOAD) {
        return Err("its boot protocol is older than 2.08");
    }
    let truncated = "it is truncated";
    let field = |at| u32_at(image, at).and_then(|value| usize::try_from(value).ok()).ok_or(truncated);
    let setup_sectors = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR_BYTES + field(PAYLOAD_OFFSET)?;
    let end = start.checked_add(field(PAYLOAD_LENGTH)?).ok_or(truncated)?;
    let payload = image.get(start..end).ok_or(truncated)?;
    let packer = PACKERS.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, program) = packer.ok_or("its payload is packed in a way that is not known here")?;
    let appended = if *program == "gzip" { 0 } else { APPENDED_SIZE_BYTES };
    Ok((program, &payload[..payload.len() - appended]))
}

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*image.get(at..)?.first_chunk()?))
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES];
        image[SETUP_SECTORS] = 1;
        image[SIGNATURE..SIGNATURE + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&8_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0; 8]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_by_the_header_and_told_by_its_magic() {
        let image = image(b"\x28\xb5\x2f\xfdpacked\x01\x02\x03\x04");
        assert_eq!(payload(&image).unwrap(), ("zstd", &b"\x28\xb5\x2f\xfdpacked"[..]));
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let mut short = image(b"\x28\xb5\x2f\xfdpacked");
        short.truncate(short.len() - 1);
        for wrong in [&b""[..], b"\x7fELF", &short, &image(b"something else")] {
            assert!(payload(wrong).is_err());
        }
    }

    #[test]
    fn a_packed_kernel_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, b"\x7fELF and so on").unwrap();
        let packed = tool::output(tool::command("gzip").unwrap().arg("-c").arg(&plain)).unwrap();
        let vmlinuz = dir.path().join("vmlinuz");
        fs::write(&vmlinuz, image(&packed)).unwrap();
        let vmlinux = dir.path().join("vmlinux");
        unpack(&vmlinuz, &vmlinux).unwrap();
        assert_eq!(fs::read(&vmlinux).unwrap(), fs::read(&plain).unwrap());
    }
}
