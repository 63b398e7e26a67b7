//! One VMM process, spoken to over its control channel as hostd does it.

use crate::place;
use crate::saved::Saved;
use podflare_channel::{Channel, ChannelError};
use podflare_wire::codec;
use podflare_wire::control::{
    BootConfig, Check, Command, Event, Extent, Fault, Forked, Inspection, Loaded, Message, PageRun, Reply,
    Thawed,
};
use podflare_wire::limits::CONTROL_MESSAGE_LEN_MAX;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

/// A VMM process. Dropping it ends the process.
#[derive(Debug)]
pub struct Vmm {
    pub pid: u32,
    channel: Option<Channel>,
    pidfd: OwnedFd,
}

/// Why files were of no use.
///
/// # Panics
/// When they were of use.
#[expect(clippy::panic, reason = "that must fail the test")]
pub fn fault(reply: Reply) -> (Fault, String) {
    match reply {
        Reply::Unusable { fault, reason } => (fault, reason),
        other => panic!("{other:?}"),
    }
}

/// What a machine is booted from.
#[derive(Debug)]
pub struct Boot {
    pub kernel: File,
    pub initramfs: File,
    pub disk_base: File,
    pub config: BootConfig,
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl Vmm {
    /// Starts an empty VMM.
    #[expect(clippy::zombie_processes, reason = "it is reaped through its pidfd, as its copies are")]
    pub fn start() -> Vmm {
        let (ours, theirs) = Channel::pair().unwrap();
        let child = std::process::Command::new(place::program("podflare-vmm"))
            .arg("serve")
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .unwrap();
        let pid = child.id();
        let pidfd = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
        Vmm { pid, channel: Some(ours), pidfd }
    }

    pub fn boot(&self, boot: &Boot) {
        let layer = tempfile::tempfile().unwrap();
        let files = [&boot.kernel, &boot.initramfs, &boot.disk_base, &layer].map(|file| file.as_fd());
        let (reply, _) = self.ask(&Command::Boot(boot.config.clone()), &files);
        assert_eq!(reply, Reply::Booted);
    }

    /// Copies the machine; the copy is frozen.
    pub fn fork(&self) -> (Vmm, Forked) {
        let (ours, theirs) = Channel::pair().unwrap();
        let layer = tempfile::tempfile().unwrap();
        let (reply, mut descriptors) = self.ask(&Command::Fork, &[theirs.as_fd(), layer.as_fd()]);
        let Reply::Forked(forked) = reply else { panic!("{reply:?}") };
        let pidfd = descriptors.pop().unwrap();
        (Vmm { pid: forked.pid, channel: Some(ours), pidfd }, forked)
    }

    /// Writes the whole of this frozen machine into files.
    pub fn save(&self) -> Saved {
        let saved = Saved::empty();
        let (reply, _) = self.ask(&Command::Save(Extent::Whole), &saved.descriptors());
        assert!(matches!(reply, Reply::Saved(_)), "{reply:?}");
        saved
    }

    /// Writes what differs from a base.
    pub fn save_changes(&self, base: &Saved) -> Saved {
        let saved = Saved::empty();
        let reply = self.try_save_changes(&saved, base);
        assert!(matches!(reply, Reply::Saved(_)), "{reply:?}");
        saved
    }

    pub fn try_save_changes(&self, saved: &Saved, base: &Saved) -> Reply {
        let descriptors = [saved.descriptors(), base.descriptors()].concat();
        self.ask(&Command::Save(Extent::Changes), &descriptors).0
    }

    /// A frozen machine of files, in a process of its own.
    pub fn load(saved: &Saved, disk_base: &File) -> Vmm {
        let vmm = Vmm::start();
        let reply = vmm.try_load(saved, disk_base, Check::Index);
        assert!(matches!(reply, Reply::Loaded(_)), "{reply:?}");
        vmm
    }

    pub fn try_load(&self, saved: &Saved, disk_base: &File, check: Check) -> Reply {
        let layer = tempfile::tempfile().unwrap();
        let [state, memory, disk] = saved.descriptors();
        self.ask(&Command::Load(check), &[state, memory, disk, disk_base.as_fd(), layer.as_fd()]).0
    }

    /// Lays saved changes over this frozen machine.
    pub fn overlay(&self, changes: &Saved) -> Loaded {
        match self.try_overlay(changes, Check::Index) {
            Reply::Overlaid(loaded) => loaded,
            other => panic!("{other:?}"),
        }
    }

    pub fn try_overlay(&self, changes: &Saved, check: Check) -> Reply {
        self.ask(&Command::Overlay(check), &changes.descriptors()).0
    }

    /// Makes the disk of this running machine longer.
    pub fn grow_disk(&self, bytes: u64) {
        assert_eq!(self.ask(&Command::GrowDisk { bytes }, &[]).0, Reply::DiskGrown);
    }

    /// Connects a stream to a port of the guest.
    pub fn connect(&self, port: u32, stream: &OwnedFd) {
        let (reply, _) = self.ask(&Command::Connect { port }, &[stream.as_fd()]);
        assert_eq!(reply, Reply::Connecting);
    }

    pub fn thaw(&self) -> Thawed {
        match self.ask(&Command::Thaw, &[]).0 {
            Reply::Thawed(thawed) => thawed,
            other => panic!("{other:?}"),
        }
    }

    /// Makes it run and note which pages are touched.
    pub fn thaw_recording(&self) -> Thawed {
        match self.ask(&Command::ThawRecording, &[]).0 {
            Reply::Thawed(thawed) => thawed,
            other => panic!("{other:?}"),
        }
    }

    /// What has been touched since then.
    pub fn hot_pages(&self) -> Vec<PageRun> {
        match self.ask(&Command::ReadHotPages, &[]).0 {
            Reply::HotPages(runs) => runs,
            other => panic!("{other:?}"),
        }
    }

    /// Makes each copy of this frozen machine bring these pages in before it runs.
    pub fn set_hot_pages(&self, runs: Vec<PageRun>) {
        assert_eq!(self.ask(&Command::SetHotPages(runs), &[]).0, Reply::HotPagesSet);
    }

    pub fn freeze(&self) {
        let reply = self.ask(&Command::Freeze, &[]).0;
        assert!(matches!(reply, Reply::Frozen { .. }), "{reply:?}");
    }

    pub fn console(&self) -> Vec<u8> {
        match self.ask(&Command::ReadConsole, &[]).0 {
            Reply::Console { tail } => tail,
            other => panic!("{other:?}"),
        }
    }

    pub fn inspect(&self) -> Inspection {
        match self.ask(&Command::Inspect, &[]).0 {
            Reply::Inspected(inspection) => inspection,
            other => panic!("{other:?}"),
        }
    }

    /// Why a command was not carried out.
    pub fn refusal(&self, command: &Command) -> String {
        match self.ask(command, &[]).0 {
            Reply::Refused { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the event that no command asked for.
    pub fn event(&self) -> Event {
        match self.receive().0 {
            Message::Event(event) => event,
            Message::Reply(reply) => panic!("{reply:?}"),
        }
    }

    /// What the process says of its end, if it has ended.
    pub fn end(&self) -> Option<String> {
        match self.channel().receive(CONTROL_MESSAGE_LEN_MAX) {
            Ok((bytes, _)) => match codec::decode(&bytes).unwrap() {
                Message::Event(Event::Ended { reason, console_tail }) => {
                    Some(format!("{reason:?}; its console:\n{}", String::from_utf8_lossy(&console_tail)))
                }
                other => panic!("{other:?}"),
            },
            Err(ChannelError::Closed) => Some("nothing at all".into()),
            Err(ChannelError::WouldBlock) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The descriptors that the process holds, as the kernel names them.
    pub fn open_files(&self) -> Vec<String> {
        // It lets go of what it has sent only after its reply, but before it answers the next command.
        self.inspect();
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
            target.to_string_lossy().into_owned()
        };
        let mut names: Vec<_> =
            std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().map(name).collect();
        names.sort();
        names
    }

    pub fn kill(&self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).unwrap();
    }

    /// Closes the channel, as a hostd that dies does, and waits for the process to end.
    pub fn hang_up(mut self) {
        self.channel = None;
        self.reap();
    }

    fn ask(&self, command: &Command, descriptors: &[BorrowedFd<'_>]) -> (Reply, Vec<OwnedFd>) {
        self.channel().send(&codec::encode(command), descriptors).unwrap();
        match self.receive() {
            (Message::Reply(reply), descriptors) => (reply, descriptors),
            (Message::Event(event), _) => panic!("{event:?}"),
        }
    }

    fn receive(&self) -> (Message, Vec<OwnedFd>) {
        loop {
            match self.channel().receive(CONTROL_MESSAGE_LEN_MAX) {
                Ok((bytes, descriptors)) => match codec::decode(&bytes).unwrap() {
                    // The source's reply has said so already.
                    Message::Event(Event::Copied) => {}
                    message => return (message, descriptors),
                },
                Err(ChannelError::WouldBlock) => self.channel().wait_readable().unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn channel(&self) -> &Channel {
        self.channel.as_ref().unwrap()
    }

    fn reap(&self) {
        waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if self.channel.is_some() {
            // It fails only when the process has been ended and reaped already.
            let sent = pidfd_send_signal(&self.pidfd, Signal::KILL);
            if sent.is_ok() {
                self.reap();
            }
        }
    }
}
