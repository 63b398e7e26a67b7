//! Terminals: their streams, what is typed, those who return, and what a fork has of them.

use crate::host::{Answer, Host, Stream, json_request, until};
use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use podflare_wire::limits::TERMINAL_CONNECTIONS_MAX;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt;

async fn open(host: &Host, request: axum::http::Request<axum::body::Body>) -> Stream {
    let response = host.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    Stream::of(response.into_body())
}

/// A new terminal's name, and its stream.
async fn create(host: &Host, id: &str, body: &Value) -> (String, Stream) {
    let mut stream = open(host, json_request(&format!("/v1/sandboxes/{id}/pty"), body)).await;
    let ready = next(&mut stream).await;
    assert_eq!(ready["type"], "pty_ready");
    (ready["session_id"].as_str().unwrap().to_owned(), stream)
}

async fn attach(host: &Host, id: &str, pty: &str) -> Stream {
    let request = axum::http::Request::get(format!("/v1/sandboxes/{id}/pty/{pty}/attach"));
    open(host, request.body(axum::body::Body::empty()).unwrap()).await
}

async fn next(stream: &mut Stream) -> Value {
    loop {
        let bytes = stream.next_bytes().await.expect("the stream has ended");
        if &bytes[..] != b"\n" {
            assert!(bytes.ends_with(b"\n"));
            return serde_json::from_slice(&bytes).unwrap();
        }
    }
}

fn text(event: &Value) -> String {
    String::from_utf8(BASE64_STANDARD.decode(event["data_b64"].as_str().unwrap()).unwrap()).unwrap()
}

async fn ask(host: &Host, id: &str, pty: &str, what: &str, body: &Value) -> Answer {
    host.post(&format!("/v1/sandboxes/{id}/pty/{pty}/{what}"), body).await
}

async fn type_in(host: &Host, id: &str, pty: &str, text: &str) {
    let answer = ask(host, id, pty, "input", &json!({"data_b64": BASE64_STANDARD.encode(text)})).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.body);
}

#[tokio::test]
async fn a_terminal_streams_the_published_protocols_events() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let body = json!({"shellCmd": "bash", "cols": 120, "rows": 40, "env": [["A", "b"]], "cwd": "/srv"});
    let (pty, mut stream) = create(&host, &id, &body).await;
    let event = next(&mut stream).await;
    assert_eq!(
        (&event["type"], &event["seq"], text(&event)),
        (&json!("pty_data"), &json!(0), "A=b\r\n".into())
    );
    type_in(&host, &id, &pty, "size").await;
    let event = next(&mut stream).await;
    assert_eq!((&event["seq"], text(&event)), (&json!(5), "size 120x40".into()));
    let answer = ask(&host, &id, &pty, "resize", &json!({"cols": 200, "rows": 50})).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    type_in(&host, &id, &pty, "size").await;
    assert_eq!(text(&next(&mut stream).await), "size 200x50");
    type_in(&host, &id, &pty, "exit 7").await;
    assert_eq!(text(&next(&mut stream).await), "exit 7");
    assert_eq!(next(&mut stream).await, json!({"type": "pty_exit", "data": 7}));
    assert!(stream.next_bytes().await.is_none());
}

#[tokio::test]
async fn a_program_that_does_not_start_is_told_in_the_stream() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let mut stream =
        open(&host, json_request(&format!("/v1/sandboxes/{id}/pty"), &json!({"argv": ["broken"]}))).await;
    assert_eq!(next(&mut stream).await, json!({"type": "pty_error", "message": "it is broken"}));
    assert!(stream.next_bytes().await.is_none());
}

#[tokio::test]
async fn many_attach_and_return_and_see_all_of_it() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    drop(stream);
    type_in(&host, &id, &pty, "one").await;
    let mut two = [attach(&host, &id, &pty).await, attach(&host, &id, &pty).await];
    for stream in &mut two {
        assert_eq!(text(&next(stream).await), "one");
    }
    let kill = host.post(&format!("/v1/sandboxes/{id}/pty/{pty}/kill"), &json!({})).await;
    assert_eq!(kill.status, StatusCode::NO_CONTENT);
    for stream in &mut two {
        assert_eq!(next(stream).await, json!({"type": "pty_exit", "data": 137}));
    }
    let list = host.get(&format!("/v1/sandboxes/{id}/pty")).await.json();
    assert_eq!(list, json!([{"pty_id": pty, "cmd_label": "bash", "created_at_ms": 1, "exit_code": 137}]));
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_output_up_to_its_time() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, _stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let begun = Instant::now();
    let nothing =
        ask(&host, &id, &pty, "read", &json!({"since_seq": 0, "max_bytes": 9, "timeout_ms": 99_000})).await;
    assert_eq!(begun.elapsed().as_secs(), 30, "no longer than clients wait");
    let expected = json!({"data_b64": "", "next_seq": 0, "exit_code": null, "truncated": false});
    assert_eq!(nothing.json(), expected);
    type_in(&host, &id, &pty, "exit 5").await;
    let part = ask(&host, &id, &pty, "read", &json!({"since_seq": 0, "max_bytes": 4})).await.json();
    assert_eq!(
        (text(&part), &part["next_seq"], &part["exit_code"]),
        ("exit".into(), &json!(4), &Value::Null)
    );
    let rest = ask(&host, &id, &pty, "read", &json!({"since_seq": 4})).await.json();
    assert_eq!((text(&rest), &rest["next_seq"], &rest["exit_code"]), (" 5".into(), &json!(6), &json!(5)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_terminal_shows_signs_of_life() {
    let host = Host::start(&["--heartbeat", "1"]).await;
    let id = host.create().await;
    let (pty, mut stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    assert_eq!(stream.next_bytes().await.unwrap(), "\n");
    let mut attached = attach(&host, &id, &pty).await;
    assert_eq!(attached.next_bytes().await.unwrap(), "\n");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/pty");
    for (body, word) in [
        (json!({}), "shellCmd"),
        (json!({"argv": []}), "argv"),
        (json!({"shellCmd": "a", "argv": ["a"]}), "argv"),
        (json!({"shellCmd": "a", "cols": 0}), "cols"),
        (json!({"shellCmd": "a", "rows": 1001}), "rows"),
        (json!({"shellCmd": "a", "cwd": "x"}), "cwd"),
        (json!({"shellCmd": "a", "env": [["A=", "x"]]}), "\"A=\""),
    ] {
        let answer = host.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.error().contains(word), "{}", answer.body);
    }
    let (pty, _stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let long = BASE64_STANDARD.encode(vec![b'x'; podflare_wire::limits::TERMINAL_INPUT_LEN_MAX + 1]);
    for (what, body) in [
        ("input", json!({"data_b64": "%"})),
        ("input", json!({"data_b64": long})),
        ("resize", json!({"cols": 0, "rows": 1})),
        ("read", json!({"max_bytes": 0})),
        ("read", json!({"since_seq": 1})),
    ] {
        assert_eq!(ask(&host, &id, &pty, what, &body).await.status, StatusCode::BAD_REQUEST, "{what}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let none = podflare_api::id::PtyId::random();
    for pty in [none.as_str(), "nonsense"] {
        for (what, body) in [
            ("input", json!({"data_b64": ""})),
            ("resize", json!({"cols": 1, "rows": 1})),
            ("read", json!({})),
            ("kill", json!({})),
        ] {
            assert_eq!(ask(&host, &id, pty, what, &body).await.status, StatusCode::NOT_FOUND, "{what}");
        }
        let answer = host.get(&format!("/v1/sandboxes/{id}/pty/{pty}/attach")).await;
        assert_eq!((answer.status, answer.error()), (StatusCode::NOT_FOUND, "terminal not found".into()));
    }
    host.delete(&id).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}/pty")).await.status, StatusCode::NOT_FOUND);
    let answer = host.post(&format!("/v1/sandboxes/{id}/pty"), &json!({"shellCmd": "a"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_fork_has_the_terminal_and_its_history_and_goes_its_own_way() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, mut stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    type_in(&host, &id, &pty, "before").await;
    assert_eq!(text(&next(&mut stream).await), "before");
    let child = host.fork(&id, 1).await.remove(0);
    type_in(&host, &child, &pty, " in the child").await;
    type_in(&host, &id, &pty, " in the parent").await;
    assert_eq!(text(&next(&mut stream).await), " in the parent");
    assert_eq!(text(&next(&mut attach(&host, &child, &pty).await).await), "before in the child");
}

#[tokio::test]
async fn a_restore_is_told_at_the_terminals_and_brings_back_those_of_the_checkpoint() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, mut stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    type_in(&host, &id, &pty, "before").await;
    let checkpoint = host.checkpoint(&id).await;
    type_in(&host, &id, &pty, "after").await;
    assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    let mut printed = String::new();
    let last = loop {
        let event = next(&mut stream).await;
        if event["type"] != "pty_data" {
            break event;
        }
        printed += &text(&event);
    };
    assert_eq!((printed.as_str(), &last["type"]), ("beforeafter", &json!("pty_error")));
    assert_eq!(text(&next(&mut attach(&host, &id, &pty).await).await), "before");
}

#[tokio::test]
async fn the_end_of_a_sandbox_is_told_at_its_terminals() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (_, mut stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    host.delete(&id).await;
    let told = json!({"type": "pty_error", "message": "the sandbox has ended: it was deleted"});
    assert_eq!(next(&mut stream).await, told);
    assert!(stream.next_bytes().await.is_none());
}

#[tokio::test]
async fn who_waits_at_a_terminal_of_a_sandbox_that_ends_is_told_that_it_is_not_there() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, _stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let body = json!({"since_seq": 0});
    let read = ask(&host, &id, &pty, "read", &body);
    let (answer, _) = tokio::join!(read, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        host.delete(&id).await
    });
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.body);
    assert!(answer.error().contains("it was deleted"));
}

#[tokio::test]
async fn who_waits_at_a_terminal_of_a_sandbox_that_is_restored_waits_on() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, _stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let checkpoint = host.checkpoint(&id).await;
    let body = json!({"since_seq": 0});
    let read = ask(&host, &id, &pty, "read", &body);
    let (answer, ()) = tokio::join!(read, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
        type_in(&host, &id, &pty, "again").await;
    });
    assert_eq!(answer.json()["next_seq"], 5, "{}", answer.body);
}

#[tokio::test]
async fn a_terminal_that_is_opened_while_its_sandbox_is_restored_is_one_of_the_new_machine() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let checkpoint = host.checkpoint(&id).await;
    let (_, _stream) = create(&host, &id, &json!({"shellCmd": "stall"})).await;
    let body = json!({"shellCmd": "bash"});
    let (opened, ()) = tokio::join!(create(&host, &id, &body), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    });
    let list = host.get(&format!("/v1/sandboxes/{id}/pty")).await.json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["pty_id"]), (1, &json!(opened.0)));
}

#[tokio::test]
async fn whoever_opens_a_terminal_in_a_sandbox_that_ends_is_told_that_it_is_not_there() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (_, _stream) = create(&host, &id, &json!({"shellCmd": "stall"})).await;
    let path = format!("/v1/sandboxes/{id}/pty");
    let body = json!({"shellCmd": "bash"});
    let (answer, _) = tokio::join!(host.post(&path, &body), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        host.delete(&id).await
    });
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.body);
    assert!(answer.error().contains("it was deleted"));
}

#[tokio::test]
async fn what_a_program_does_not_read_is_a_conflict_and_no_failure_of_the_machine() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, _stream) = create(&host, &id, &json!({"shellCmd": "deaf"})).await;
    let answer = ask(&host, &id, &pty, "input", &json!({"data_b64": ""})).await;
    assert_eq!((answer.status, answer.error()), (StatusCode::CONFLICT, "it reads nothing".into()));
}

#[tokio::test]
async fn a_host_has_no_more_clients_at_terminals_than_it_may_and_serves_what_is_typed_all_the_same() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let places = &host.app.terminal_clients;
    let others = places.try_acquire_many(u32::try_from(places.available_permits()).unwrap()).unwrap();
    let path = format!("/v1/sandboxes/{id}/pty");
    for answer in [
        host.post(&path, &json!({"shellCmd": "bash"})).await,
        host.get(&format!("{path}/{pty}/attach")).await,
        ask(&host, &id, &pty, "read", &json!({"since_seq": 0})).await,
    ] {
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.error().starts_with("1024 clients are at terminals of this host already"));
    }
    type_in(&host, &id, &pty, "x").await;
    let read = ask(&host, &id, &pty, "read", &json!({"since_seq": 0, "timeout_ms": 0})).await;
    assert_eq!(text(&read.json()), "x");
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    drop(stream);
    until("there is a place again", async || places.available_permits() == 1).await;
    let (_, _stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    drop(others);
}

#[tokio::test]
async fn a_sandbox_has_no_more_clients_at_its_terminals_than_it_may() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (pty, stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    let mut streams = vec![stream];
    for _ in 1..TERMINAL_CONNECTIONS_MAX {
        streams.push(attach(&host, &id, &pty).await);
    }
    let answer = host.get(&format!("/v1/sandboxes/{id}/pty")).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.error(), "64 clients are at terminals of this sandbox already");
    streams.pop();
    until("there is a place again", async || {
        host.get(&format!("/v1/sandboxes/{id}/pty")).await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn somebody_at_a_terminal_keeps_a_sandbox_from_idling_and_what_is_done_there_counts() {
    let host = Host::start(&[]).await;
    let id = host.create_with(&json!({"idle_timeout_seconds": 60})).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sandboxes/{id}");
    let (pty, stream) = create(&host, &id, &json!({"shellCmd": "bash"})).await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    drop(stream);
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_secs(40)).await;
        type_in(&host, &id, &pty, "x").await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(50)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    until("it idles", async || host.get(&path).await.status == StatusCode::NOT_FOUND).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stands_still_is_said_to_and_given_up_while_somebody_is_at_its_terminal() {
    let host = Host::start(&["--heartbeat", "1"]).await;
    let id = host.create().await;
    tokio::time::sleep(std::time::Duration::from_secs(200)).await;
    let (_, mut stream) = create(&host, &id, &json!({"shellCmd": "stall"})).await;
    let path = format!("/v1/sandboxes/{id}/pty");
    let mut second = open(&host, json_request(&path, &json!({"shellCmd": "bash"}))).await;
    let message = "The sandbox's guest has not answered in time";
    assert_eq!(next(&mut second).await, json!({"type": "pty_error", "message": message}));
    assert_eq!(host.get(&path).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(next(&mut stream).await["type"], "pty_error");
    let answer = host.get(&path).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().contains("not answered for 60 s"), "{}", answer.body);
}
