//! One round trip to a guest's agent: is it there, and how far away. Not an activity: a sandbox that is only
//! pinged is idle.

use super::registry::FindError;
use crate::app::App;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// How long a guest may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Pings that may wait for one guest.
const PINGS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum PingError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("The sandbox's guest has not answered within {} s", PING_TIMEOUT.as_secs())]
    Silent,
    #[error("The agent in the sandbox has just died and is started again")]
    AgentRestarts,
    #[error("{PINGS_MAX} pings wait for this sandbox's guest already")]
    TooMany,
}

/// What a ping comes to in its sandbox's task.
pub type Answer = oneshot::Sender<Result<(), PingError>>;

/// The pings of one sandbox that wait for its agent.
#[derive(Debug, Default)]
pub struct Pings {
    /// Of the last one; 0 is the host's own.
    token: u64,
    waiting: VecDeque<(u64, Answer)>,
}

impl Pings {
    /// The token to send, unless too many wait.
    pub fn begin(&mut self, answer: Answer) -> Option<u64> {
        self.waiting.retain(|(_, answer)| !answer.is_closed());
        if self.waiting.len() == PINGS_MAX {
            answer.send(Err(PingError::TooMany)).ok();
            return None;
        }
        self.token += 1;
        self.waiting.push_back((self.token, answer));
        Some(self.token)
    }

    pub fn answered(&mut self, token: u64) {
        if let Some(index) = self.waiting.iter().position(|(waits, _)| *waits == token)
            && let Some((_, answer)) = self.waiting.remove(index)
        {
            answer.send(Ok(())).ok();
        }
    }

    /// The agent that was asked is gone.
    pub fn forget(&mut self) {
        for (_, answer) in self.waiting.drain(..) {
            answer.send(Err(PingError::AgentRestarts)).ok();
        }
    }
}

/// How long a request to the guest's agent and its answer take.
pub async fn ping(app: &App, id: &str) -> Result<Duration, PingError> {
    // A sandbox that ends when it has just been found may have been replaced by a merge.
    for _ in 0..2 {
        let sandbox = app.registry.find(id)?;
        let begun = Instant::now();
        match timeout(PING_TIMEOUT, sandbox.ping()).await {
            Ok(Some(answered)) => return answered.map(|()| begun.elapsed()),
            Ok(None) => sandbox.ended().await,
            Err(_) => return Err(PingError::Silent),
        }
    }
    Err(FindError::Unknown.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_by_its_own_token_only() {
        let mut pings = Pings::default();
        let (answer, mut answered) = oneshot::channel();
        let token = pings.begin(answer).unwrap();
        pings.answered(token + 1);
        assert!(answered.try_recv().is_err());
        pings.answered(token);
        assert!(answered.try_recv().unwrap().is_ok());
    }

    #[test]
    fn pings_that_wait_are_limited_and_those_given_up_do_not_count() {
        let mut pings = Pings::default();
        let mut open: Vec<_> = (0..PINGS_MAX)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                assert!(pings.begin(answer).is_some());
                answered
            })
            .collect();
        let (answer, mut refused) = oneshot::channel();
        assert!(pings.begin(answer).is_none());
        assert!(matches!(refused.try_recv().unwrap(), Err(PingError::TooMany)));
        open.pop();
        assert!(pings.begin(oneshot::channel().0).is_some());
        pings.forget();
        assert!(matches!(open[0].try_recv().unwrap(), Err(PingError::AgentRestarts)));
    }
}
