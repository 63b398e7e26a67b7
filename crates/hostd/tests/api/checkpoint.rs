//! Checkpoints: the state at one moment, whatever happens later, for as long as their sandbox's id is wanted.

use crate::host::{Answer, Host, exit};
use axum::http::StatusCode;
use futures_util::future::join_all;
use podflare_api::checkpoint::{CHECKPOINT_NAME_LEN_MAX, CHECKPOINTS_MAX};
use serde_json::{Value, json};
use std::time::Duration;

const UNKNOWN: &str = "ckp_00000000000000000000000000000000";

async fn take(host: &Host, sandbox: &str, body: &Value) -> Answer {
    host.post(&format!("/v1/sandboxes/{sandbox}/checkpoints"), body).await
}

async fn ids(host: &Host, path: &str) -> Vec<String> {
    let answer = host.get(path).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let list = answer.json();
    let id = |view: &Value| view["id"].as_str().unwrap().to_owned();
    list["checkpoints"].as_array().unwrap().iter().map(id).collect()
}

async fn ids_of(host: &Host, sandbox: &str) -> Vec<String> {
    ids(host, &format!("/v1/sandboxes/{sandbox}/checkpoints")).await
}

/// Why there is no such checkpoint, whatever is asked of it.
async fn why_gone(host: &Host, checkpoint: &str) -> String {
    let path = format!("/v1/checkpoints/{checkpoint}");
    let looked = host.get(&path).await;
    let forked = host.post(&format!("{path}/fork"), &json!({})).await;
    assert_eq!((looked.status, forked.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(looked.error(), forked.error());
    looked.error()
}

#[tokio::test]
async fn what_is_made_of_a_checkpoint_has_the_state_of_its_moment() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    host.exec(&sandbox, "set x then").await;
    let checkpoint = host.checkpoint(&sandbox).await;
    host.exec(&sandbox, "set x later").await;
    for _ in 0..2 {
        for child in host.fork_checkpoint(&checkpoint, 3).await {
            assert_eq!(host.text(&child, "get x").await, "then");
            host.exec(&child, "set x of the child").await;
        }
    }
    assert_eq!(host.text(&sandbox, "get x").await, "later");
    host.machines_are(1 + 1 + 1 + 6).await;
}

#[tokio::test]
async fn checkpoints_tell_what_they_are_and_are_listed_oldest_first() {
    let host = Host::start(&[]).await;
    let sandbox = host.create_with(&json!({"timeout_seconds": 100})).await["id"].as_str().unwrap().to_owned();
    let other = host.create().await;
    assert!(ids_of(&host, &sandbox).await.is_empty());
    let answer = take(&host, &sandbox, &json!({"name": "with \"data\" ✓"})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let timing = answer.headers["server-timing"].to_str().unwrap();
    for phase in ["wait;dur=", "pause;dur=1.000,", "save;dur=", "fork;dur=", "total;dur="] {
        assert!(timing.contains(phase), "{timing}");
    }
    let view = answer.json();
    let first = view["id"].as_str().unwrap().to_owned();
    let second = host.checkpoint(&sandbox).await;
    let of_other = host.checkpoint(&other).await;
    assert!(first.starts_with("ckp_"));
    assert_eq!((&view["name"], &view["sandbox"]), (&json!("with \"data\" ✓"), &json!(sandbox)));
    assert_eq!((&view["template"], &view["generation"]), (&json!("default"), &json!(1)));
    let [created, expires] = ["created_at_ms", "expires_at_ms"].map(|field| view[field].as_u64().unwrap());
    assert_eq!(expires - created, 100_000);
    assert_eq!(host.get(&format!("/v1/checkpoints/{first}")).await.json(), view);
    assert_eq!(host.get(&format!("/v1/checkpoints/{second}")).await.json()["name"], json!(null));
    assert_eq!(ids_of(&host, &sandbox).await, [first.as_str(), second.as_str()]);
    assert_eq!(ids(&host, "/v1/checkpoints").await, [first, second, of_other]);
}

#[tokio::test]
async fn what_is_made_of_a_checkpoint_knows_where_it_comes_from() {
    let host = Host::start(&[]).await;
    let sandbox =
        host.create_with(&json!({"idle_timeout_seconds": 77})).await["id"].as_str().unwrap().to_owned();
    let checkpoint = host.checkpoint(&sandbox).await;
    let child = host.fork_checkpoint(&checkpoint, 1).await.remove(0);
    let view = host.get(&format!("/v1/sandboxes/{child}")).await.json();
    assert_eq!((&view["parent"], &view["checkpoint"]), (&json!(sandbox), &json!(checkpoint)));
    assert_eq!((&view["generation"], &view["idle_timeout_seconds"]), (&json!(2), &json!(77)));
    let grandchild = host.fork(&child, 1).await.remove(0);
    let view = host.get(&format!("/v1/sandboxes/{grandchild}")).await.json();
    assert_eq!((&view["parent"], &view["checkpoint"]), (&json!(child), &json!(null)));
    assert_eq!(view["generation"], 3);
}

#[tokio::test]
async fn a_sandbox_has_so_many_checkpoints_and_no_more() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoints =
        join_all((0..CHECKPOINTS_MAX + 4).map(async |_| take(&host, &sandbox, &json!({})).await)).await;
    let taken = checkpoints.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(taken, CHECKPOINTS_MAX);
    let refused = checkpoints.iter().find(|answer| answer.status != StatusCode::OK).unwrap();
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.error().starts_with("This sandbox has 16 checkpoints"), "{}", refused.body);
    host.machines_are(2 + 16).await;

    let other = host.create().await;
    host.checkpoint(&other).await;
    let oldest = ids_of(&host, &sandbox).await.remove(0);
    host.delete_at(&format!("/v1/checkpoints/{oldest}")).await;
    host.checkpoint(&sandbox).await;
    assert_eq!(take(&host, &sandbox, &json!({})).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_name_has_a_length_and_a_fork_a_count() {
    let host = Host::start(&[]).await;
    let sandbox = host.create().await;
    let longest = "ü".repeat(CHECKPOINT_NAME_LEN_MAX);
    let answer = take(&host, &sandbox, &json!({"name": longest})).await;
    assert_eq!(answer.json()["name"], longest);
    let checkpoint = answer.json()["id"].as_str().unwrap().to_owned();
    for name in [json!(longest + "x"), json!(1)] {
        let answer = take(&host, &sandbox, &json!({"name": name})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        answer.error();
    }
    let path = format!("/v1/checkpoints/{checkpoint}/fork");
    for n in [0, 33] {
        assert_eq!(host.post(&path, &json!({"n": n})).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(host.post(&path, &json!({"n": 32})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_checkpoint_takes_a_slot_and_gives_it_back() {
    let host = Host::start(&["--pool-size", "0", "--sandboxes-max", "2"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    assert_eq!(host.get("/v1/capacity").await.json()["checkpoints"], 1);
    for answer in [
        take(&host, &sandbox, &json!({})).await,
        host.post(&format!("/v1/checkpoints/{checkpoint}/fork"), &json!({})).await,
        host.restore(&sandbox, &checkpoint).await,
    ] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
        assert!(answer.error().contains("limit is 2 sandboxes and checkpoints"), "{}", answer.body);
    }
    host.delete_at(&format!("/v1/checkpoints/{checkpoint}")).await;
    host.machines_are(2).await;
    let has_slot = async || take(&host, &sandbox, &json!({})).await.status == StatusCode::OK;
    crate::host::until("the slot is given back", has_slot).await;
}

#[tokio::test]
async fn a_deleted_checkpoint_is_gone_and_deleting_it_again_is_no_error() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    for id in [checkpoint.as_str(), checkpoint.as_str(), UNKNOWN, "nonsense", "%ff", sandbox.as_str()] {
        let answer = host.delete_at(&format!("/v1/checkpoints/{id}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""), "{id}");
    }
    let told = why_gone(&host, &checkpoint).await;
    assert_eq!(told, "checkpoint not found: it ended 0 s ago because it was deleted");
    assert_eq!(why_gone(&host, UNKNOWN).await, "checkpoint not found");
    assert!(ids_of(&host, &sandbox).await.is_empty());
    host.machines_are(2).await;
    assert_eq!(host.exec(&sandbox, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn deleting_a_sandbox_ends_its_checkpoints() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    let child = host.fork_checkpoint(&checkpoint, 1).await.remove(0);
    let of_child = host.checkpoint(&child).await;
    host.delete(&sandbox).await;
    assert!(
        why_gone(&host, &checkpoint).await.ends_with(&format!("because its sandbox {sandbox} was deleted"))
    );
    assert_eq!(host.get(&format!("/v1/sandboxes/{sandbox}/checkpoints")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(ids(&host, "/v1/checkpoints").await, [of_child]);
    host.machines_are(3).await;
}

#[tokio::test]
async fn a_sandbox_that_crashed_is_brought_back_until_it_is_deleted() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    host.exec(&sandbox, "set x 1").await;
    let checkpoint = host.checkpoint(&sandbox).await;
    host.exec(&sandbox, "panic").await;
    host.is_gone(&sandbox).await;
    assert_eq!(ids_of(&host, &sandbox).await, [checkpoint.as_str()]);
    let answer = host.restore(&sandbox, &checkpoint).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().contains("sandbox not found: it ended"), "{}", answer.body);
    let child = host.fork_checkpoint(&checkpoint, 1).await.remove(0);
    assert_eq!(host.text(&child, "get x").await, "1");

    host.delete(&sandbox).await;
    why_gone(&host, &checkpoint).await;
    assert_eq!(host.text(&child, "get x").await, "1");
    host.machines_are(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_outlives_an_idle_sandbox_by_its_own_lifetime() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let terms = json!({"timeout_seconds": 100, "idle_timeout_seconds": 30});
    let sandbox = host.create_with(&terms).await["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let checkpoint = host.checkpoint(&sandbox).await;
    tokio::time::sleep(Duration::from_secs(99)).await;
    host.is_gone(&sandbox).await;
    host.fork_checkpoint(&checkpoint, 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(why_gone(&host, &checkpoint).await.ends_with("because its lifetime of 100 s was over"));
    let gone = host.get(&format!("/v1/sandboxes/{sandbox}/checkpoints")).await;
    assert!(gone.error().ends_with("nothing was run in it for 30 s"), "{}", gone.body);
}

#[tokio::test]
async fn a_checkpoint_whose_process_dies_is_gone_with_a_reason_and_hurts_nobody() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    host.vmm.kill_newest();
    let path = format!("/v1/checkpoints/{checkpoint}");
    let is_gone = async || host.get(&path).await.status == StatusCode::NOT_FOUND;
    crate::host::until("the checkpoint is gone", is_gone).await;
    assert!(why_gone(&host, &checkpoint).await.ends_with("because its VMM was killed by signal 9"));
    assert_eq!(host.exec(&sandbox, "pass").await, [exit(0)]);
    host.checkpoint(&sandbox).await;
}

#[tokio::test]
async fn a_checkpoint_that_dies_as_it_is_used_is_told_and_is_no_fault_of_the_host() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let told = "because its VMM was killed by signal 9";
    let [forked, restored] = [host.checkpoint(&sandbox).await, host.checkpoint(&sandbox).await];
    host.vmm.die_in_forks(1);
    let answer = host.post(&format!("/v1/checkpoints/{forked}/fork"), &json!({"n": 3})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with(told), "{}", answer.body);
    host.vmm.die_in_forks(1);
    let answer = host.restore(&sandbox, &restored).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with(told), "{}", answer.body);
    assert_eq!(host.exec(&sandbox, "pass").await, [exit(0)]);
    host.machines_are(2).await;
}

#[tokio::test]
async fn a_sandbox_that_dies_as_it_is_checkpointed_is_told() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    host.vmm.die_in_forks(1);
    let answer = take(&host, &sandbox, &json!({})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with("because its VMM was killed by signal 9"), "{}", answer.body);
    for id in ["sbx_00000000000000000000000000000000", "nonsense"] {
        assert_eq!(take(&host, id, &json!({})).await.error(), "sandbox not found");
    }
    host.machines_are(1).await;
}

#[tokio::test]
async fn a_merge_leaves_the_parent_with_the_checkpoints_of_both() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    host.exec(&parent, "set who parent").await;
    let of_parent = host.checkpoint(&parent).await;
    let winner = host.fork(&parent, 1).await.remove(0);
    host.exec(&winner, "set who winner").await;
    let of_winner = host.checkpoint(&winner).await;
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);

    assert_eq!(ids_of(&host, &parent).await, [of_parent.as_str(), of_winner.as_str()]);
    assert_eq!(host.get(&format!("/v1/sandboxes/{winner}/checkpoints")).await.status, StatusCode::NOT_FOUND);
    host.delete(&winner).await;
    for (checkpoint, who) in [(&of_winner, "winner"), (&of_parent, "parent"), (&of_winner, "winner")] {
        assert_eq!(host.restore(&parent, checkpoint).await.status, StatusCode::NO_CONTENT);
        assert_eq!(host.text(&parent, "get who").await, who);
    }
    let child = host.fork_checkpoint(&of_winner, 1).await.remove(0);
    assert_eq!(host.get(&format!("/v1/sandboxes/{child}")).await.json()["parent"], json!(parent));
    host.delete(&parent).await;
    assert!(ids(&host, "/v1/checkpoints").await.is_empty());
}

#[tokio::test]
async fn a_checkpoint_of_a_sandbox_that_is_deleted_meanwhile_is_none() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    // The checkpoint waits for its turn while the sandbox is deleted.
    let turns = host.app.admission.turn(u32::MAX).await.unwrap();
    let request = json!({});
    let (answer, ()) = tokio::join!(take(&host, &sandbox, &request), async {
        tokio::task::yield_now().await;
        host.delete(&sandbox).await;
        drop(turns);
    });
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.body);
    assert!(answer.error().ends_with("because it was deleted"), "{}", answer.body);
    host.machines_are(1).await;
}

#[tokio::test]
async fn a_checkpoint_of_a_sandbox_that_is_merged_meanwhile_goes_with_it() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    let winner = host.fork(&parent, 1).await.remove(0);
    host.exec(&winner, "set who winner").await;
    let turns = host.app.admission.turn(u32::MAX).await.unwrap();
    let request = json!({});
    let (answer, ()) = tokio::join!(take(&host, &winner, &request), async {
        tokio::task::yield_now().await;
        assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);
        drop(turns);
    });
    assert_eq!(answer.json()["sandbox"], json!(parent));
    let checkpoint = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(ids_of(&host, &parent).await, [checkpoint.as_str()]);
    assert_eq!(host.restore(&parent, &checkpoint).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.text(&parent, "get who").await, "winner");
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_checkpoint_wait_for_their_turn_but_not_for_long() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    let _turns = host.app.admission.turn(u32::MAX).await.unwrap();
    for answer in [
        take(&host, &sandbox, &json!({})).await,
        host.post(&format!("/v1/checkpoints/{checkpoint}/fork"), &json!({})).await,
        host.restore(&sandbox, &checkpoint).await,
    ] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
        assert_eq!(answer.headers["retry-after"], "5");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_deleted_while_it_is_forked_has_its_children() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let sandbox = host.create().await;
    let checkpoint = host.checkpoint(&sandbox).await;
    host.vmm.set_renewal_time(Duration::from_secs(5));
    let (children, ()) = tokio::join!(host.fork_checkpoint(&checkpoint, 3), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.delete_at(&format!("/v1/checkpoints/{checkpoint}")).await;
    });
    for child in children {
        assert_eq!(host.exec(&child, "pass").await, [exit(0)]);
    }
    host.machines_are(5).await;
}
