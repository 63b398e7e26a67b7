//! What people wait for at this moment, so that work that nobody waits for can keep out of its way.

use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

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

    /// A sandbox was created.
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
