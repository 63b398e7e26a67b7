//! `merge_into`: the parent's name, the winner's machine.

use crate::host::{Host, exit, stderr, stdout};
use axum::http::StatusCode;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn the_winner_lives_on_under_the_parents_name() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    let children = host.fork(&parent, 3).await;
    host.exec(&children[1], "set result 42").await;
    host.exec(&parent, "set result wrong").await;

    let answer = host.merge(&parent, &children[1]).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
    assert_eq!(host.text(&parent, "get result").await, "42");
    let gone = host.get(&format!("/v1/sandboxes/{}", children[1])).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert!(gone.error().ends_with(&format!("it was merged into {parent}")), "{}", gone.body);
    assert_eq!(host.text(&children[0], "print still here").await, "still here");
    host.machines_are(4).await;
}

#[tokio::test]
async fn the_winners_history_and_executions_go_with_it() {
    let host = Host::start(&[]).await;
    let parent = host.create().await;
    host.exec(&parent, "print of the parent").await;
    let winner = host.fork(&parent, 1).await.remove(0);
    host.exec(&winner, "print of the winner").await;
    let running = host.start_exec(&winner, "sleep 50\nprint done").await;
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);
    assert_eq!(running.rest().await, [stdout("done"), exit(0)]);
    let replay = host.get(&format!("/v1/sandboxes/{parent}/replay")).await.body;
    assert!(replay.contains("of the winner") && !replay.contains("of the parent"), "{replay}");
}

#[tokio::test]
async fn executions_of_the_replaced_machine_are_told() {
    let host = Host::start(&[]).await;
    let parent = host.create().await;
    let winner = host.fork(&parent, 1).await.remove(0);
    let running = host.start_exec(&parent, "sleep 3600000").await;
    host.merge(&parent, &winner).await;
    let told = format!("the sandbox has ended: {winner} was merged into it");
    assert_eq!(running.rest().await, [stderr(&told), exit(137)]);
    assert_eq!(host.exec(&parent, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn a_merge_that_makes_no_sense_changes_nothing() {
    let host = Host::start(&[]).await;
    let parent = host.create().await;
    let winner = host.fork(&parent, 1).await.remove(0);
    assert_eq!(host.merge(&parent, &parent).await.status, StatusCode::BAD_REQUEST);
    let unknown = "sbx_00000000000000000000000000000000";
    for (parent, winner) in [(parent.as_str(), unknown), (unknown, winner.as_str()), (parent.as_str(), "x")] {
        assert_eq!(host.merge(parent, winner).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(host.exec(&winner, "pass").await, [exit(0)]);
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nobody_waits_for_machines_that_are_taken_down() {
    let host = Host::start(&["--pool-size", "0", "--sandboxes-max", "12"]).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(host.create().await);
    }
    // For ever, as far as this test goes.
    host.vmm.set_ending_time(Duration::from_secs(3600));
    for id in &ids {
        assert_eq!(host.delete(id).await.status, StatusCode::NO_CONTENT);
    }
    let id = host.create().await;
    assert_eq!(host.text(&id, "print runs").await, "runs");
    host.create().await;
    // What is being taken down still has its place, so there is no more of it than there may be sandboxes.
    let refused = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.error().contains("limit is 12 sandboxes"), "{}", refused.body);
}

#[tokio::test(start_paused = true)]
async fn machines_are_taken_down_when_nobody_waits_but_soon() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let busy: Vec<_> = (0..host.app.admission.processors()).map(|_| host.app.activity.execute()).collect();
    let [first, second] = [host.create().await, host.create().await];
    host.delete(&first).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.vmm.alive(), 3);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(host.vmm.alive(), 2, "though somebody still waits");
    drop(busy);
    host.delete(&second).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(host.vmm.alive(), 1);
}

#[tokio::test]
async fn a_sandbox_can_be_forked_and_merged_again_and_again() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    for round in 1..=10 {
        let winner = host.fork(&id, 2).await.remove(0);
        host.exec(&winner, &format!("set round {round}")).await;
        host.merge(&id, &winner).await;
        let view = host.get(&format!("/v1/sandboxes/{id}")).await.json();
        assert_eq!((&view["id"], &view["parent"]), (&json!(id), &json!(null)));
    }
    assert_eq!(host.text(&id, "get round").await, "10");
}

#[tokio::test(start_paused = true)]
async fn a_name_keeps_its_lifetime_when_its_machine_is_replaced() {
    let host = Host::start(&[]).await;
    let id = host.create_with(&json!({"timeout_seconds": 100})).await["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let winner = host.fork(&id, 1).await.remove(0);
    host.merge(&id, &winner).await;
    tokio::time::sleep(Duration::from_secs(39)).await;
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let answer = host.get(&format!("/v1/sandboxes/{id}")).await;
    assert!(answer.error().ends_with("its lifetime of 100 s was over"), "{}", answer.body);
}

#[tokio::test]
async fn a_winner_that_dies_takes_the_name_with_it() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let winner = host.fork(&id, 1).await.remove(0);
    host.merge(&id, &winner).await;
    host.exec(&id, "panic").await;
    host.is_gone(&id).await;
    host.machines_are(1).await;
}

#[tokio::test]
async fn an_execution_during_a_merge_is_run_by_one_machine_or_the_other() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    for _ in 0..50 {
        let winner = host.fork(&id, 1).await.remove(0);
        let path = format!("/v1/sandboxes/{id}/exec");
        let code = json!({"code": "pass"});
        let (answer, merged) = tokio::join!(host.post(&path, &code), host.merge(&id, &winner));
        assert_eq!(merged.status, StatusCode::NO_CONTENT);
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
}
