//! The agent in a Linux guest, spoken to without hostd: over a stream that its VMM connects.

use crate::vmm::Vmm;
use crate::wait::DEADLINE;
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::guest::{
    AGENT_PORT, ENTROPY_LEN, Event, ExecId, Language, OutputStream, PROTOCOL, Renewal, Request,
};
use podflare_wire::limits::EVENT_FRAME_LEN_MAX;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A renewed connection.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    frames: FrameReader,
    next_exec: u32,
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl Agent {
    /// Connects to the agent of a machine that runs or will run, trying until it is there, and renews it.
    pub fn connect(vmm: &Vmm, seed: u8) -> Agent {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "no agent; the console says:\n{}", console_of(vmm));
            let mut agent = Agent::open(vmm);
            match agent.receive() {
                Some(Event::Hello { protocol }) => assert_eq!(protocol, PROTOCOL),
                Some(other) => panic!("{other:?}"),
                // Nobody listens yet.
                None => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            }
            agent.renew(seed);
            return agent;
        }
    }

    /// Connects to the agent of a frozen machine, then makes the machine run. The agent listens already, so
    /// that there is one try.
    pub fn connect_and_thaw(vmm: &Vmm, seed: u8) -> Agent {
        let mut agent = Agent::open(vmm);
        vmm.thaw();
        assert_eq!(agent.receive(), Some(Event::Hello { protocol: PROTOCOL }));
        agent.renew(seed);
        agent
    }

    fn open(vmm: &Vmm) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        vmm.connect(AGENT_PORT, &OwnedFd::from(theirs));
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        Agent { stream: ours, frames: FrameReader::new(EVENT_FRAME_LEN_MAX), next_exec: 0 }
    }

    /// Runs Python and returns its output.
    pub fn python(&mut self, code: &str) -> String {
        self.exec(Language::Python, code)
    }

    pub fn bash(&mut self, code: &str) -> String {
        self.exec(Language::Bash, code)
    }

    fn exec(&mut self, language: Language, code: &str) -> String {
        let exec = ExecId(self.next_exec);
        self.next_exec += 1;
        self.send(&Request::Exec { exec, language, code: code.to_owned() });
        let mut output = Vec::new();
        loop {
            match self.receive() {
                Some(Event::Output { exec: of, stream: OutputStream::Stdout, data }) if of == exec => {
                    output.extend(data);
                }
                Some(Event::Exited { exit_code: 0, .. }) => return String::from_utf8(output).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether the agent has closed the connection.
    pub fn is_lost(&mut self) -> bool {
        self.receive().is_none()
    }

    fn renew(&mut self, seed: u8) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        self.send(&Request::Renew(Renewal {
            entropy: vec![seed; ENTROPY_LEN],
            unix_time_ns: u64::try_from(now.as_nanos()).unwrap(),
            hostname: format!("guest-{seed}"),
        }));
        assert!(matches!(self.receive(), Some(Event::Renewed { .. })));
    }

    fn send(&mut self, request: &Request) {
        self.stream.write_all(&encode_frame(request)).unwrap();
    }

    fn receive(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.frames.next_message().unwrap() {
                return Some(event);
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.frames.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn console_of(vmm: &Vmm) -> String {
    String::from_utf8_lossy(&vmm.console()).into_owned()
}
