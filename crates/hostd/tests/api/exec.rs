//! Running code: events, heartbeats, slow and absent readers, history.

use crate::host::{Host, events, exit, json_request, stderr, stdout, until};
use axum::http::StatusCode;
use podflare_api::exec::ExecEventKind;
use serde_json::json;
use tokio::time::Instant;

#[tokio::test]
async fn an_execution_streams_lines_and_ends_with_its_exit_code() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let events = host.exec(&id, "print one\nerror bad\npartial two\nexit 3").await;
    assert_eq!(events, [stdout("one"), stderr("bad"), stdout("two"), exit(3)]);
}

#[tokio::test]
async fn the_published_protocols_four_keys_are_on_every_event() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let text = host.start_exec(&id, "print 42").await.rest_bytes().await;
    let event: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["data"], &event["seq"]), (&json!("stdout"), &json!("42"), &json!(0)));
    assert!(event["ts"].as_u64().unwrap() > 1_700_000_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_silent_execution_shows_signs_of_life() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let begun = Instant::now();
    let mut stream = host.start_exec(&id, "sleep 25000\nprint done").await;
    for beat in 1..=2 {
        assert_eq!(stream.next_bytes().await.unwrap(), "\n");
        assert_eq!(begun.elapsed().as_secs(), beat * 10);
    }
    assert_eq!(stream.rest().await, [stdout("done"), exit(0)]);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_waits_for_another_shows_signs_of_life() {
    let host = Host::start(&["--heartbeat", "1"]).await;
    let id = host.create().await;
    let first = host.start_exec(&id, "sleep 2500\nset order first").await;
    let mut second = host.start_exec(&id, "get order").await;
    assert_eq!(second.next_bytes().await.unwrap(), "\n");
    assert_eq!(second.rest().await, [stdout("first"), exit(0)]);
    assert_eq!(first.rest().await, [exit(0)]);
}

#[tokio::test]
async fn an_execution_outlives_its_reader_and_is_found_in_the_history() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let stream = host.start_exec(&id, "sleep 20\nflood 3000000\nset done yes").await;
    drop(stream);
    let path = format!("/v1/sandboxes/{id}/replay");
    until("it has ended", async || host.get(&path).await.body.contains("exit")).await;
    assert_eq!(host.text(&id, "get done").await, "yes");
    let replay = host.get(&path).await;
    assert_eq!(replay.headers["content-type"], "application/x-ndjson");
    assert_eq!(replay.body.lines().count(), 1000);
    let last: Vec<&str> = replay.body.lines().rev().take(3).collect();
    assert!(last[0].contains(r#""type":"exit","data":0,"seq":1"#), "{last:?}");
    assert!(last[1].contains(r#""data":"yes","seq":0"#), "{last:?}");
    assert!(last[2].contains(r#""type":"exit""#), "{last:?}");
}

#[tokio::test]
async fn a_slow_reader_stops_its_own_execution_only_and_loses_nothing() {
    let host = Host::start(&[]).await;
    let (slow, quick) = (host.create().await, host.create().await);
    const LEN: usize = 8_000_000;
    let mut stream = host.start_exec(&slow, &format!("flood {LEN}\nset done yes")).await;
    let first = stream.next_bytes().await.unwrap();
    assert_eq!(host.text(&quick, "print still here").await, "still here");

    let text = String::from_utf8(first.to_vec()).unwrap() + &stream.rest_bytes().await;
    let events = events(&text);
    let lines_len: usize = events
        .iter()
        .map(|kind| match kind {
            ExecEventKind::Stdout(line) => line.len() + 1,
            ExecEventKind::Stderr(_) | ExecEventKind::Exit(_) => 0,
        })
        .sum();
    assert_eq!(lines_len, LEN);
    assert_eq!(events.last(), Some(&exit(0)));
    assert_eq!(host.text(&slow, "get done").await, "yes");
}

#[tokio::test]
async fn an_execution_behind_one_with_a_slow_reader_runs() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let slow = host.start_exec(&id, "flood 3000000\nset flooded yes").await;
    assert_eq!(host.text(&id, "get flooded").await, "yes");
    let events = slow.rest().await;
    assert_eq!(events.len(), 3_000_000 / 16 + 1);
    assert_eq!(events.last(), Some(&exit(0)));
}

#[tokio::test]
async fn a_very_long_line_is_one_event() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let line = "A".repeat(9_000_000);
    let answer = host.exec(&id, &format!("print {line}")).await;
    assert_eq!(answer.len(), 2);
    assert_eq!(answer[0], stdout(&line));
}

#[tokio::test]
async fn unicodes_line_ends_are_escaped_in_the_stream_and_the_history() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let line = "a\u{85}b\u{2028}c\u{2029}d";
    let stream = host.start_exec(&id, &format!("print {line}")).await.rest_bytes().await;
    let replay = host.get(&format!("/v1/sandboxes/{id}/replay")).await.body;
    for text in [stream, replay] {
        assert!(text.contains("a\\u0085b\\u2028c\\u2029d"), "{text:?}");
        assert_eq!(events(&text), [stdout(line), exit(0)]);
    }
}

#[tokio::test]
async fn code_over_the_limit_and_languages_unheard_of_are_refused() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/exec");
    let long = "x".repeat(podflare_wire::limits::CODE_LEN_MAX + 1);
    assert_eq!(host.post(&path, &json!({"code": long})).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let answer = host.post(&path, &json!({"code": "", "language": "cobol"})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("cobol"), "{}", answer.body);
    assert_eq!(host.post(&path, &json!({})).await.status, StatusCode::BAD_REQUEST);
    let bash = host.post(&path, &json!({"code": "print hi", "language": "bash"})).await;
    assert_eq!(events(&bash.body), [stdout("hi"), exit(0)]);
}

#[tokio::test]
async fn too_many_waiting_executions_are_refused() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let mut waiting = Vec::new();
    for _ in 0..podflare_wire::limits::EXECS_MAX {
        waiting.push(host.start_exec(&id, "sleep 3600000").await);
    }
    let path = format!("/v1/sandboxes/{id}/exec");
    assert_eq!(host.post(&path, &json!({"code": "pass"})).await.status, StatusCode::TOO_MANY_REQUESTS);
    host.delete(&id).await;
    for stream in waiting {
        assert_eq!(stream.rest().await.last(), Some(&exit(137)));
    }
}

#[tokio::test]
async fn a_killed_interpreter_is_explained() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let events = host.exec(&id, "kill 9").await;
    let told = "the Python REPL was killed by signal 9 and has been restarted; its variables are lost";
    assert_eq!(events, [stderr(told), exit(137)]);
}

#[tokio::test]
async fn a_request_whose_sandbox_ends_meanwhile_gets_an_answer() {
    let host = Host::start(&[]).await;
    for _ in 0..50 {
        let id = host.create().await;
        let request = json_request(&format!("/v1/sandboxes/{id}/exec"), &json!({"code": "pass"}));
        let (answer, _) = tokio::join!(host.send(request), host.delete(&id));
        match answer.status {
            StatusCode::OK => assert!(matches!(events(&answer.body).last(), Some(ExecEventKind::Exit(_)))),
            status => assert_eq!(status, StatusCode::NOT_FOUND),
        }
    }
    host.pool_is_full().await;
    until("only the template and the pool are left", async || {
        host.vmm.alive() as usize == 1 + host.pool().counters().levels.ready
    })
    .await;
}

#[tokio::test]
async fn an_execution_counts_for_as_long_as_its_events_are_not_read() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let mut unread = Vec::new();
    for _ in 0..podflare_wire::limits::EXECS_MAX {
        unread.push(host.start_exec(&id, "print done").await);
    }
    let path = format!("/v1/sandboxes/{id}/replay");
    until("all have ended", async || {
        host.get(&path).await.body.matches("exit").count() == podflare_wire::limits::EXECS_MAX
    })
    .await;
    let path = format!("/v1/sandboxes/{id}/exec");
    assert_eq!(host.post(&path, &json!({"code": "pass"})).await.status, StatusCode::TOO_MANY_REQUESTS);
    unread.pop().unwrap().rest().await;
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}
