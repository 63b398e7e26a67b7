//! `restore`: the sandbox's name, its checkpoint's state.

use crate::host::{Host, exit, stderr};
use axum::http::StatusCode;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_sandbox_is_put_back_in_its_place_again_and_again() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    host.exec(&id, "set x then").await;
    let before = host.get(&format!("/v1/sandboxes/{id}")).await.json();
    let checkpoint = host.checkpoint(&id).await;
    for _ in 0..3 {
        host.exec(&id, "set x later\nprint of the former machine").await;
        let answer = host.restore(&id, &checkpoint).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
        let timing = answer.headers["server-timing"].to_str().unwrap();
        assert!(timing.contains("pause;dur=0.000,") && timing.contains("renew;dur="), "{timing}");
        assert_eq!(host.text(&id, "get x").await, "then");
        let replay = host.get(&format!("/v1/sandboxes/{id}/replay")).await.body;
        assert!(!replay.contains("of the former machine"), "{replay}");
    }
    let view = host.get(&format!("/v1/sandboxes/{id}")).await.json();
    for field in ["id", "created_at_ms", "parent", "template", "timeout_seconds", "idle_timeout_seconds"] {
        assert_eq!(view[field], before[field], "{field}");
    }
    assert_eq!((&view["checkpoint"], &view["generation"]), (&json!(checkpoint), &json!(2)));
    assert!(view["forked_at_ms"].as_u64() >= before["forked_at_ms"].as_u64());
    assert_eq!((&view["executions"], &view["renewed"]), (&json!(1), &json!(true)));
    assert_eq!(host.get("/v1/sandboxes").await.json()["sandboxes"].as_array().unwrap().len(), 1);
    host.machines_are(3).await;
}

#[tokio::test]
async fn what_runs_in_the_former_machine_is_told() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    let running = host.start_exec(&id, "sleep 3600000").await;
    host.restore(&id, &checkpoint).await;
    let told = format!("the sandbox has ended: it was restored to {checkpoint}");
    assert_eq!(running.rest().await, [stderr(&told), exit(137)]);
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn a_restored_sandbox_can_be_checkpointed_and_restored() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let first = host.checkpoint(&id).await;
    host.exec(&id, "set x 1").await;
    host.restore(&id, &first).await;
    host.exec(&id, "set x 2").await;
    let second = host.checkpoint(&id).await;
    host.restore(&id, &first).await;
    assert_eq!(host.exec(&id, "get x").await, [stderr("no variable x"), exit(1)]);
    host.restore(&id, &second).await;
    assert_eq!(host.text(&id, "get x").await, "2");
    let view = host.get(&format!("/v1/checkpoints/{second}")).await.json();
    assert_eq!((&view["sandbox"], &view["generation"]), (&json!(id), &json!(2)));
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.json()["generation"], 3);
}

#[tokio::test]
async fn a_sandbox_is_restored_only_to_checkpoints_of_its_own() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let [id, other] = [host.create().await, host.create().await];
    let of_other = host.checkpoint(&other).await;
    let answer = host.restore(&id, &of_other).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().starts_with(&format!("{of_other} is a checkpoint of {other}")), "{}", answer.body);
    assert_eq!(host.restore(&id, "nonsense").await.status, StatusCode::BAD_REQUEST);
    let answer = host.restore(&id, "ckp_00000000000000000000000000000000").await;
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::NOT_FOUND, "checkpoint not found"));
    let answer = host.restore("nonsense", &of_other).await;
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::NOT_FOUND, "sandbox not found"));
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    host.machines_are(4).await;
}

#[tokio::test]
async fn a_restore_that_fails_changes_nothing() {
    let host = Host::start(&["--pool-size", "0", "--sandboxes-max", "3"]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    host.exec(&id, "set x later").await;
    host.vmm.refuse_renewals(1);
    let answer = host.restore(&id, &checkpoint).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.error().contains("the sandbox is as it was"), "{}", answer.body);
    assert_eq!(host.text(&id, "get x").await, "later");
    host.machines_are(3).await;
    // A copy that dies in its first moments is made once more.
    host.vmm.die_of_thaws(1);
    assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    host.machines_are(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_keeps_its_lifetime_when_it_is_restored() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create_with(&json!({"timeout_seconds": 100})).await["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let checkpoint = host.checkpoint(&id).await;
    assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    tokio::time::sleep(Duration::from_secs(39)).await;
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let answer = host.get(&format!("/v1/sandboxes/{id}")).await;
    assert!(answer.error().ends_with("its lifetime of 100 s was over"), "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_does_not_end_idle_while_it_is_restored() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create_with(&json!({"idle_timeout_seconds": 5})).await["id"].as_str().unwrap().to_owned();
    let checkpoint = host.checkpoint(&id).await;
    host.vmm.set_renewal_time(Duration::from_secs(10));
    assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_deleted_while_it_is_restored_stays_deleted() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    host.vmm.set_renewal_time(Duration::from_secs(5));
    let (answer, ()) = tokio::join!(host.restore(&id, &checkpoint), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.delete(&id).await;
    });
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with("because it was deleted"), "{}", answer.body);
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_fork_of_a_sandbox_that_is_restored_meanwhile_is_one_of_the_restored() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    host.exec(&id, "set x then").await;
    let checkpoint = host.checkpoint(&id).await;
    host.exec(&id, "set x later").await;
    host.vmm.set_renewal_time(Duration::from_secs(5));
    let restore = host.restore(&id, &checkpoint);
    // It waits for its turn while the restore happens.
    let fork = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.fork(&id, 32).await
    };
    let (restored, children) = tokio::join!(restore, fork);
    assert_eq!(restored.status, StatusCode::NO_CONTENT);
    for child in children {
        assert_eq!(host.text(&child, "get x").await, "then");
    }
    host.machines_are(35).await;
}

#[tokio::test]
async fn an_execution_during_a_restore_is_run_by_one_machine_or_the_other() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    let path = format!("/v1/sandboxes/{id}/exec");
    let code = json!({"code": "pass"});
    for _ in 0..50 {
        let (answer, restored) = tokio::join!(host.post(&path, &code), host.restore(&id, &checkpoint));
        assert_eq!(restored.status, StatusCode::NO_CONTENT, "{}", restored.body);
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
    host.machines_are(3).await;
}

#[tokio::test]
async fn restores_and_merges_at_once_leave_one_machine_for_the_name() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    for _ in 0..20 {
        let winner = host.fork(&id, 1).await.remove(0);
        let (restored, again, merged) = tokio::join!(
            host.restore(&id, &checkpoint),
            host.restore(&id, &checkpoint),
            host.merge(&id, &winner)
        );
        for answer in [restored, again, merged] {
            assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.body);
        }
        assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
        host.machines_are(3).await;
    }
}
