//! Whose turn it is to copy machines. Copies compete for the host's processors: so few are made at once that
//! each is done in its time. The others wait for their turn, before their clocks start.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;

/// Copies made at once, for each processor.
const COPIES_PER_PROCESSOR: usize = 2;

/// For how long a copy that comes to life holds up the next, a few times what it should take: one that stands still
/// is given up after seconds only.
const LIFE_TURN: Duration = Duration::from_millis(250);

/// How long a client waits for its turn: with `CREATE_LIMITS`, as long as the published SDK waits for a create.
const TURN_TIMEOUT: Duration = Duration::from_secs(12);

#[derive(Debug)]
pub struct Admission {
    /// Fair: who has waited longest is next.
    turns: Arc<Semaphore>,
    turns_max: u32,
    /// One for each processor. More copies at once come to life later, all of them: five took a fourth longer on
    /// one processor.
    lives: Semaphore,
    processors: usize,
    /// Clients whose copies are made or wait for their turn.
    clients: watch::Sender<usize>,
}

/// A client's leave to copy, for as long as it is held.
#[derive(Debug)]
pub struct Turn<'a> {
    _permits: SemaphorePermit<'a>,
    _client: Client<'a>,
}

#[derive(Debug)]
struct Client<'a>(&'a watch::Sender<usize>);

/// There were too many others.
#[derive(Debug, thiserror::Error)]
#[error("This host makes as many copies as it can at once; try again in a few seconds")]
pub struct Busy;

impl Admission {
    /// By the number of its processors.
    pub fn of_this_host() -> Admission {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let turns_max = COPIES_PER_PROCESSOR * processors;
        Admission {
            turns: Arc::new(Semaphore::new(turns_max)),
            turns_max: u32::try_from(turns_max).unwrap_or(u32::MAX),
            lives: Semaphore::new(processors),
            processors,
            clients: watch::Sender::new(0),
        }
    }

    /// The host's.
    pub fn processors(&self) -> usize {
        self.processors
    }

    /// Copies that are made at once.
    pub fn turns_max(&self) -> u32 {
        self.turns_max
    }

    /// Waits until a client may make so many copies, but not for long.
    pub async fn turn(&self, copies: u32) -> Result<Turn<'_>, Busy> {
        let client = Client::new(&self.clients);
        match timeout(TURN_TIMEOUT, self.turns.acquire_many(copies.min(self.turns_max))).await {
            Ok(Ok(permits)) => Ok(Turn { _permits: permits, _client: client }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Busy),
        }
    }

    /// Leave to make one copy that nobody waits for, if no client copies.
    pub fn idle_turn(&self) -> Option<OwnedSemaphorePermit> {
        if *self.clients.borrow() > 0 {
            return None;
        }
        self.turns.clone().try_acquire_owned().ok()
    }

    /// Brings a copy to life, from its thaw to its renewal, when a processor is free for that.
    pub async fn bring_to_life<T>(&self, life: impl Future<Output = T>) -> T {
        // The semaphore is never closed.
        let turn = self.lives.acquire().await.ok();
        let mut life = pin!(life);
        if let Ok(done) = timeout(LIFE_TURN, &mut life).await {
            return done;
        }
        drop(turn);
        life.await
    }

    /// Changes when there is reason to ask for an idle turn again.
    pub fn watch_clients(&self) -> watch::Receiver<usize> {
        self.clients.subscribe()
    }
}

impl<'a> Client<'a> {
    fn new(clients: &'a watch::Sender<usize>) -> Client<'a> {
        clients.send_modify(|clients| *clients += 1);
        Client(clients)
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|clients| *clients -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_for_its_turn_but_not_for_long() {
        let admission = Admission::of_this_host();
        let all = admission.turn(u32::MAX).await.unwrap();
        assert!(admission.turn(1).await.is_err());
        let (next, ()) = tokio::join!(admission.turn(1), async { drop(all) });
        assert!(next.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn copies_come_to_life_in_turn_and_one_that_stands_still_does_not_hold_up_the_others() {
        let admission = Admission::of_this_host();
        let still = || admission.bring_to_life(std::future::pending::<()>());
        let all_still = join_all((0..admission.processors()).map(|_| still()));
        let begun = Instant::now();
        let next = admission.bring_to_life(async { begun.elapsed() });
        tokio::select! {
            biased;
            _ = all_still => panic!("they stand still"),
            waited = next => assert!(waited >= LIFE_TURN && waited < 2 * LIFE_TURN, "{waited:?}"),
        }
    }

    #[tokio::test]
    async fn nobodys_copies_wait_for_clients() {
        let admission = Admission::of_this_host();
        let turn = admission.turn(1).await.unwrap();
        assert!(admission.idle_turn().is_none(), "though there is room");
        let mut clients = admission.watch_clients();
        drop(turn);
        assert!(clients.has_changed().unwrap());
        let idle: Vec<_> = std::iter::from_fn(|| admission.idle_turn()).collect();
        assert_eq!(idle.len(), admission.turns_max() as usize);
        drop(idle);
        clients.mark_unchanged();
        assert!(admission.idle_turn().is_some());
    }
}
