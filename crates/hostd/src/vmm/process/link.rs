//! hostd's end of one control channel: commands out in order, each answer to whoever asked.

use crate::readiness::readable_channel;
use crate::vmm::VmmError;
use podflare_channel::{Channel, ChannelError};
use podflare_wire::codec::{decode, encode};
use podflare_wire::control::{Command, EndReason, Event, Message, Reply};
use podflare_wire::limits::CONTROL_MESSAGE_LEN_MAX;
use rustix::net::Shutdown;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};

/// Takes the answer to one command; dropped without a call when there will be none.
type Answer = Box<dyn FnOnce(Reply, Vec<OwnedFd>) + Send>;

/// How the VMM's side of a channel came to its end.
#[derive(Debug)]
pub(super) enum Parting {
    /// The VMM said that its guest is gone.
    Told {
        reason: EndReason,
        console_tail: Vec<u8>,
    },
    Closed,
    /// Something arrived that is not of the protocol.
    Broken {
        detail: String,
    },
}

pub(super) struct Link {
    channel: AsyncFd<Channel>,
    /// Commands that wait for their answers, and whether more may be sent. A plain mutex: it is held
    /// for one non-blocking send, which keeps the order of commands and of answers the same.
    waiting: Mutex<Waiting>,
    answered: Notify,
}

#[derive(Default)]
struct Waiting {
    answers: VecDeque<Answer>,
    refusing: bool,
}

impl Link {
    pub(super) fn new(channel: Channel) -> io::Result<Link> {
        let channel = readable_channel(channel)?;
        Ok(Link { channel, waiting: Mutex::default(), answered: Notify::new() })
    }

    pub(super) fn send(
        &self,
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
        answer: Answer,
    ) -> Result<(), VmmError> {
        let mut waiting = self.lock();
        if waiting.refusing {
            return Err(VmmError::Ended);
        }
        match self.channel.get_ref().send(&encode(command), descriptors) {
            Ok(()) => waiting.answers.push_back(answer),
            Err(ChannelError::Closed) => return Err(VmmError::Ended),
            Err(error) => return Err(VmmError::SendCommand(error)),
        }
        Ok(())
    }

    /// Takes no more commands; those that were sent are still answered.
    pub(super) fn refuse(&self) {
        self.lock().refusing = true;
    }

    /// Hands out answers until the VMM parts. The pidfd with which a copy introduces itself goes to `child`.
    pub(super) async fn serve(&self, child: &mpsc::Sender<OwnedFd>) -> Parting {
        loop {
            let received = match self.channel.readable().await {
                Ok(mut guard) => match guard.get_inner().receive(CONTROL_MESSAGE_LEN_MAX) {
                    Err(ChannelError::WouldBlock) => {
                        guard.clear_ready();
                        continue;
                    }
                    received => received,
                },
                Err(error) => return Parting::Broken { detail: error.to_string() },
            };
            let (bytes, mut descriptors) = match received {
                Ok(message) => message,
                Err(ChannelError::Closed) => return Parting::Closed,
                Err(error) => return Parting::Broken { detail: error.to_string() },
            };
            match decode(&bytes) {
                Ok(Message::Reply(reply)) => {
                    if !self.answer(reply, descriptors) {
                        return Parting::Broken { detail: "it answered without being asked".to_owned() };
                    }
                }
                Ok(Message::Event(Event::Copied)) => {
                    if let Some(pidfd) = descriptors.pop() {
                        // Its source may have been faster.
                        child.try_send(pidfd).ok();
                    }
                }
                Ok(Message::Event(Event::Ended { reason, console_tail })) => {
                    return Parting::Told { reason, console_tail };
                }
                Err(error) => return Parting::Broken { detail: error.to_string() },
            }
        }
    }

    /// Resolves when every command that was sent has its answer.
    pub(super) async fn all_answered(&self) {
        loop {
            let answered = self.answered.notified();
            if self.lock().answers.is_empty() {
                return;
            }
            answered.await;
        }
    }

    /// Ends the channel: the VMM sees its end, and who still waits for an answer gets none.
    pub(super) fn close(&self) {
        let answers = {
            let mut waiting = self.lock();
            waiting.refusing = true;
            std::mem::take(&mut waiting.answers)
        };
        drop(answers);
        if let Err(errno) = rustix::net::shutdown(self.channel.get_ref(), Shutdown::Both) {
            tracing::debug!(%errno, "A control channel was closed already");
        }
    }

    fn answer(&self, reply: Reply, descriptors: Vec<OwnedFd>) -> bool {
        let Some(answer) = self.lock().answers.pop_front() else { return false };
        answer(reply, descriptors);
        self.answered.notify_one();
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("channel", &self.channel).finish_non_exhaustive()
    }
}
