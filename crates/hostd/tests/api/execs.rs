//! Executions as things of their own: what goes with their code, who lists them, and how they are ended.

use crate::host::{Host, events, exit, stderr, stdout, until};
use axum::http::StatusCode;
use serde_json::{Value, json};

fn last_event(text: &str) -> Value {
    serde_json::from_str(text.lines().rfind(|line| !line.is_empty()).unwrap()).unwrap()
}

fn states(execs: &[Value]) -> Vec<&str> {
    execs.iter().map(|exec| exec["state"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn variables_a_directory_and_input_reach_the_guest() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let code = "env KEY\ncwd\nstdin";
    let body = json!({"code": code, "env": {"KEY": "a=b"}, "cwd": "/srv", "stdin": "typed"});
    let (_, stream) = host.start_call(&id, &body).await;
    assert_eq!(stream.rest().await, [stdout("a=b"), stdout("/srv"), stdout("typed"), exit(0)]);
    let (_, stream) = host.start_call(&id, &json!({"code": "stdin", "stdin_b64": "Ynl0ZXM="})).await;
    assert_eq!(stream.rest().await, [stdout("bytes"), exit(0)]);
    assert_eq!(host.exec(&id, code).await, [stdout(""), stdout("/root"), stdout(""), exit(0)]);
}

#[tokio::test]
async fn what_no_process_can_have_is_refused_with_a_reason() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/exec");
    let many: Value = (0..257).map(|n| (n.to_string(), json!(""))).collect::<serde_json::Map<_, _>>().into();
    for (field, value, word) in [
        ("env", json!({"A=B": "x"}), "\"A=B\""),
        ("env", json!({"": "x"}), "empty"),
        ("env", json!({"A": "x\0"}), "NUL"),
        ("env", json!({"A": 1}), "string"),
        ("env", many, "257 variables"),
        ("env", json!({"A": "x".repeat(64 * 1024)}), "65537 bytes"),
        ("cwd", json!("relative"), "absolute"),
        ("cwd", json!("/a\0"), "NUL"),
        ("stdin_b64", json!("%"), "not base64"),
        ("timeout_ms", json!(0), "within 1 to 86400000"),
        ("timeout_ms", json!(86_400_001), "within 1 to 86400000"),
        ("timeout_ms", json!(-1), "-1"),
        ("cancel_on_disconnect", json!("yes"), "boolean"),
    ] {
        let mut body = json!({"code": "print ran"});
        body[field] = value;
        let answer = host.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{field}");
        assert!(answer.error().contains(word), "{}", answer.body);
    }
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}/replay")).await.body, "");
}

#[tokio::test]
async fn an_execution_has_an_id_in_its_head_and_in_its_exit() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (exec, stream) = host.start_call(&id, &json!({"code": "print one\nexit 3"})).await;
    let text = stream.rest_bytes().await;
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first.as_object().unwrap().len(), 4, "output has the published protocol's keys only");
    let last = last_event(&text);
    assert_eq!((&last["exec_id"], &last["data"], &last["reason"]), (&json!(exec), &json!(3), &Value::Null));
    let replay = host.get(&format!("/v1/sandboxes/{id}/replay")).await.body;
    assert_eq!(last_event(&replay)["exec_id"], json!(exec));
}

#[tokio::test]
async fn running_and_waiting_executions_are_listed_in_their_order() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    assert_eq!(host.execs(&id).await, Vec::<Value>::new());
    let (first, _first) =
        host.start_call(&id, &json!({"code": "sleep 3600000", "timeout_ms": 3_600_000})).await;
    let long = format!("print {}", "ä".repeat(500));
    let (second, stream) = host.start_call(&id, &json!({"code": long, "language": "bash"})).await;
    let execs = host.execs(&id).await;
    assert_eq!(states(&execs), ["running", "queued"]);
    assert_eq!((&execs[0]["id"], &execs[1]["id"]), (&json!(first), &json!(second)));
    assert_eq!((&execs[0]["language"], &execs[1]["language"]), (&json!("python"), &json!("bash")));
    assert_eq!((&execs[0]["timeout_ms"], &execs[1]["timeout_ms"]), (&json!(3_600_000), &Value::Null));
    assert_eq!((&execs[0]["code"], &execs[0]["inherited"]), (&json!("sleep 3600000"), &json!(false)));
    let beginning = execs[1]["code"].as_str().unwrap();
    assert!(long.starts_with(beginning) && (255..=256).contains(&beginning.len()), "{beginning}");
    assert!(execs[0]["started_at_ms"].as_u64() >= execs[0]["requested_at_ms"].as_u64());
    assert_eq!(execs[1]["started_at_ms"], Value::Null);
    host.cancel(&id, &first).await;
    stream.rest().await;
    until("none is left", async || host.execs(&id).await.is_empty()).await;
}

#[tokio::test]
async fn an_execution_that_waited_is_listed_as_running_when_it_runs() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (first, _first) = host.start_call(&id, &json!({"code": "sleep 3600000"})).await;
    let (_, _second) = host.start_call(&id, &json!({"code": "sleep 3600000"})).await;
    host.cancel(&id, &first).await;
    until("the second runs alone", async || states(&host.execs(&id).await) == ["running"]).await;
}

#[tokio::test]
async fn a_cancelled_execution_ends_with_130_and_its_reason() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (running, stream) = host.start_call(&id, &json!({"code": "sleep 3600000"})).await;
    for _ in 0..2 {
        assert_eq!(host.cancel(&id, &running).await, StatusCode::NO_CONTENT);
    }
    let text = stream.rest_bytes().await;
    assert_eq!(events(&text), [stderr("the execution was cancelled"), exit(130)]);
    assert_eq!(last_event(&text)["reason"], "cancelled");
    assert_eq!(host.cancel(&id, &running).await, StatusCode::NO_CONTENT);
    assert_eq!(host.exec(&id, "print next").await, [stdout("next"), exit(0)]);
}

#[tokio::test]
async fn to_cancel_what_is_no_execution_is_no_error_but_the_sandbox_must_exist() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let unknown = podflare_api::id::ExecId::random();
    assert_eq!(host.cancel(&id, unknown.as_str()).await, StatusCode::NO_CONTENT);
    assert_eq!(host.cancel(&id, "nonsense").await, StatusCode::NO_CONTENT);
    host.delete(&id).await;
    assert_eq!(host.cancel(&id, unknown.as_str()).await, StatusCode::NOT_FOUND);
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}/execs")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_takes_too_long_ends_with_124_and_its_reason() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let body = json!({"code": "print begun\nsleep 3600000", "timeout_ms": 1500});
    let (_, stream) = host.start_call(&id, &body).await;
    let text = stream.rest_bytes().await;
    let told = stderr("the execution was cancelled: its timeout_ms of 1500 was over");
    assert_eq!(events(&text), [stdout("begun"), told, exit(124)]);
    assert_eq!(last_event(&text)["reason"], "timeout");
}

#[tokio::test]
async fn every_other_end_that_is_not_the_codes_own_has_its_reason() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (_, stream) = host.start_call(&id, &json!({"code": "kill 9"})).await;
    assert_eq!(last_event(&stream.rest_bytes().await)["reason"], "killed");
    let (_, stream) = host.start_call(&id, &json!({"code": "sleep 3600000"})).await;
    host.delete(&id).await;
    assert_eq!(last_event(&stream.rest_bytes().await)["reason"], "sandbox_ended");
}

#[tokio::test]
async fn an_execution_ends_with_its_client_only_if_that_was_asked_for() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let body = json!({"code": "sleep 3600000", "cancel_on_disconnect": true});
    let (_, stream) = host.start_call(&id, &body).await;
    drop(stream);
    until("it is cancelled", async || host.execs(&id).await.is_empty()).await;
    let replay = host.get(&format!("/v1/sandboxes/{id}/replay")).await.body;
    assert_eq!(last_event(&replay)["reason"], "cancelled");

    let (exec, stream) = host.start_call(&id, &json!({"code": "sleep 3600000"})).await;
    drop(stream);
    let (_, _next) = host.start_call(&id, &json!({"code": "pass"})).await;
    assert_eq!(states(&host.execs(&id).await), ["running", "queued"]);
    host.cancel(&id, &exec).await;
    until("both are over", async || host.execs(&id).await.is_empty()).await;
}

#[tokio::test]
async fn a_fork_lists_the_python_code_that_goes_on_in_it_and_can_cancel_it() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (exec, _stream) =
        host.start_call(&id, &json!({"code": "sleep 3600000", "timeout_ms": 9_000_000})).await;
    until("it runs", async || states(&host.execs(&id).await) == ["running"]).await;
    let child = host.fork(&id, 1).await.remove(0);
    let execs = host.execs(&child).await;
    assert_eq!(states(&execs), ["running"]);
    assert_eq!((&execs[0]["inherited"], &execs[0]["code"]), (&json!(true), &json!("sleep 3600000")));
    assert_eq!(execs[0]["timeout_ms"], 9_000_000);
    let inherited = execs[0]["id"].as_str().unwrap();
    assert_ne!(inherited, exec);
    host.cancel(&child, inherited).await;
    until("it is over", async || host.execs(&child).await.is_empty()).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{child}/replay")).await.body, "");
    assert_eq!(states(&host.execs(&id).await), ["running"], "the source's goes on");
}

#[tokio::test]
async fn a_fork_of_an_idle_sandbox_lists_nothing() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.exec(&id, "print done").await;
    let child = host.fork(&id, 1).await.remove(0);
    assert_eq!(host.execs(&child).await, Vec::<Value>::new());
}
