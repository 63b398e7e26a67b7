//! Creating, looking at, and ending sandboxes.

use crate::host::{Host, exit, stderr};
use axum::http::StatusCode;
use podflare_hostd::headroom::Disk;
use podflare_hostd::pool::policy::Memory;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

#[tokio::test]
async fn a_created_sandbox_is_ready_and_keeps_its_variables() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.exec(&id, "set greeting hello").await;
    assert_eq!(host.text(&id, "get greeting").await, "hello");
    let view = host.get(&format!("/v1/sandboxes/{id}")).await.json();
    assert_eq!(view["state"], "ready");
    assert_eq!(view["executions"], 2);
    assert_eq!(view["generation"], 1);
    assert_eq!(view["parent"], json!(null));
    assert_eq!(view["renewed"], true);
}

#[tokio::test]
async fn the_answer_says_what_the_sandbox_really_has() {
    let host = Host::start(&["--timeout-max", "3600", "--vcpus", "1", "--vcpus-max", "2"]).await;
    let asked = json!({
        "template": "default", "ram_mib": 65536, "vcpus": 200, "rootfs_gb": 512, "timeout_seconds": 100_000,
        "idle_timeout_seconds": 7, "persistent": true, "egress": true, "from_the_future": 1,
    });
    let created = host.create_with(&asked).await;
    assert_eq!(created["state"], "ready");
    assert_eq!(created["template"], "default");
    assert_eq!(
        (&created["ram_mib"], &created["rootfs_gb"], &created["vcpus"]),
        (&json!(8192), &json!(64), &json!(2))
    );
    assert_eq!(created["timeout_seconds"], 3600);
    assert_eq!(created["idle_timeout_seconds"], 7);
    assert_eq!(created["persistent"], true);
    assert_eq!(created["egress"], true);
}

#[tokio::test]
async fn a_disk_that_was_asked_for_is_there_when_the_create_answers_and_in_every_copy() {
    let host = Host::start(&["--rootfs-gb-max", "16"]).await;
    for (asked, given) in [(0, 4), (3, 4), (4, 4), (9, 9), (17, 16)] {
        assert_eq!(host.create_with(&json!({"rootfs_gb": asked})).await["rootfs_gb"], given);
    }
    let answer = host.post("/v1/sandboxes", &json!({"rootfs_gb": 9})).await;
    assert!(answer.headers["server-timing"].to_str().unwrap().contains("grow;dur="));
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let child = host.fork(&id, 1).await.remove(0);
    let checkpoint = host.checkpoint(&child).await;
    let of_checkpoint = host.fork_checkpoint(&checkpoint, 1).await.remove(0);
    for id in [&id, &child, &of_checkpoint] {
        assert_eq!(host.text(id, "disk").await, (9_u64 << 30).to_string());
        assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.json()["rootfs_gb"], 9);
    }
    assert_eq!(host.restore(&child, &checkpoint).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.get(&format!("/v1/sandboxes/{child}")).await.json()["rootfs_gb"], 9);
    assert_eq!(host.merge(&id, &child).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.json()["rootfs_gb"], 9);
}

#[tokio::test]
async fn a_sandbox_whose_disk_does_not_grow_is_ended_and_not_handed_out() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.refuse_growth();
    let before = host.vmm.alive();
    let answer = host.post("/v1/sandboxes", &json!({"rootfs_gb": 9})).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.error().contains("disk of that size"), "{}", answer.body);
    host.machines_are(before).await;
}

#[tokio::test]
async fn an_unknown_template_is_answered_with_the_known_ones() {
    let host = Host::start(&[]).await;
    let answer = host.post("/v1/sandboxes", &json!({"template": "windows"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error(), "template \"windows\" not found; this host has: default");
}

#[tokio::test]
async fn sandboxes_are_listed_oldest_first() {
    let host = Host::start(&[]).await;
    let ids = [host.create().await, host.create().await, host.create().await];
    let list = host.get("/v1/sandboxes").await.json();
    let mut listed: Vec<_> = list["sandboxes"].as_array().unwrap().iter().collect();
    assert!(listed.is_sorted_by_key(|view| view["created_at_ms"].as_u64().unwrap()));
    listed.sort_by_key(|view| ids.iter().position(|id| view["id"] == id.as_str()));
    assert_eq!(listed.len(), ids.len());
}

#[tokio::test]
async fn deleting_is_the_same_however_often_and_ends_the_machine() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    assert_eq!(host.vmm.alive(), 2);
    for id in [id.as_str(), &id, "sbx_00000000000000000000000000000000", "nonsense", "%ff"] {
        let answer = host.delete(id).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
    }
    host.machines_are(1).await;
    let answer = host.get(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error(), "sandbox not found: it ended 0 s ago because it was deleted");
}

#[tokio::test]
async fn an_execution_is_told_that_its_sandbox_was_deleted() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let running = host.start_exec(&id, "sleep 3600000").await;
    let waiting = host.start_exec(&id, "print never").await;
    host.delete(&id).await;
    let expected = [stderr("the sandbox has ended: it was deleted"), exit(137)];
    assert_eq!(running.rest().await, expected);
    assert_eq!(waiting.rest().await, expected);
}

#[tokio::test]
async fn a_full_host_says_so_until_a_sandbox_ends() {
    let host = Host::start(&["--sandboxes-max", "2"]).await;
    let id = host.create().await;
    host.create().await;
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("limit is 2 sandboxes and checkpoints"), "{}", answer.body);
    let answer = host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    host.delete(&id).await;
    crate::host::until("there is room again", async || {
        host.post("/v1/sandboxes", &json!({})).await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_ends_when_its_time_is_over_and_not_before() {
    let host = Host::start(&[]).await;
    let begun = Instant::now();
    let id = host.create_with(&json!({"idle_timeout_seconds": 60})).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sandboxes/{id}");
    sleep_until(begun + Duration::from_millis(59_500)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    sleep_until(begun + Duration::from_millis(119_000)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    sleep_until(begun + Duration::from_millis(120_500)).await;
    let answer = host.get(&path).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with("because nothing was run in it for 60 s"), "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_with_a_running_execution_is_never_idle() {
    let host = Host::start(&[]).await;
    let id = host.create_with(&json!({"idle_timeout_seconds": 5})).await["id"].as_str().unwrap().to_owned();
    assert_eq!(host.exec(&id, "sleep 60000").await, [exit(0)]);
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_ends_with_its_lifetime_even_if_it_is_busy() {
    let host = Host::start(&[]).await;
    let begun = Instant::now();
    let id = host.create_with(&json!({"timeout_seconds": 90})).await["id"].as_str().unwrap().to_owned();
    let events = host.exec(&id, "sleep 1000000").await;
    assert_eq!(events, [stderr("the sandbox has ended: its lifetime of 90 s was over"), exit(137)]);
    assert_eq!(begun.elapsed().as_secs(), 90);
}

#[tokio::test]
async fn a_guest_that_panics_is_told_and_remembered() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let reason = "guest kernel panic: Kernel panic - not syncing: asked for";
    let events = host.exec(&id, "partial so far\npanic").await;
    assert_eq!(
        events,
        [crate::host::stdout("so far"), stderr(&format!("the sandbox has ended: {reason}")), exit(137)]
    );
    host.is_gone(&id).await;
    let answer = host.post(&format!("/v1/sandboxes/{id}/exec"), &json!({"code": "pass"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().contains(reason), "{}", answer.body);
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_takes_its_executions_along_and_nothing_else() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    host.exec(&id, "set file kept").await;
    let hostname = host.text(&id, "hostname").await;
    let entropy = host.text(&id, "entropy").await;
    let told =
        "the agent in the sandbox was killed and has been restarted; the Python REPL's variables are lost";
    let running = host.start_exec(&id, "print begun\nsleep 1000\ncrash").await;
    let waiting = host.start_exec(&id, "print never").await;
    assert_eq!(running.rest().await, [crate::host::stdout("begun"), stderr(told), exit(137)]);
    assert_eq!(waiting.rest().await, [stderr(told), exit(137)]);
    assert_eq!(host.text(&id, "get file").await, "kept");
    assert_eq!(host.text(&id, "hostname").await, hostname);
    assert_ne!(host.text(&id, "entropy").await, entropy, "it has been renewed");
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_comes_while_the_agent_is_away_waits_for_it() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    host.vmm.set_renewal_time(Duration::from_secs(5));
    let crashed = host.start_exec(&id, "crash").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let next = host.start_exec(&id, "print served").await;
    assert_eq!(crashed.rest().await.last(), Some(&exit(137)));
    assert_eq!(next.rest().await, [crate::host::stdout("served"), exit(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_whose_agent_does_not_come_back_is_ended() {
    for fault in ["slow", "refused"] {
        let host = Host::start(&["--pool-size", "0"]).await;
        let id = host.create().await;
        match fault {
            "slow" => host.vmm.set_renewal_time(Duration::from_secs(60)),
            _ => host.vmm.refuse_renewals(1),
        }
        let events = host.exec(&id, "crash").await;
        let told = match fault {
            "slow" => "the guest's agent was not started again",
            _ => "the guest's agent failed: the renewal was refused",
        };
        let told = format!("the sandbox has ended: its guest no longer answers: {told}");
        assert_eq!(events, [stderr(&told), exit(137)]);
        host.is_gone(&id).await;
        host.machines_are(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn agents_that_die_again_and_again_end_their_sandbox() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    for _ in 0..2 {
        for _ in 0..3 {
            assert!(matches!(&host.exec(&id, "crash").await[0], kind if *kind != exit(0)));
            assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
        }
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
    for _ in 0..3 {
        host.exec(&id, "crash").await;
    }
    let events = host.exec(&id, "crash").await;
    let told = "the sandbox has ended: its guest no longer answers: the guest's agent closed its stream";
    assert_eq!(events, [stderr(told), exit(137)]);
    host.is_gone(&id).await;
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stands_still_is_asked_and_given_up() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let begun = Instant::now();
    let events = host.exec(&id, "print before\nstall").await;
    let told = "the sandbox has ended: its guest no longer answers: it has not answered for 60 s";
    assert_eq!(events, [crate::host::stdout("before"), stderr(told), exit(137)]);
    assert_eq!(begun.elapsed().as_secs(), 80);
    host.is_gone(&id).await;
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_may_be_silent_for_as_long_as_it_likes() {
    let host = Host::start(&["--idle-timeout", "7200"]).await;
    let id = host.create().await;
    assert_eq!(host.exec(&id, "sleep 300000").await, [exit(0)]);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(host.exec(&id, "sleep 300000").await, [exit(0)]);
}

#[tokio::test]
async fn a_template_that_dies_as_it_is_copied_is_told_as_not_ready() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.die_in_forks(1);
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("boots again"), "{}", answer.body);
}

/// One create more than copies are made at once.
async fn create_too_many(host: &Host) -> Vec<crate::host::Answer> {
    let body = json!({});
    let creates = (0..=host.app.admission.turns_max()).map(|_| host.post("/v1/sandboxes", &body));
    futures_util::future::join_all(creates).await
}

#[tokio::test(start_paused = true)]
async fn creates_wait_for_their_turn_before_their_clocks_start() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.set_renewal_time(Duration::from_secs(7));
    for answer in create_too_many(&host).await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_turn_does_not_come_is_told_when_to_ask_again() {
    let host = Host::start(&["--pool-size", "0"]).await;
    // Too long for the first attempts, not for the second ones.
    host.vmm.set_renewal_time(Duration::from_secs(9));
    let begun = Instant::now();
    let mut answers = create_too_many(&host).await;
    assert_eq!(begun.elapsed().as_secs(), 17);
    let last = answers.pop().unwrap();
    assert_eq!(last.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(last.headers["retry-after"], "5");
    assert!(last.error().contains("try again"), "{}", last.body);
    for answer in answers {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_on_the_host_is_free_when_nothing_is_left_of_the_machine() {
    let host = Host::start(&["--sandboxes-max", "1"]).await;
    let id = host.create().await;
    host.vmm.set_ending_time(Duration::from_secs(3));
    host.delete(&id).await;
    host.is_gone(&id).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(host.post("/v1/sandboxes", &json!({})).await.status, StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::sleep(Duration::from_secs(2)).await;
    host.create().await;
}

#[tokio::test(start_paused = true)]
async fn machines_that_do_not_end_keep_no_others_from_ending() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(host.create().await);
    }
    host.vmm.set_ending_time(Duration::from_secs(3600));
    for id in ids {
        host.delete(&id).await;
    }
    host.machines_are(1).await;
}

#[tokio::test]
async fn a_host_that_shuts_down_gives_nothing_out() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    host.app.registry.close();
    let cases = [
        ("/v1/sandboxes".to_owned(), json!({})),
        (format!("/v1/sandboxes/{id}/fork"), json!({})),
        (format!("/v1/sandboxes/{id}/checkpoints"), json!({})),
        (format!("/v1/sandboxes/{id}/restore"), json!({"checkpoint": checkpoint})),
        (format!("/v1/checkpoints/{checkpoint}/fork"), json!({"partial": true})),
    ];
    for (path, body) in cases {
        let answer = host.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.error(), "The host is shutting down");
    }
    host.pool_is_full().await;
    host.machines_are(7).await;
    for member in host.pool().close() {
        member.end(podflare_hostd::sandbox::state::EndCause::Shutdown);
    }
    host.machines_are(3).await;
}

#[tokio::test]
async fn a_sandbox_whose_repl_was_busy_is_renewed_when_it_has_run_something() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    host.vmm.leave_renewals_pending(1);
    let id = host.fork(&parent, 1).await.remove(0);
    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(host.get(&path).await.json()["renewed"], false);
    let bash = json!({"code": "pass", "language": "bash"});
    host.post(&format!("{path}/exec"), &bash).await;
    assert_eq!(host.get(&path).await.json()["renewed"], false);
    host.exec(&id, "pass").await;
    assert_eq!(host.get(&path).await.json()["renewed"], true);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_sends_output_of_an_execution_that_does_not_run_is_ended() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let events = host.exec(&id, "forge\nsleep 1000").await;
    let told = "the sandbox has ended: its guest no longer answers: its agent does not keep to the protocol: \
                it sent output of an execution that does not run";
    assert_eq!(events, [stderr(told), exit(137)]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_short_of_memory_or_disk_makes_nothing_and_harms_nothing() {
    const GIB: u64 = 1 << 30;
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    let memory = |available| Memory { total: 16 * GIB, available };
    let disk = |free| Disk { total: 64 * GIB, free };
    for (what, short) in [("memory", true), ("disk", false)] {
        host.vmm.set_memory(memory(if short { GIB - 1 } else { 8 * GIB }));
        host.vmm.set_disk(disk(if short { 8 * GIB } else { GIB - 1 }));
        // A reading is good for a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for answer in [
            host.post("/v1/sandboxes", &json!({})).await,
            host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({})).await,
            host.post(&format!("/v1/sandboxes/{id}/checkpoints"), &json!({})).await,
            host.restore(&id, &checkpoint).await,
        ] {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
            assert!(answer.headers.contains_key("retry-after"));
            assert!(answer.error().contains(&format!("1023 MiB of {what} left")), "{}", answer.body);
        }
        assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    }
    // A reading that refuses is not kept.
    host.vmm.set_disk(disk(8 * GIB));
    host.create().await;
}
