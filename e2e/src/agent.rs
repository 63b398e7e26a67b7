//! The agent in a Linux guest, spoken to without hostd: over a stream that its VMM connects.

use crate::vmm::Vmm;
use crate::wait::DEADLINE;
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::guest::{
    AGENT_PORT, ENTROPY_LEN, Event, ExecContext, ExecId, Language, NetworkIdentity, OutputStream, PROTOCOL,
    Renewal, Request,
};
use podflare_wire::limits::EVENT_FRAME_LEN_MAX;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A renewed connection.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    frames: FrameReader,
    next_exec: u32,
}

/// What there was instead of an answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nothing, for as long as it was waited for.
    Nothing,
    /// The connection was closed.
    Closed,
    /// Another answer than any that may come.
    Unexpected(Event),
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl Agent {
    /// Connects to the agent of a machine that runs or will run, trying until it is there, and renews it.
    pub fn connect(vmm: &Vmm, seed: u8) -> Agent {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "no agent; the console says:\n{}", console_of(vmm));
            let mut agent = Agent::open(vmm);
            match agent.renew(seed) {
                Ok(()) => return agent,
                // Nobody listens yet.
                Err(NoAnswer::Closed) => std::thread::sleep(Duration::from_millis(100)),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    /// Connects to the agent of a frozen machine, then makes the machine run. The agent listens already, so
    /// that there is one try.
    pub fn connect_and_thaw(vmm: &Vmm, seed: u8) -> Agent {
        let mut agent = Agent::open(vmm);
        vmm.thaw();
        agent.renew(seed).unwrap();
        agent
    }

    /// Connects, and waits for nothing. [`Agent::renew`] comes next.
    pub fn open(vmm: &Vmm) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        vmm.connect(AGENT_PORT, &OwnedFd::from(theirs));
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        Agent { stream: ours, frames: FrameReader::new(EVENT_FRAME_LEN_MAX), next_exec: 0 }
    }

    /// Waits no longer than this for each answer.
    pub fn set_patience(&self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).unwrap();
    }

    /// Runs Python and returns its output.
    pub fn python(&mut self, code: &str) -> String {
        self.exec(Language::Python, code).unwrap()
    }

    pub fn bash(&mut self, code: &str) -> String {
        self.exec(Language::Bash, code).unwrap()
    }

    pub fn exec(&mut self, language: Language, code: &str) -> Result<String, NoAnswer> {
        let exec = self.begin(language, code)?;
        let mut output = Vec::new();
        while let Some(data) = self.next_output(exec)? {
            output.extend(data);
        }
        Ok(String::from_utf8(output).unwrap())
    }

    /// Starts code whose output comes from [`Agent::next_output`].
    pub fn begin(&mut self, language: Language, code: &str) -> Result<ExecId, NoAnswer> {
        let exec = ExecId(self.next_exec);
        self.next_exec += 1;
        let context = ExecContext::default();
        self.send(&Request::Exec { exec, language, code: code.to_owned(), context, announce: false })?;
        Ok(exec)
    }

    /// The next part of what the code writes; none when it has ended well.
    pub fn next_output(&mut self, of: ExecId) -> Result<Option<Vec<u8>>, NoAnswer> {
        loop {
            match self.next_event()? {
                // A copy's agent tells the end of what already ran in its source.
                Event::Exited { exec: ExecId::INHERITED, .. } => {}
                Event::Output { exec, stream: OutputStream::Stdout, data } if exec == of => {
                    return Ok(Some(data));
                }
                Event::Exited { exec, exit_code: 0, .. } if exec == of => return Ok(None),
                other => return Err(NoAnswer::Unexpected(other)),
            }
        }
    }

    /// Whether the agent has closed the connection.
    pub fn is_lost(&mut self) -> bool {
        self.receive().is_none()
    }

    pub fn renew(&mut self, seed: u8) -> Result<(), NoAnswer> {
        self.send(&Request::Renew(Renewal {
            entropy: vec![seed; ENTROPY_LEN],
            unix_time_ns: unix_time_ns(),
            hostname: format!("guest-{seed}"),
            // Its card is plugged into nothing; a copy gets another address all the same.
            network: Some(NetworkIdentity {
                mac: [2, 0, 198, 18, 1, seed],
                address: Ipv4Addr::new(198, 18, 1, seed),
                gateway: Ipv4Addr::new(198, 18, 0, 1),
            }),
        }))?;
        self.confirm()
    }

    /// Tells the time again.
    pub fn set_clock(&mut self) -> Result<(), NoAnswer> {
        self.send(&Request::SetClock { unix_time_ns: unix_time_ns() })?;
        match self.next_event()? {
            Event::ClockSet => Ok(()),
            other => Err(NoAnswer::Unexpected(other)),
        }
    }

    /// Waits for the answer to a renewal, which greets too.
    pub fn confirm(&mut self) -> Result<(), NoAnswer> {
        match (self.next_event()?, self.next_event()?) {
            (Event::Hello { protocol: PROTOCOL }, Event::Renewed { .. }) => Ok(()),
            (Event::Hello { protocol: PROTOCOL }, other) | (other, _) => Err(NoAnswer::Unexpected(other)),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), NoAnswer> {
        self.stream.write_all(&encode_frame(request)).map_err(|_| NoAnswer::Closed)
    }

    /// None when the connection was closed.
    fn receive(&mut self) -> Option<Event> {
        match self.next_event() {
            Ok(event) => Some(event),
            Err(NoAnswer::Closed) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn next_event(&mut self) -> Result<Event, NoAnswer> {
        loop {
            if let Some(event) = self.frames.next_message().unwrap() {
                return Ok(event);
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(NoAnswer::Closed),
                Ok(count) => self.frames.push(&bytes[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::ConnectionReset => return Err(NoAnswer::Closed),
                    ErrorKind::WouldBlock => return Err(NoAnswer::Nothing),
                    _ => panic!("{error}"),
                },
            }
        }
    }
}

fn console_of(vmm: &Vmm) -> String {
    String::from_utf8_lossy(&vmm.console()).into_owned()
}

#[expect(clippy::unwrap_used, reason = "a clock before 1970 must fail the test")]
fn unix_time_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}
