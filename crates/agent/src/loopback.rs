//! Brings the loopback interface up; the kernel then gives it 127.0.0.1.

use crate::netlink::{Batch, Netlink, Service};
use rustix::io::Errno;

/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

pub(crate) fn up() -> Result<(), Errno> {
    let mut batch = Batch::default();
    crate::network::set_up(&mut batch, LOOPBACK_INDEX);
    Netlink::open(Service::Route)?.carry_out(batch)
}
