//! Forking: children are copies with a name of their own, all of them or none, or those that live.

use crate::host::{Host, exit, stdout};
use axum::http::StatusCode;
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;

#[tokio::test]
async fn children_have_what_the_parent_had_and_go_their_own_way() {
    let host = Host::start(&[]).await;
    let parent = host.create().await;
    host.exec(&parent, "set who parent").await;
    let children = host.fork(&parent, 5).await;
    assert_eq!(children.iter().collect::<HashSet<_>>().len(), 5);
    for (index, child) in children.iter().enumerate() {
        assert_eq!(host.text(child, "get who").await, "parent");
        host.exec(child, &format!("set who child {index}")).await;
    }
    assert_eq!(host.text(&parent, "get who").await, "parent");
    assert_eq!(host.text(&children[3], "get who").await, "child 3");
}

#[tokio::test]
async fn no_two_copies_share_their_name_or_entropy() {
    let host = Host::start(&[]).await;
    let mut ids = vec![host.create().await, host.create().await];
    ids.extend(host.fork(&ids[0], 4).await);
    for code in ["hostname", "entropy"] {
        let mut seen = HashSet::new();
        for id in &ids {
            assert!(seen.insert(host.text(id, code).await), "{code} of {id}");
        }
    }
    assert!(ids[0].contains(host.text(&ids[0], "hostname").await.strip_prefix("sbx-").unwrap()));
}

#[tokio::test]
async fn a_fork_does_not_wait_for_the_parents_execution_or_cut_it() {
    let host = Host::start(&[]).await;
    let parent = host.create().await;
    let running = host.start_exec(&parent, "set step 1\nsleep 200\nset step 2\nprint done").await;
    let children = host.fork(&parent, 2).await;
    assert_eq!(host.exec(&children[0], "print alive").await, [stdout("alive"), exit(0)]);
    assert_eq!(running.rest().await, [stdout("done"), exit(0)]);
}

#[tokio::test]
async fn ten_generations_deep_nothing_is_lost() {
    let host = Host::start(&[]).await;
    let mut id = host.create().await;
    for generation in 1..=10 {
        host.exec(&id, &format!("set g{generation} {generation}")).await;
        id = host.fork(&id, 1).await.remove(0);
    }
    let code: String = (1..=10).map(|generation| format!("get g{generation}\n")).collect();
    assert_eq!(host.text(&id, &code).await, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10");
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.json()["generation"], 11);
}

#[tokio::test]
async fn a_child_knows_its_parent_and_starts_without_a_history() {
    let host = Host::start(&[]).await;
    let parent =
        host.create_with(&json!({"idle_timeout_seconds": 77})).await["id"].as_str().unwrap().to_owned();
    host.exec(&parent, "print before").await;
    let child = host.fork(&parent, 1).await.remove(0);
    let view = host.get(&format!("/v1/sandboxes/{child}")).await.json();
    assert_eq!(view["parent"], parent.as_str());
    assert_eq!((&view["generation"], &view["checkpoint"]), (&json!(2), &json!(null)));
    assert_eq!(view["template"], "default");
    assert_eq!(view["idle_timeout_seconds"], 77);
    assert_eq!(view["renewed"], true);
    let of_parent = host.get(&format!("/v1/sandboxes/{parent}")).await.json();
    let moments = [&of_parent["forked_at_ms"], &of_parent["created_at_ms"], &view["forked_at_ms"]];
    assert!(moments.is_sorted_by_key(|moment| moment.as_u64().unwrap()), "{moments:?}");
    assert_eq!(host.get(&format!("/v1/sandboxes/{child}/replay")).await.body, "");
}

#[tokio::test]
async fn one_child_is_the_default_and_32_are_the_most() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/fork");
    let answer = host.post(&path, &json!({})).await;
    assert_eq!(answer.json()["children"].as_array().unwrap().len(), 1);
    assert_eq!(host.fork(&id, 32).await.len(), 32);
    for n in [json!(0), json!(33), json!(-1), json!(1.5), json!("two")] {
        let answer = host.post(&path, &json!({"n": n})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{n}");
        answer.error();
    }
}

#[tokio::test]
async fn thirty_two_children_bring_their_source_to_a_stand_once() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/fork");
    for n in [1, 32] {
        let before = host.vmm.pauses();
        let answer = host.post(&path, &json!({"n": n})).await;
        assert_eq!(answer.json()["children"].as_array().unwrap().len(), n);
        assert_eq!(host.vmm.pauses(), before + 1);
        let timing = answer.headers["server-timing"].to_str().unwrap();
        assert!(timing.contains("pause;dur=1.000,"), "{timing}");
    }
}

#[tokio::test(start_paused = true)]
async fn copies_whose_renewal_was_long_on_its_way_are_told_the_time_once_more() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    host.fork(&parent, 3).await;
    assert_eq!(host.vmm.clocks_set(), 0);
    host.vmm.set_renewal_time(Duration::from_millis(500));
    host.fork(&parent, 3).await;
    assert_eq!(host.vmm.clocks_set(), 3);
}

#[tokio::test]
async fn if_one_child_is_not_renewed_there_are_none_and_the_answer_names_it() {
    let host = Host::start(&["--pool-size", "0", "--sandboxes-max", "6"]).await;
    let parent = host.create().await;
    // The twin is made first, and is the last child.
    for (nth, child) in [(1, 4), (2, 0), (5, 3)] {
        host.vmm.refuse_renewal_of(nth);
        let answer = host.post(&format!("/v1/sandboxes/{parent}/fork"), &json!({"n": 5})).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        let why =
            "A copy was not made its own, so it was ended: the guest's agent failed: the renewal was refused";
        let told = format!("Could not make 1 of 5 children, so there are none; child {child}: {why}");
        assert_eq!(answer.json(), json!({"error": told, "failures": [{"child": child, "error": why}]}));
        host.machines_are(2).await;
    }
    assert_eq!(host.get("/v1/sandboxes").await.json()["sandboxes"].as_array().unwrap().len(), 1);
    assert_eq!(host.fork(&parent, 5).await.len(), 5);
}

#[tokio::test]
async fn a_client_that_takes_fewer_gets_the_children_that_live() {
    let host = Host::start(&["--pool-size", "0", "--sandboxes-max", "6"]).await;
    let parent = host.create().await;
    host.exec(&parent, "set x 1").await;
    host.vmm.refuse_renewal_of(2);
    host.vmm.refuse_renewal_of(4);
    let path = format!("/v1/sandboxes/{parent}/fork");
    let answer = host.post(&path, &json!({"n": 5, "partial": true})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let forked = answer.json();
    let failed: Vec<_> =
        forked["failures"].as_array().unwrap().iter().map(|failure| &failure["child"]).collect();
    assert_eq!(failed, [0, 2]);
    let children: Vec<String> = serde_json::from_value(forked["children"].clone()).unwrap();
    assert_eq!(children.len(), 3);
    for child in &children {
        assert_eq!(host.text(child, "get x").await, "1");
    }
    host.machines_are(5).await;
    // The slots of the others were given back.
    let answer = host.post(&path, &json!({"n": 2, "partial": true})).await;
    assert_eq!(answer.json().as_object().unwrap().keys().collect::<Vec<_>>(), ["children"]);
    assert_eq!(host.post(&path, &json!({"n": 1})).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_fork_without_any_child_is_an_error_for_everyone() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    host.vmm.refuse_renewals(3);
    let path = format!("/v1/sandboxes/{parent}/fork");
    let answer = host.post(&path, &json!({"n": 3, "partial": true})).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["failures"].as_array().unwrap().len(), 3);
    host.machines_are(2).await;
}

#[tokio::test]
async fn only_children_that_die_at_once_are_made_once_more_and_no_oftener() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    let made = host.vmm.made();
    host.vmm.die_of_thaws(2);
    assert_eq!(host.fork(&parent, 5).await.len(), 5);
    assert_eq!(host.vmm.made(), made + 5 + 2);
    host.machines_are(7).await;

    host.vmm.die_of_thaws(10);
    let answer = host.post(&format!("/v1/sandboxes/{parent}/fork"), &json!({"n": 5})).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    host.machines_are(7).await;
}

#[tokio::test]
async fn a_sandbox_that_is_not_there_has_no_children() {
    let host = Host::start(&[]).await;
    for id in ["sbx_00000000000000000000000000000000", "nonsense"] {
        let answer = host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({"n": 1})).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::NOT_FOUND, "sandbox not found"));
    }
}

#[tokio::test]
async fn the_answer_says_where_the_time_went() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let answer = host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({"n": 2})).await;
    let timing = answer.headers["server-timing"].to_str().unwrap();
    for phase in
        ["pause;dur=", "save;dur=", "fork;dur=", "build;dur=", "restore;dur=", "renew;dur=", "total;dur="]
    {
        assert!(timing.contains(phase), "{timing}");
    }
}

#[tokio::test]
async fn a_fork_of_a_sandbox_that_dies_is_told_why_and_is_no_fault_of_the_host() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    host.vmm.die_in_forks(1);
    let answer = host.post(&format!("/v1/sandboxes/{parent}/fork"), &json!({"n": 3})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with("because its VMM was killed by signal 9"), "{}", answer.body);
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_fork_of_a_sandbox_that_is_replaced_meanwhile_is_one_of_the_winner() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent = host.create().await;
    let winner = host.fork(&parent, 1).await.remove(0);
    host.exec(&winner, "set who winner").await;
    host.vmm.set_renewal_time(Duration::from_secs(5));
    // It takes all turns, so that the fork waits for its own while the merge happens.
    let others = host.fork(&winner, 32);
    let fork = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.fork(&parent, 1).await.remove(0)
    };
    let merge = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);
    };
    let (_, child, ()) = tokio::join!(others, fork, merge);
    assert_eq!(host.text(&child, "get who").await, "winner");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_does_not_end_idle_while_it_is_forked() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let parent =
        host.create_with(&json!({"idle_timeout_seconds": 5})).await["id"].as_str().unwrap().to_owned();
    host.vmm.set_renewal_time(Duration::from_secs(10));
    host.fork(&parent, 2).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(host.exec(&parent, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn the_pause_is_all_that_the_source_has_stood_still() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/fork");
    for (deaths, pause) in [(0, "pause;dur=1.000,"), (1, "pause;dur=2.000,")] {
        host.vmm.die_of_thaws(deaths);
        let answer = host.post(&path, &json!({"n": 3})).await;
        let timing = answer.headers["server-timing"].to_str().unwrap();
        assert!(timing.contains(pause), "{timing}");
    }
}
