//! What is saved of the socket device. Connections are not: those that the guest knows of are to be reset when it
//! comes back, as in a copy.

use super::{ANSWERS_MAX, CONNECTIONS_MAX, HOST_PORT_FIRST, HOST_PORT_LAST, Ports, TX, Vsock};
use crate::devices::DeviceStateError;
use crate::devices::virtio::VirtioDevice;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VsockState {
    resets: Vec<Ports>,
    answers: Vec<Ports>,
    /// Heads of chains that the driver has yet to get back.
    transmitted: Vec<u16>,
    next_host_port: u32,
}

impl Vsock {
    pub(crate) fn state(&self) -> VsockState {
        let known = self.connections.iter().filter(|(_, connection)| connection.is_known_to_guest());
        let lost = known.map(|(&host, connection)| Ports { guest: connection.guest_port(), host });
        VsockState {
            resets: self.resets.iter().copied().chain(lost).collect(),
            answers: self.answers.iter().copied().collect(),
            transmitted: self.transmitted.heads().to_vec(),
            next_host_port: self.next_host_port,
        }
    }

    pub(crate) fn check(state: &VsockState) -> Result<(), DeviceStateError> {
        let fits = state.resets.len() <= CONNECTIONS_MAX
            && state.answers.len() <= ANSWERS_MAX
            && state.transmitted.len() <= usize::from(Vsock::QUEUE_SIZES[TX])
            && (HOST_PORT_FIRST..=HOST_PORT_LAST).contains(&state.next_host_port);
        if fits { Ok(()) } else { Err(DeviceStateError::Vsock) }
    }

    /// What was checked. It has no connection afterwards.
    pub(crate) fn restore(&mut self, state: VsockState) {
        let poller = self.poller.take();
        *self = Vsock::new();
        self.poller = poller;
        self.resets = state.resets.into();
        self.answers = state.answers.into();
        self.transmitted.keep_again(state.transmitted);
        self.next_host_port = state.next_host_port;
    }
}
