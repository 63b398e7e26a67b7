//! How long the parts of one operation took, for its answer's `Server-Timing`.

use std::time::Duration;

/// Named durations in the order in which they are shown.
#[derive(Debug, Clone, Default)]
pub struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    pub fn with(mut self, name: &'static str, duration: Duration) -> Phases {
        self.0.push((name, duration));
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Duration)> {
        self.0.iter()
    }
}
