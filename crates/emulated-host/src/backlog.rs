//! Lets the forwarded port take many connections at once.
//!
//! QEMU's user network listens with a backlog of 1: of many connections that come together, all but the first few wait a
//! second for the kernel's next attempt, and some are reset. The length belongs to the socket, and may be set anew by
//! whoever has a descriptor of it.

use rustix::net::{getsockname, listen, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// As hostd's own; the kernel lowers it to its maximum.
const BACKLOG: i32 = 4096;

/// How long QEMU may take to listen, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the process listens at the address, and lengthens the backlog there.
pub(crate) fn lengthen(process: &mut Child, address: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while process.try_wait()?.is_none() && Instant::now() < deadline {
        if let Some(socket) = listening_socket(process.id(), address)? {
            return Ok(listen(&socket, BACKLOG)?);
        }
        sleep(PAUSE);
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A duplicate of the process's own descriptor.
fn listening_socket(pid: u32, address: SocketAddr) -> io::Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid.cast_signed()) else { return Ok(None) };
    let process = pidfd_open(number, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have been closed meanwhile.
        let Ok(descriptor) = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()) else { continue };
        let listens = sockopt::socket_acceptconn(&descriptor).unwrap_or(false);
        if listens && getsockname(&descriptor).is_ok_and(|name| SocketAddr::try_from(name) == Ok(address)) {
            return Ok(Some(descriptor));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpStream;
    use std::process::{Command, Stdio};

    /// Listens as QEMU does, says where, and accepts nothing.
    const LISTENER: &str = "import socket, time\n\
        s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen(1)\nprint(s.getsockname()[1], flush=True)\n\
        time.sleep(600)";

    #[test]
    fn many_connections_are_taken_at_once_though_nobody_accepts_them() {
        let mut process =
            Command::new("python3").args(["-c", LISTENER]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address: SocketAddr = format!("127.0.0.1:{}", line.trim()).parse().unwrap();
        lengthen(&mut process, address).unwrap();
        // With the backlog that it has chosen, the third would wait for ever.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(60)).unwrap();
        let connections: Vec<TcpStream> = (0..32).map(connect).collect();
        assert_eq!(connections.len(), 32);
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_process_that_ends_before_it_listens_is_not_waited_for() {
        let mut process = Command::new("true").spawn().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        assert!(lengthen(&mut process, address).is_err());
    }
}
