//! Serves hostd's commands: one `match` for each phase of a microVM's life, so that what is possible
//! when can be read off.

use crate::boot::{BootFiles, boot};
use crate::devices::virtio::block::disk::DiskError;
use crate::error::chain;
use crate::kvm::vcpu::install_stop_signal;
use crate::machine::{
    Copied, End, ForkError, ForkTimes, Forked, Frozen, FrozenForked, NotPaused, NotRecording, Running,
    ThawError, Wake,
};
use crate::saved::{self, Files, LoadFiles, NotOverlaid, SavedError};
use podflare_channel::{Channel, ChannelError};
use podflare_wire::codec;
use podflare_wire::control::{self, BootConfig, Check, Command, EndReason, Event, Extent, Message, Reply};
use podflare_wire::limits::CONTROL_MESSAGE_LEN_MAX;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("Could not use the control channel")]
    Channel(#[from] ChannelError),
    #[error("hostd sent something that is no command")]
    NotACommand(#[from] codec::DecodeError),
    #[error("Could not set the signal that stops vCPUs")]
    Signal(#[source] std::io::Error),
    #[error("Could not wait for events")]
    Wait(#[source] std::io::Error),
    #[error("Could not make a descriptor of this process")]
    Introduce(#[source] std::io::Error),
}

/// Where a microVM is in its life.
#[derive(Debug)]
enum Phase {
    Empty,
    Running(Box<Running>),
    Frozen(Box<Frozen>),
}

/// What to do after a command.
enum Next {
    Reply(Phase, Reply, Option<OwnedFd>),
    /// This process is a copy now: it has a channel of its own, and nobody waits for a reply.
    Copy(Result<Box<Frozen>, DiskError>, Channel),
    End(Event),
}

/// Serves until hostd closes the channel or the guest ends.
pub fn serve(mut channel: Channel) -> Result<(), ServeError> {
    install_stop_signal().map_err(|errno| ServeError::Signal(errno.into()))?;
    let mut phase = Phase::Empty;
    loop {
        let next = match wait(&phase, &channel)? {
            Wait::Command(command, descriptors) => carry_out(phase, command, descriptors, &channel),
            Wait::VcpuEnded => end(phase),
            Wait::Closed => return Ok(()),
        };
        match next {
            Next::Reply(after, reply, descriptor) => {
                send_reply(&channel, reply, descriptor.as_ref())?;
                phase = after;
            }
            Next::Copy(copy, own) => {
                channel = own;
                introduce(&channel)?;
                match copy {
                    Ok(frozen) => phase = Phase::Frozen(frozen),
                    Err(error) => return send(&channel, &Message::Event(failed(&error)), &[]),
                }
            }
            Next::End(event) => return send(&channel, &Message::Event(event), &[]),
        }
    }
}

/// A copy says itself that it exists: its source may end before it can.
fn introduce(channel: &Channel) -> Result<(), ServeError> {
    let pidfd =
        pidfd_open(getpid(), PidfdFlags::empty()).map_err(|errno| ServeError::Introduce(errno.into()))?;
    send(channel, &Message::Event(Event::Copied), &[pidfd.as_fd()])
}

enum Wait {
    Command(Command, Vec<OwnedFd>),
    VcpuEnded,
    Closed,
}

/// Runs the event loop until there is something to decide.
fn wait(phase: &Phase, channel: &Channel) -> Result<Wait, ServeError> {
    loop {
        match channel.receive(CONTROL_MESSAGE_LEN_MAX) {
            Ok((bytes, descriptors)) => return Ok(Wait::Command(codec::decode(&bytes)?, descriptors)),
            Err(ChannelError::Closed) => return Ok(Wait::Closed),
            Err(ChannelError::WouldBlock) => {}
            Err(error) => return Err(error.into()),
        }
        match phase {
            Phase::Running(running) if wait_running(running)? => return Ok(Wait::VcpuEnded),
            Phase::Running(_) => {}
            Phase::Empty | Phase::Frozen(_) => channel.wait_readable()?,
        }
    }
}

/// Serves connections and queues until a command waits, or a vCPU has ended: then it returns true.
fn wait_running(running: &Running) -> Result<bool, ServeError> {
    loop {
        let wakes = running.wait().map_err(ServeError::Wait)?;
        // Before anything that the guest can keep busy. What else there is stays signalled.
        if wakes.contains(&Wake::Control) {
            return Ok(false);
        }
        if wakes.contains(&Wake::VcpuEnded) {
            return Ok(true);
        }
        for wake in wakes {
            match wake {
                Wake::Connection { host_port, events } => running.host_ready(host_port, events),
                Wake::Round => running.serve_all_queues(),
                Wake::Tap => running.tap_ready(),
                Wake::Control | Wake::VcpuEnded => {}
            }
        }
    }
}

fn carry_out(phase: Phase, command: Command, descriptors: Vec<OwnedFd>, channel: &Channel) -> Next {
    match phase {
        Phase::Empty => when_empty(command, descriptors, channel),
        Phase::Running(running) => when_running(running, &command, descriptors),
        Phase::Frozen(frozen) => when_frozen(frozen, command, descriptors, channel),
    }
}

fn when_empty(command: Command, descriptors: Vec<OwnedFd>, channel: &Channel) -> Next {
    match command {
        Command::Boot(config) => boot_empty(&config, descriptors, channel),
        Command::Load(check) => load_empty(check, descriptors),
        _ => refuse(Phase::Empty, "nothing has been booted yet"),
    }
}

fn boot_empty(config: &BootConfig, descriptors: Vec<OwnedFd>, channel: &Channel) -> Next {
    let Ok([kernel, initramfs, disk_base, disk_layer]) = files(descriptors) else {
        return refuse(Phase::Empty, "a boot needs kernel, initramfs, base disk and disk layer");
    };
    let files = BootFiles { kernel, initramfs, disk_base, disk_layer };
    match boot(config, files, channel.as_fd()) {
        Ok(running) => Next::Reply(Phase::Running(Box::new(running)), Reply::Booted, None),
        Err(error) => refuse(Phase::Empty, &chain(&error)),
    }
}

fn load_empty(check: Check, descriptors: Vec<OwnedFd>) -> Next {
    let Ok([state, memory, disk, disk_base, disk_layer]) = files(descriptors) else {
        return refuse(Phase::Empty, "a load needs state, memory, disk, base disk and disk layer");
    };
    let files = LoadFiles { saved: Files { state, memory, disk }, disk_base, disk_layer };
    match saved::load(files, check) {
        Ok((frozen, loaded)) => Next::Reply(Phase::Frozen(Box::new(frozen)), Reply::Loaded(loaded), None),
        Err(error) => Next::Reply(Phase::Empty, unusable(&error), None),
    }
}

fn save_frozen(mut frozen: Box<Frozen>, extent: Extent, descriptors: Vec<OwnedFd>) -> Next {
    let opened = match extent {
        Extent::Whole => {
            files(descriptors).map(|[state, memory, disk]| (Files { state, memory, disk }, None))
        }
        Extent::Changes => {
            files(descriptors).map(|[state, memory, disk, base_state, base_memory, base_disk]| {
                let base = Files { state: base_state, memory: base_memory, disk: base_disk };
                (Files { state, memory, disk }, Some(base))
            })
        }
    };
    let Ok((files, base)) = opened else {
        return refuse(
            Phase::Frozen(frozen),
            "a save needs state, memory and disk, and a base as many again",
        );
    };
    let reply = match saved::save(&mut frozen, files, base) {
        Ok(saved) => Reply::Saved(saved),
        Err(error) => unusable(&error),
    };
    Next::Reply(Phase::Frozen(frozen), reply, None)
}

fn overlay_frozen(mut frozen: Box<Frozen>, check: Check, descriptors: Vec<OwnedFd>) -> Next {
    let Ok([state, memory, disk]) = files(descriptors) else {
        return refuse(Phase::Frozen(frozen), "an overlay needs state, memory and disk");
    };
    match saved::overlay(&mut frozen, Files { state, memory, disk }, check) {
        Ok(loaded) => Next::Reply(Phase::Frozen(frozen), Reply::Overlaid(loaded), None),
        Err(NotOverlaid::Unchanged(error)) => Next::Reply(Phase::Frozen(frozen), unusable(&error), None),
        Err(NotOverlaid::Lost(error)) => Next::End(failed(&error)),
    }
}

fn unusable(error: &SavedError) -> Reply {
    Reply::Unusable { fault: error.fault(), reason: chain(error) }
}

fn when_running(running: Box<Running>, command: &Command, descriptors: Vec<OwnedFd>) -> Next {
    match command {
        Command::Fork | Command::Freeze if running.is_recording() => {
            refuse(Phase::Running(running), "a recording machine can be neither forked nor frozen")
        }
        Command::Fork => match copy_descriptors(descriptors) {
            Ok((own, layer)) => fork_running(*running, own, layer),
            Err(reason) => refuse(Phase::Running(running), reason),
        },
        Command::Freeze => match running.freeze() {
            Ok((frozen, pause_us)) => {
                Next::Reply(Phase::Frozen(Box::new(frozen)), Reply::Frozen { pause_us }, None)
            }
            Err(what) => not_paused(what),
        },
        Command::Connect { port } => {
            let Ok([stream]) = <[OwnedFd; 1]>::try_from(descriptors) else {
                return refuse(Phase::Running(running), "a connection needs one stream");
            };
            match running.connect(*port, stream) {
                Ok(()) => Next::Reply(Phase::Running(running), Reply::Connecting, None),
                Err(error) => refuse(Phase::Running(running), &chain(&error)),
            }
        }
        Command::GrowDisk { bytes } => match running.grow_disk(*bytes) {
            Ok(()) => Next::Reply(Phase::Running(running), Reply::DiskGrown, None),
            Err(error) => refuse(Phase::Running(running), &chain(&error)),
        },
        Command::Inspect => {
            let inspection = running.inspect();
            Next::Reply(Phase::Running(running), Reply::Inspected(inspection), None)
        }
        Command::ReadConsole => {
            let tail = running.console_tail();
            Next::Reply(Phase::Running(running), Reply::Console { tail }, None)
        }
        Command::ReadHotPages => match running.recorded_pages() {
            Some(runs) => Next::Reply(Phase::Running(running), Reply::HotPages(runs), None),
            None => refuse(Phase::Running(running), "the machine does not record"),
        },
        Command::Save(_) | Command::Overlay(_) => {
            refuse(Phase::Running(running), "only a frozen machine is saved or laid over")
        }
        Command::Boot(_)
        | Command::Load(_)
        | Command::Thaw
        | Command::ThawRecording
        | Command::SetHotPages(_) => refuse(Phase::Running(running), "the machine runs already"),
    }
}

fn when_frozen(
    mut frozen: Box<Frozen>,
    command: Command,
    descriptors: Vec<OwnedFd>,
    channel: &Channel,
) -> Next {
    match command {
        Command::Fork => match copy_descriptors(descriptors) {
            Ok((own, layer)) => fork_frozen(*frozen, own, layer),
            Err(reason) => refuse(Phase::Frozen(frozen), reason),
        },
        Command::Thaw => match one_at_most(descriptors) {
            Ok(tap) => thawed(frozen.thaw(channel.as_fd(), tap)),
            Err(_) => refuse(Phase::Frozen(frozen), "a thaw takes one TAP interface or none"),
        },
        Command::ThawRecording => match frozen.thaw_recording(channel.as_fd()) {
            Ok(running) => thawed(Ok(running)),
            Err(NotRecording::Frozen(frozen, error)) => refuse(Phase::Frozen(frozen), &chain(&error)),
            Err(NotRecording::Lost(error)) => Next::End(failed(&error)),
        },
        Command::SetHotPages(runs) => match frozen.set_hot_pages(runs) {
            Ok(()) => Next::Reply(Phase::Frozen(frozen), Reply::HotPagesSet, None),
            Err(error) => refuse(Phase::Frozen(frozen), &chain(&error)),
        },
        Command::Connect { port } => {
            let Ok([stream]) = <[OwnedFd; 1]>::try_from(descriptors) else {
                return refuse(Phase::Frozen(frozen), "a connection needs one stream");
            };
            match frozen.connect(port, stream) {
                Ok(()) => Next::Reply(Phase::Frozen(frozen), Reply::Connecting, None),
                Err(error) => refuse(Phase::Frozen(frozen), &chain(&error)),
            }
        }
        Command::Inspect => {
            let inspection = frozen.inspect();
            Next::Reply(Phase::Frozen(frozen), Reply::Inspected(inspection), None)
        }
        Command::ReadConsole => {
            let tail = frozen.console_tail();
            Next::Reply(Phase::Frozen(frozen), Reply::Console { tail }, None)
        }
        Command::Save(extent) => save_frozen(frozen, extent, descriptors),
        Command::Overlay(check) => overlay_frozen(frozen, check, descriptors),
        Command::GrowDisk { .. } => refuse(Phase::Frozen(frozen), "only the disk of a running machine grows"),
        Command::Boot(_) | Command::Load(_) | Command::Freeze | Command::ReadHotPages => {
            refuse(Phase::Frozen(frozen), "the machine is frozen already")
        }
    }
}

fn thawed(result: Result<(Running, control::Thawed), (Box<Frozen>, ThawError)>) -> Next {
    match result {
        Ok((running, thawed)) => Next::Reply(Phase::Running(Box::new(running)), Reply::Thawed(thawed), None),
        Err((frozen, error)) => refuse(Phase::Frozen(frozen), &chain(&error)),
    }
}

fn fork_running(running: Running, own: Channel, layer: File) -> Next {
    match running.fork(layer) {
        Ok(Forked::Copy(frozen)) => Next::Copy(frozen.map(Box::new), own),
        Ok(Forked::Source { running, result, times }) => {
            let (reply, pidfd) = forked(result, times);
            Next::Reply(Phase::Running(Box::new(running)), reply, pidfd)
        }
        Err(what) => not_paused(what),
    }
}

fn fork_frozen(frozen: Frozen, own: Channel, layer: File) -> Next {
    let forking = std::time::Instant::now();
    match frozen.fork(layer) {
        FrozenForked::Copy(frozen) => Next::Copy(frozen.map(Box::new), own),
        FrozenForked::Source { frozen, result } => {
            let fork_us = u64::try_from(forking.elapsed().as_micros()).unwrap_or(u64::MAX);
            let times = ForkTimes { pause_us: 0, stop_us: 0, save_us: 0, fork_us };
            let (reply, pidfd) = forked(result, times);
            Next::Reply(Phase::Frozen(Box::new(frozen)), reply, pidfd)
        }
    }
}

fn forked(result: Result<Copied, ForkError>, times: ForkTimes) -> (Reply, Option<OwnedFd>) {
    match result {
        Ok(Copied { pid, pidfd }) => {
            let ForkTimes { pause_us, stop_us, save_us, fork_us } = times;
            let pid = pid.as_raw_nonzero().get().cast_unsigned();
            let reply = Reply::Forked(control::Forked { pid, pause_us, stop_us, save_us, fork_us });
            (reply, Some(pidfd))
        }
        Err(error) => (refused(&chain(&error)), None),
    }
}

fn refuse(phase: Phase, reason: &str) -> Next {
    Next::Reply(phase, refused(reason), None)
}

fn refused(reason: &str) -> Reply {
    Reply::Refused { reason: reason.to_owned() }
}

/// Only a running machine has vCPUs that can end.
fn end(phase: Phase) -> Next {
    match phase {
        Phase::Running(running) => Next::End(ended(running.into_end())),
        Phase::Empty | Phase::Frozen(_) => refuse(phase, "the machine does not run"),
    }
}

fn not_paused(what: NotPaused) -> Next {
    match what {
        NotPaused::Ended(end) => Next::End(ended(end)),
        NotPaused::Running(running, error) => refuse(Phase::Running(running), &chain(&error)),
    }
}

fn ended(End { reason, console_tail }: End) -> Event {
    Event::Ended { reason, console_tail }
}

fn failed(error: &dyn std::error::Error) -> Event {
    Event::Ended { reason: EndReason::Failed { detail: chain(error) }, console_tail: Vec::new() }
}

/// The descriptors that come with a fork: the copy's channel and its disk layer.
fn copy_descriptors(descriptors: Vec<OwnedFd>) -> Result<(Channel, File), &'static str> {
    let [channel, layer] = <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|_| "a fork needs the copy's control channel and its disk layer")?;
    Ok((Channel::from_fd(channel), File::from(layer)))
}

fn one_at_most(descriptors: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Vec<OwnedFd>> {
    if descriptors.is_empty() {
        return Ok(None);
    }
    <[OwnedFd; 1]>::try_from(descriptors).map(|[descriptor]| Some(descriptor))
}

fn files<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[File; N], Vec<OwnedFd>> {
    <[OwnedFd; N]>::try_from(descriptors).map(|descriptors| descriptors.map(File::from))
}

fn send_reply(channel: &Channel, reply: Reply, descriptor: Option<&OwnedFd>) -> Result<(), ServeError> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().map(AsFd::as_fd).collect();
    send(channel, &Message::Reply(reply), &descriptors)
}

fn send(channel: &Channel, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), ServeError> {
    match channel.send(&codec::encode(message), descriptors) {
        // hostd is gone; the next receive says so too.
        Ok(()) | Err(ChannelError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
