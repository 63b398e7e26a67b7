//! The pool: members are ready, replaced, and never needed.

use crate::host::{Host, until};
use podflare_hostd::pool::policy::Memory;
use serde_json::json;
use std::time::Duration;

fn counters(capacity: &serde_json::Value) -> (u64, u64, u64) {
    let template = &capacity["templates"][0];
    let number = |name: &str| template[name].as_u64().unwrap();
    (number("pool_ready"), number("pool_hits"), number("pool_misses"))
}

/// A host whose template has booted, and whose pool's members are being made.
async fn host_about_to_fill_its_pool(size: usize) -> Host {
    let host = Host::start_without_template(&["--pool-size", &size.to_string()]);
    host.vmm.set_renewal_time(Duration::from_millis(50));
    until("the first members are made", async || host.pool().counters().levels.starting > 0).await;
    host
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
    host.vmm.kill_newest();
    until("another is made", async || host.vmm.made() == 4).await;
    host.pool_is_full().await;
    host.machines_are(3).await;
    for _ in 0..3 {
        let id = host.create().await;
        assert_eq!(host.text(&id, "print alive").await, "alive");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_is_ready_though_its_sibling_failed() {
    let host = host_about_to_fill_its_pool(2).await;
    host.vmm.refuse_renewals(1);
    let begun = tokio::time::Instant::now();
    until("one is ready", async || host.pool().counters().levels.ready == 1).await;
    assert!(begun.elapsed().as_millis() < 100, "before the failed one is tried again");
    host.pool_is_full().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_filled_is_tried_again() {
    let host = host_about_to_fill_its_pool(2).await;
    host.vmm.refuse_renewals(4);
    host.pool_is_full().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_lost_is_booted_again() {
    let host = Host::start(&["--pool-size", "1"]).await;
    let kept = host.create().await;
    let podflare_hostd::template::Availability::Ready(template) = host.app.templates.default().availability()
    else {
        panic!()
    };
    template.machine.end().await;
    until("it has booted again", async || match host.app.templates.default().availability() {
        podflare_hostd::template::Availability::Ready(now) => !std::sync::Arc::ptr_eq(&now, &template),
        _ => false,
    })
    .await;
    assert_eq!(host.text(&kept, "print still here").await, "still here");
    host.create().await;
    host.create().await;
}

/// A host without a pool, whose guests report free memory so many times after their boot.
async fn host_whose_guests_report(times: u32) -> Host {
    let host = Host::start_without_template(&["--pool-size", "0"]);
    host.vmm.report(times);
    until("the template is there", async || is_rested(&host).await == Some(false)).await;
    host
}

/// `None` while there is no template.
async fn is_rested(host: &Host) -> Option<bool> {
    let template = &host.capacity().await["templates"][0];
    template["available"].as_bool().unwrap().then(|| template["rested"].as_bool().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_template_comes_to_rest_while_sandboxes_are_made_of_it() {
    let host = host_whose_guests_report(5).await;
    let early = host.create().await;
    assert_eq!(is_rested(&host).await, Some(false));
    until("the template has come to rest", async || is_rested(&host).await == Some(true)).await;
    let late = host.create().await;
    for id in [early, late] {
        assert_eq!(host.text(&id, "print alive").await, "alive");
    }
    // The template that has come to rest and the sandboxes: the one that booted is no longer needed.
    host.machines_are(3).await;
    // What has come to rest does not do so again.
    tokio::time::sleep(Duration::from_secs(100)).await;
    host.machines_are(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_stops_to_report_comes_to_rest_as_well() {
    let host = host_whose_guests_report(u32::MAX).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(is_rested(&host).await, Some(false));
    until("the template has come to rest", async || is_rested(&host).await == Some(true)).await;
    host.create().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_whose_copy_dies_at_rest_serves_as_it_booted() {
    let host = host_whose_guests_report(5).await;
    host.vmm.kill_newest();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(is_rested(&host).await, Some(false));
    host.create().await;
    host.machines_are(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_lost_while_it_comes_to_rest_is_booted_again() {
    let host = host_whose_guests_report(5).await;
    let podflare_hostd::template::Availability::Ready(template) = host.app.templates.default().availability()
    else {
        panic!()
    };
    template.machine.end().await;
    until("another has come to rest", async || is_rested(&host).await == Some(true)).await;
    host.create().await;
    drop(template);
    host.machines_are(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_stands_still_is_replaced() {
    let host = host_about_to_fill_its_pool(1).await;
    host.vmm.stall_after_renewals(1);
    host.pool_is_full().await;
    // It is asked after 60 s of silence, and has 60 s to answer.
    tokio::time::sleep(Duration::from_secs(121)).await;
    host.pool_is_full().await;
    let id = host.create().await;
    assert_eq!(host.text(&id, "print alive").await, "alive");
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_with_demand_and_falls_back_to_its_target() {
    let host = Host::start(&["--pool-size", "2"]).await;
    for _ in 0..5 {
        let id = host.create().await;
        host.delete(&id).await;
    }
    host.pool_is_full().await;
    let template = &host.capacity().await["templates"][0];
    assert_eq!((&template["pool_size"], &template["pool_target"]), (&json!(5), &json!(2)));
    assert_eq!(template["pool_ready"], 5);
    until("there are two again", async || host.pool().counters().levels.ready == 2).await;
    // The template and the two.
    host.machines_are(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_no_larger_than_the_hosts_memory_allows() {
    let host = Host::start(&["--pool-size", "4"]).await;
    let total = 8 << 30;
    host.vmm.set_memory(Memory { total, available: total / 10 });
    until("all members have ended", async || host.pool().counters().levels.ready == 0).await;
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(answer.status, 200, "a copy is made on demand: {}", answer.body);
    host.vmm.set_memory(Memory { total, available: total });
    until("they are made again", async || host.pool().counters().levels.ready == 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_is_made_when_nobody_waits_for_code() {
    let host = Host::start(&["--pool-size", "4"]).await;
    let processors = host.app.admission.processors();
    let busy: Vec<_> = (0..processors).map(|_| host.app.activity.execute()).collect();
    let made = host.vmm.made();
    host.create().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.vmm.made(), made, "somebody waits for every processor");
    drop(busy);
    host.pool_is_full().await;
    assert_eq!(host.vmm.made(), made + 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_always_busy_fills_its_pool_all_the_same() {
    let host = Host::start(&["--pool-size", "4"]).await;
    let _busy: Vec<_> = (0..host.app.admission.processors()).map(|_| host.app.activity.execute()).collect();
    host.create().await;
    host.create().await;
    host.pool_is_full().await;
}

#[tokio::test]
async fn an_execution_is_waited_for_until_its_answer_ends() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let running = host.start_exec(&id, "sleep 20\nprint done").await;
    assert_eq!(host.app.activity.now().executions, 1);
    running.rest().await;
    assert_eq!(host.app.activity.now().executions, 0);
}

#[tokio::test(start_paused = true)]
async fn members_that_grow_old_are_replaced_one_by_one() {
    let host = Host::start(&["--pool-size", "2"]).await;
    tokio::time::sleep(Duration::from_secs(29 * 60)).await;
    let made = host.vmm.made();
    tokio::time::sleep(Duration::from_secs(60 + 10)).await;
    host.pool_is_full().await;
    assert_eq!(host.vmm.made(), made + 2);
    host.machines_are(3).await;
}

#[tokio::test]
async fn a_miss_is_a_copy_whose_time_is_told() {
    let host = Host::start(&["--pool-size", "0"]).await;
    assert_eq!(host.capacity().await["templates"][0]["on_demand_boot_ms_mean"], json!(null));
    host.vmm.set_renewal_time(Duration::from_millis(30));
    host.create().await;
    let template = &host.capacity().await["templates"][0];
    assert!(template["on_demand_boot_ms_mean"].as_u64().unwrap() >= 30, "{template}");
    assert_eq!((&template["pool_refill_ms_mean"], &template["pool_hit_rate_bp"]), (&json!(null), &json!(0)));
    // The template, its trial copy, and the sandbox: nothing was booted.
    assert_eq!(host.vmm.made(), 3);
}

#[tokio::test]
async fn what_copies_touch_first_is_learnt_before_there_are_any() {
    let host = Host::start(&[]).await;
    host.create().await;
    assert_eq!(host.vmm.hot_pages(), 1);
    assert_eq!(host.capacity().await["templates"][0]["hot_pages"], json!(1));
}
