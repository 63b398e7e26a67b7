//! The process machine against threads that speak the control protocol, with `cat` for processes.

use super::child::tests::stand_in;
use super::*;
use crate::network::Network;
use crate::network::egress::Egress;
use crate::sandbox::admission::Admission;
use crate::sandbox::copies;
use podflare_wire::codec::{decode, encode, encode_frame};
use podflare_wire::control::{EndReason, Event, Forked, Message, Thawed};
use podflare_wire::guest;
use podflare_wire::limits::CONTROL_MESSAGE_LEN_MAX;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers every command as a VMM does; streams are an agent's that echoes. Pids of copies go to `copies`.
fn serve(channel: Channel, copies: mpsc::Sender<u32>) {
    serve_counting(channel, copies, Arc::default());
}

/// Counts the forks of this one machine, too.
fn serve_counting(channel: Channel, copies: mpsc::Sender<u32>, forks: Arc<AtomicU32>) {
    std::thread::spawn(move || {
        while channel.wait_readable().is_ok() {
            let Ok((bytes, mut descriptors)) = channel.receive(CONTROL_MESSAGE_LEN_MAX) else { return };
            let (reply, pidfd) = match decode(&bytes).unwrap() {
                Command::Fork => {
                    forks.fetch_add(1, Ordering::SeqCst);
                    let (pid, pidfd) = copy(descriptors.remove(0), &copies);
                    let times = Forked { pid, pause_us: 3_000, stop_us: 0, save_us: 1_000, fork_us: 2_000 };
                    (Reply::Forked(times), Some(pidfd))
                }
                Command::Thaw => (Reply::Thawed(Thawed { build_us: 1, restore_us: 2, prefault_us: 0 }), None),
                Command::Connect { .. } => {
                    greet_and_echo(descriptors.remove(0));
                    (Reply::Connecting, None)
                }
                Command::Inspect => {
                    let reason = EndReason::VcpuFailed { detail: "KVM internal error".into() };
                    let ended = Message::Event(Event::Ended { reason, console_tail: Vec::new() });
                    channel.send(&encode(&ended), &[]).unwrap();
                    return;
                }
                _ => (Reply::Refused { reason: "not now".into() }, None),
            };
            let descriptors: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
            if channel.send(&encode(&Message::Reply(reply)), &descriptors).is_err() {
                return;
            }
        }
    });
}

/// A copy that introduces itself and serves its channel.
fn copy(channel: OwnedFd, copies: &mpsc::Sender<u32>) -> (u32, OwnedFd) {
    let (pid, pidfd) = stand_in();
    copies.send(pid).unwrap();
    let channel = Channel::from_fd(channel);
    // hostd may have let go of it already.
    channel.send(&encode(&Message::Event(Event::Copied)), &[pidfd.as_fd()]).ok();
    serve(channel, copies.clone());
    (pid, pidfd)
}

/// What an agent says when everything goes well.
fn greeting() -> Vec<u8> {
    let hello = guest::Event::Hello { protocol: guest::PROTOCOL };
    let renewed = guest::Event::Renewed { repl: guest::ReplRenewal::Done, inherited: None };
    [encode_frame(&hello), encode_frame(&renewed)].concat()
}

fn greet_and_echo(stream: OwnedFd) {
    std::thread::spawn(move || {
        let mut stream = std::os::unix::net::UnixStream::from(stream);
        stream.set_nonblocking(false).unwrap();
        if stream.write_all(&greeting()).is_err() {
            return;
        }
        let mut bytes = [0; 16];
        while let Ok(len @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..len]).is_err() {
                return;
            }
        }
    });
}

struct Fixture {
    machine: ProcessMachine,
    copies: mpsc::Receiver<u32>,
    pid: u32,
    _state_dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    fixture_served_by(serve)
}

fn fixture_served_by(serve: impl FnOnce(Channel, mpsc::Sender<u32>)) -> Fixture {
    let state_dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let (sender, copies) = mpsc::channel();
    serve(theirs, sender);
    let (machine, child) = ProcessMachine::new(ours, Home::new(state_dir.path())).unwrap();
    let (pid, pidfd) = stand_in();
    child.try_send(pidfd).unwrap();
    Fixture { machine, copies, pid, _state_dir: state_dir }
}

fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

async fn wait_until_gone(pid: u32) {
    let gone = async {
        while exists(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.unwrap_or_else(|_| panic!("process {pid} is still there"));
}

#[tokio::test]
async fn commands_to_a_copy_are_sent_before_it_exists_and_all_answered() {
    let fixture = fixture();
    let twin = fixture.machine.fork().unwrap();
    let child = twin.copy.fork().unwrap();
    let mut stream = child.copy.connect(5555).unwrap();
    stream.write_all(b"before it exists").await.unwrap();
    let thawed = child.copy.thaw(None);

    assert_eq!(twin.done.await.unwrap().pause, Duration::from_millis(3));
    assert_eq!(child.done.await.unwrap().fork, Duration::from_millis(2));
    assert_eq!(thawed.await.unwrap().restore, Duration::from_micros(2));
    let mut bytes = vec![0; greeting().len() + 16];
    stream.read_exact(&mut bytes).await.unwrap();
    assert!(bytes.ends_with(b"before it exists"));
}

#[tokio::test]
async fn ending_a_machine_kills_and_reaps_its_process() {
    let fixture = fixture();
    let fork = fixture.machine.fork().unwrap();
    fork.done.await.unwrap();
    let copy_pid = fixture.copies.recv().unwrap();
    fork.copy.end().await;
    assert!(!exists(copy_pid));
    assert!(exists(fixture.pid), "the source goes on");
    fixture.machine.end().await;
    assert!(!exists(fixture.pid));
    assert!(matches!(fixture.machine.thaw(None).await, Err(VmmError::Ended)));
}

#[tokio::test]
async fn however_many_copies_are_made_their_source_is_forked_once() {
    let forks = Arc::new(AtomicU32::new(0));
    let counted = forks.clone();
    let fixture = fixture_served_by(move |channel, copies| serve_counting(channel, copies, counted));
    let (admission, network) = (Admission::of_this_host(), Network::none());
    let means = copies::Means { admission: &admission, network: &network, egress: &Egress::On };
    let (copies, times) = copies::copy(&fixture.machine, 5, copies::FORK_LIMITS, means).await.unwrap();
    assert!(copies.iter().all(Result::is_ok));
    assert_eq!((copies.len(), fixture.copies.iter().take(5).count()), (5, 5));
    assert_eq!(forks.load(Ordering::SeqCst), 1);
    let timing: Vec<_> = times.record(crate::phases::Phases::default()).iter().copied().collect();
    assert!(timing.contains(&("pause", Duration::from_millis(3))), "{timing:?}");
}

#[tokio::test]
async fn copies_nobody_waits_for_are_reaped() {
    let Fixture { machine, copies, pid, _state_dir } = fixture();
    drop(machine.fork().unwrap());
    drop(machine.fork().unwrap().done);
    drop(machine);
    wait_until_gone(pid).await;
    for _ in 0..2 {
        wait_until_gone(copies.recv().unwrap()).await;
    }
}

#[tokio::test]
async fn a_copy_whose_source_dies_before_it_answers_is_reaped() {
    let fixture = fixture_served_by(|channel, copies| {
        std::thread::spawn(move || {
            channel.wait_readable().unwrap();
            let (_fork, mut descriptors) = channel.receive(CONTROL_MESSAGE_LEN_MAX).unwrap();
            copy(descriptors.remove(0), &copies);
        });
    });
    let fork = fixture.machine.fork().unwrap();
    assert!(matches!(fork.done.await, Err(VmmError::Ended)));
    let copy_pid = fixture.copies.recv().unwrap();
    assert!(fork.copy.thaw(None).await.is_ok(), "the copy lives");
    drop(fork.copy);
    wait_until_gone(copy_pid).await;
}

#[tokio::test]
async fn a_machine_that_is_to_end_takes_no_more_commands() {
    let (ours, theirs) = Channel::pair().unwrap();
    let state_dir = tempfile::tempdir().unwrap();
    let (machine, child) = ProcessMachine::new(ours, Home::new(state_dir.path())).unwrap();
    let thawed = machine.thaw(None);
    let ended = machine.end();
    let refused = async {
        while !matches!(machine.thaw(None).now_or_never(), Some(Err(VmmError::Ended))) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), refused).await.unwrap();
    serve(theirs, mpsc::channel().0);
    child.try_send(stand_in().1).unwrap();
    assert!(thawed.await.is_ok(), "what was asked before is answered");
    ended.await;
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_says_why() {
    let fixture = fixture();
    let ended = fixture.machine.ended();
    drop(fixture.machine.ask(&Command::Inspect, &[], |_, _| Some(())));
    assert_eq!(ended.await.to_string(), "a virtual CPU failed: KVM internal error");
    wait_until_gone(fixture.pid).await;
}

#[tokio::test]
async fn a_refusal_reaches_whoever_asked() {
    let fixture = fixture();
    let refused = fixture.machine.freeze().await;
    assert!(matches!(refused, Err(VmmError::Refused { reason }) if reason == "not now"));
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_told_with_its_exit_code() {
    let state_dir = tempfile::tempdir().unwrap();
    let vmm = ProcessVmm::new("/bin/false".into(), state_dir.path());
    let machine = vmm.start().unwrap();
    assert_eq!(*machine.ended().await, Ending::Exited { code: 1 });
}

#[tokio::test]
async fn a_root_disk_that_does_not_fit_is_refused_by_name() {
    let state_dir = tempfile::tempdir().unwrap();
    let path = state_dir.path().join("rootfs.ext4");
    std::fs::write(&path, [0; 8192]).unwrap();
    let boot = BootSpec {
        kernel: path.clone(),
        initramfs: path.clone(),
        rootfs: path,
        config: podflare_wire::control::BootConfig {
            vcpus: 1,
            memory_mib: 128,
            disk_bytes: 4096,
            command_line: String::new(),
            huge_pages: false,
        },
    };
    let vmm = ProcessVmm::new("/bin/false".into(), state_dir.path());
    assert!(matches!(vmm.boot(&boot), Err(VmmError::RootfsTooLarge { actual: 8192, .. })));
}
