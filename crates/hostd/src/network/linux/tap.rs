//! TAP interfaces: three ioctl(2)s of /dev/net/tun, as linux/if_tun.h has them.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/net/tun";

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;

/// `struct virtio_net_hdr_v1`: virtio's header, which the machines' network cards speak.
const HEADER_LEN: i32 = 12;

const NAME_LEN: usize = 16;

/// `struct ifreq`, of which the kernel reads name and flags here.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_LEN],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);

/// Makes an interface in the calling thread's network namespace. It lives for as long as the descriptor, or a
/// duplicate of it, is open.
pub(super) fn make(name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = rustix::fs::openat(CWD, DEVICE, flags, Mode::empty())?;
    let mut request =
        InterfaceRequest { name: [0; NAME_LEN], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    let field = request.name.get_mut(..name.len()).filter(|field| field.len() < NAME_LEN);
    field.ok_or(Errno::INVAL)?.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which has this layout and length.
    let set_interface = unsafe { Setter::<TUNSETIFF, InterfaceRequest>::new(request) };
    // SAFETY: as above; the kernel writes nothing outside of what it is given.
    unsafe { ioctl(&tap, set_interface) }?;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    let set_header_len = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(HEADER_LEN) };
    // SAFETY: as above.
    unsafe { ioctl(&tap, set_header_len) }?;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let set_offload = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(TUN_F_CSUM | TUN_F_TSO4) };
    // SAFETY: as above.
    unsafe { ioctl(&tap, set_offload) }?;
    Ok(tap)
}
