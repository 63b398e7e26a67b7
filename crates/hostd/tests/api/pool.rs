//! The pool: members are ready, replaced, and never needed.

use crate::host::{Host, until};
use serde_json::json;

fn counters(capacity: &serde_json::Value) -> (u64, u64, u64) {
    let template = &capacity["templates"][0];
    let number = |name: &str| template[name].as_u64().unwrap();
    (number("pool_ready"), number("pool_hits"), number("pool_misses"))
}

#[tokio::test]
async fn a_claimed_member_is_replaced() {
    let host = Host::start(&["--pool-size", "3"]).await;
    assert_eq!(counters(&host.capacity().await), (3, 0, 0));
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    let timing = answer.headers["server-timing"].to_str().unwrap().to_owned();
    assert!(timing.starts_with("claim;dur="), "{timing}");
    host.pool_is_full().await;
    let capacity = host.capacity().await;
    assert_eq!(counters(&capacity), (3, 1, 0));
    assert_eq!(capacity["sandboxes"], 1);
    assert_eq!(capacity["templates"][0]["pool_hit_rate_bp"], 10_000);
    assert_eq!(host.vmm.alive(), 5);
}

#[tokio::test]
async fn an_empty_pool_is_a_wait_and_no_failure() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert!(answer.headers["server-timing"].to_str().unwrap().contains("renew;dur="));
    assert_eq!(counters(&host.capacity().await), (0, 0, 1));
}

#[tokio::test]
async fn a_member_that_dies_is_replaced_and_never_handed_out() {
    let host = Host::start(&["--pool-size", "2"]).await;
    let member = host.app.pool.claim().unwrap();
    let dead = member.identity().id.to_string();
    member.machine().end().await;
    until("it is seen", async || member.has_ended()).await;
    host.pool_is_full().await;
    host.machines_are(3).await;
    for _ in 0..3 {
        assert_ne!(host.create().await, dead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_filled_is_tried_again() {
    let host = Host::start_without_template(&["--pool-size", "2"]);
    until("the template has booted", async || host.get("/v1/healthz").await.body == "ok").await;
    host.vmm.refuse_renewals(4);
    host.pool_is_full().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_lost_is_booted_again() {
    let host = Host::start(&["--pool-size", "1"]).await;
    let kept = host.create().await;
    let podflare_hostd::template::Availability::Ready(template) = host.app.template() else { panic!() };
    template.machine.end().await;
    until("it has booted again", async || match host.app.template() {
        podflare_hostd::template::Availability::Ready(now) => !std::sync::Arc::ptr_eq(&now, &template),
        podflare_hostd::template::Availability::Not(_) => false,
    })
    .await;
    assert_eq!(host.text(&kept, "print still here").await, "still here");
    host.create().await;
    host.create().await;
}
