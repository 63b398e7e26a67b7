//! What Prometheus is told of a host. Names follow its conventions: seconds, bytes, `_total` for what only rises.

use crate::app::App;
use crate::sandbox::state::EndCause;
use crate::template::variant::Variant;
use crate::tenant::Tenant;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// From what a pool hit takes to what a boot takes, in seconds.
const BUCKETS: [f64; 17] =
    [0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

/// Counted and timed as it happens. What can be looked up is looked up when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    answers: Family<Answer, Histogram, fn() -> Histogram>,
    ended: Family<Ended, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: &'static str,
    /// As the API's description has it, so that ids are no part of it.
    path: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Template {
    template: String,
    ram_mib: u32,
    vcpus: u32,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Metrics { answers: Family::new_with_constructor(histogram), ended: Family::default() }
    }
}

impl Metrics {
    /// An answer's head has been made. `path` is the route's.
    pub fn count_answer(&self, method: &str, path: &str, status: u16, took: Duration) {
        let answer = Answer { method: known_method(method), path: path.to_owned(), status };
        self.answers.get_or_create(&answer).observe(took.as_secs_f64());
    }

    pub fn count_end(&self, cause: &EndCause) {
        self.ended.get_or_create(&Ended { cause: cause.kind() }).inc();
    }

    /// All there is to tell, as text.
    pub fn text(&self, app: &App) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("podflare");
        registry.register_with_unit(
            "http_answer",
            "Time to the head of an answer, by operation",
            Unit::Seconds,
            self.answers.clone(),
        );
        registry.register("sandboxes_ended", "Sandboxes that have ended, by cause", self.ended.clone());
        tell_state(&mut registry, app);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Methods are a client's text: any other is one label.
fn known_method(method: &str) -> &'static str {
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("OTHER")
}

fn tell_state(registry: &mut Registry, app: &App) {
    let mut tell = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(signed(value));
        registry.register(name, help, gauge);
    };
    tell("sandboxes", "Sandboxes that exist, beside the pools' members", app.registry.len() as u64);
    let checkpoints = app.registry.visible_checkpoints(&Tenant::operator()).len();
    tell("checkpoints", "Checkpoints that exist", checkpoints as u64);
    tell("spaces", "Spaces on the disk", app.spaces.len() as u64);
    tell("sandboxes_max", "Sandboxes and checkpoints that may exist", app.settings.sandboxes_max.into());
    if let Some(memory) = app.memory() {
        tell("memory_total_bytes", "Memory of the host", memory.total);
        tell("memory_available_bytes", "Memory of the host that can still be used", memory.available);
    }
    tell_pools(registry, &app.templates.variants());
}

fn tell_pools(registry: &mut Registry, variants: &[std::sync::Arc<Variant>]) {
    let (ready, wanted) = (Family::<Template, Gauge>::default(), Family::<Template, Gauge>::default());
    let (hits, misses) = (Family::<Template, Counter>::default(), Family::<Template, Counter>::default());
    for variant in variants {
        let shape = &variant.shape;
        let template = Template {
            template: shape.template.clone(),
            ram_mib: shape.memory_mib,
            vcpus: shape.vcpus.into(),
        };
        let counters = variant.pool.counters();
        ready.get_or_create(&template).set(signed(counters.levels.ready as u64));
        wanted.get_or_create(&template).set(signed(counters.levels.wanted as u64));
        hits.get_or_create(&template).inc_by(counters.hits);
        misses.get_or_create(&template).inc_by(counters.misses);
    }
    registry.register("pool_ready", "Sandboxes that the next create takes", ready);
    registry.register("pool_wanted", "Sandboxes that are to be ready", wanted);
    registry.register("pool_hits", "Creates that a pool has answered", hits);
    registry.register("pool_misses", "Creates that waited for a copy of the template", misses);
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
