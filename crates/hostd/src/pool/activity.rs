//! What people wait for at this moment, so that work that nobody waits for can keep out of its way.

use super::policy::QUIET;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

#[derive(Debug, Clone)]
pub struct Activity(Arc<watch::Sender<Now>>);

#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Executions whose events somebody reads.
    pub executions: usize,
    /// When somebody has last asked for something, or been answered.
    pub last: Instant,
}

/// An execution, for as long as somebody reads its events.
#[derive(Debug)]
pub struct Executing(Activity);

impl Activity {
    pub fn new() -> Activity {
        Activity(Arc::new(watch::Sender::new(Now { executions: 0, last: Instant::now() })))
    }

    /// A sandbox was created, copied, merged or given up: what follows is not to be disturbed.
    pub fn touch(&self) {
        self.change(|_| {});
    }

    pub fn execute(&self) -> Executing {
        self.change(|now| now.executions += 1);
        Executing(self.clone())
    }

    pub fn now(&self) -> Now {
        *self.0.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Now> {
        self.0.subscribe()
    }

    /// Resolves in a quiet moment: when fewer execute than there are processors, and nothing was asked for a while.
    /// In any case at the deadline.
    pub async fn quiet(&self, processors: usize, deadline: Instant) {
        let mut changes = self.watch();
        let quiet = async {
            loop {
                let Now { executions, last } = *changes.borrow_and_update();
                if executions >= processors {
                    // The sender is this one's own.
                    changes.changed().await.ok();
                    continue;
                }
                tokio::select! {
                    () = sleep_until(last + QUIET) => return,
                    _ = changes.changed() => {}
                }
            }
        };
        timeout_at(deadline, quiet).await.ok();
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        self.0.send_modify(|now| {
            change(now);
            now.last = Instant::now();
        });
    }
}

impl Default for Activity {
    fn default() -> Activity {
        Activity::new()
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.0.change(|now| now.executions -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_quiet_moment_comes_when_nothing_was_asked_for_a_while() {
        let activity = Activity::new();
        activity.touch();
        let begun = Instant::now();
        activity.quiet(1, begun + Duration::from_secs(2)).await;
        assert!(begun.elapsed() >= QUIET && begun.elapsed() < QUIET * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_quiet_moment_waits_for_executions_but_not_for_ever() {
        let activity = Activity::new();
        let executing = activity.execute();
        let begun = Instant::now();
        activity.quiet(1, begun + Duration::from_secs(2)).await;
        assert!(begun.elapsed() >= Duration::from_secs(2));
        activity.quiet(2, begun + Duration::from_secs(9)).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "another processor is free");
        let begun = Instant::now();
        let waiting = activity.quiet(1, begun + Duration::from_secs(9));
        tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(executing);
        });
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
