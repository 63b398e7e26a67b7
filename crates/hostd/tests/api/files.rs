//! Files: streamed in and out, errors that tell a file from a sandbox, and what becomes of them in copies.

use crate::host::{Host, until};
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::stream;
use http_body_util::BodyExt;
use podflare_wire::files::OPERATIONS_MAX;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceExt;

/// Longer than any one buffer on the way.
fn long_text() -> String {
    "0123456789abcde\n".repeat(100_000)
}

/// A body that is sent as the test goes on.
fn body_to_come() -> (mpsc::UnboundedSender<Result<Bytes, std::io::Error>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let chunks =
        stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|chunk| (chunk, receiver)));
    (sender, Body::from_stream(chunks))
}

#[tokio::test]
async fn a_file_comes_back_as_it_went() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let content = long_text();
    let answer = host.put_file(&id, "new/folder/file&mode=0750", content.clone()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let entry = answer.json();
    assert_eq!(entry["path"], "/root/new/folder/file");
    assert_eq!((&entry["mode"], &entry["type"]), (&json!("0750"), &json!("file")));
    assert_eq!(entry["size_bytes"], content.len());
    let answer = host.get_file(&id, "/root/new/folder/file").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-length"], content.len().to_string());
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert_eq!(answer.headers["last-modified"], "Tue, 14 Nov 2023 22:13:20 GMT");
    assert!(answer.body == content);
    host.put_file(&id, "/root/new/folder/file", "").await;
    let answer = host.get_file(&id, "/root/new/folder/file").await;
    assert_eq!((answer.headers["content-length"].to_str().unwrap(), answer.body.as_str()), ("0", ""));
}

#[tokio::test]
async fn the_head_alone_tells_the_size() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.put_file(&id, "/root/file", "content").await;
    let path = format!("/v1/sandboxes/{id}/files?path=/root/file");
    let answer = host.send(Request::head(path).body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, ""));
    assert_eq!(answer.headers["content-length"], "7");
    assert!(answer.headers.contains_key("etag"));
}

#[tokio::test]
async fn a_part_of_a_file_may_be_asked_for() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.put_file(&id, "/root/file", "0123456789").await;
    let path = format!("/v1/sandboxes/{id}/files?path=/root/file");
    let part = async |range: &str| {
        let request = Request::get(&path).header("range", range).body(Body::empty()).unwrap();
        host.send(request).await
    };
    for (range, told, content) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=8-", "bytes 8-9/10", "89"),
        ("bytes=-1", "bytes 9-9/10", "9"),
    ] {
        let answer = part(range).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::PARTIAL_CONTENT, content), "{range}");
        assert_eq!(answer.headers["content-range"], told);
    }
    let answer = part("bytes=10-").await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.json()["code"], "ERANGE");
    let answer = part("bytes=1-2,4-5").await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "0123456789"));
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.put_file(&id, "/root/file", "old").await;
    for name in ["file", "new"] {
        let (sender, body) = body_to_come();
        sender.send(Ok(Bytes::from(long_text()))).unwrap();
        sender.send(Err(std::io::Error::other("the client has gone"))).unwrap();
        let answer = host.put_file(&id, &format!("/root/{name}"), body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().contains("the client has gone"), "{}", answer.body);
    }
    assert_eq!(host.get_file(&id, "/root/file").await.body, "old");
    assert_eq!(host.get_file(&id, "/root/new").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stands_still_is_given_up() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (sender, body) = body_to_come();
    sender.send(Ok(Bytes::from_static(b"so far"))).unwrap();
    let answer = host.put_file(&id, "/root/file", body).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT, "{}", answer.body);
    assert_eq!(host.get_file(&id, "/root/file").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_upload_under_way_in_the_source_of_a_fork_goes_on_there_alone() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.put_file(&id, "/root/file", "old").await;
    let (sender, body) = body_to_come();
    sender.send(Ok(Bytes::from_static(b"ne"))).unwrap();
    let router = host.router();
    let request = Request::put(format!("/v1/sandboxes/{id}/files?path=/root/file")).body(body).unwrap();
    let upload = tokio::spawn(async move { router.oneshot(request).await.unwrap().status() });
    // The body has been taken when its channel is empty.
    until("the upload is under way", async || host.app.activity.now().executions == 1).await;
    let child = host.fork(&id, 1).await.remove(0);
    sender.send(Ok(Bytes::from_static(b"w"))).unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap(), StatusCode::OK);
    assert_eq!(host.get_file(&id, "/root/file").await.body, "new");
    assert_eq!(host.get_file(&child, "/root/file").await.body, "old");
}

#[tokio::test]
async fn a_missing_file_differs_from_a_missing_sandbox() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let answer = host.get_file(&id, "/root/missing").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error(), "/root/missing: No such file or directory");
    assert_eq!(answer.json()["code"], "ENOENT");
    host.delete(&id).await;
    let answer = host.get_file(&id, "/root/missing").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().starts_with("sandbox not found"), "{}", answer.body);
    assert!(answer.json().get("code").is_none());
}

#[tokio::test]
async fn a_full_disk_is_told_to_one_who_is_still_sending() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let answer = host.put_file(&id, "/full/file", long_text()).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(answer.json()["code"], "ENOSPC");
    assert_eq!(answer.error(), "/full/file: No space left on device");
}

#[tokio::test]
async fn a_refusal_is_told_also_to_one_who_has_sent_all() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.post(&format!("/v1/sandboxes/{id}/files/mkdir?path=/root/folder"), &json!({})).await;
    for content in ["", "content"] {
        let answer = host.put_file(&id, "/root/folder", content).await;
        assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::CONFLICT, &json!("EISDIR")));
    }
}

#[tokio::test]
async fn what_a_query_lacks_is_told() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    for (query, told) in [
        ("", "?path="),
        ("?path=", "path is empty"),
        ("?path=/a%00b", "holds a NUL"),
        ("/list?path=/root&depth=0", "depth is a whole number"),
        ("/watch?path=/root&recursive=perhaps", "recursive is true or false"),
    ] {
        let answer = host.get(&format!("{files}{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.error().contains(told), "{query}: {}", answer.body);
    }
    let answer = host.put_file(&id, "/root/file&mode=999", "").await;
    assert!(answer.error().contains("octal"), "{}", answer.body);
}

#[tokio::test]
async fn the_tree_is_made_listed_moved_and_removed() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let answer = host.post(&format!("{files}/mkdir?path=/srv/a/b&mode=700"), &json!({})).await;
    assert_eq!((answer.status, &answer.json()["mode"]), (StatusCode::OK, &json!("0700")));
    host.put_file(&id, "/srv/a/%FFile", "x").await;
    let answer = host.post(&format!("{files}/move?from=/srv/a/b&to=/srv/c"), &json!({})).await;
    assert_eq!((answer.status, &answer.json()["path"]), (StatusCode::OK, &json!("/srv/c")));
    let listing = host.get(&format!("{files}/list?path=/srv&depth=2")).await;
    assert_eq!(listing.headers["content-type"], "application/json");
    let listing = listing.json();
    let paths: Vec<_> = listing["entries"].as_array().unwrap().iter().map(|entry| &entry["path"]).collect();
    assert_eq!(paths, ["/srv/a", "/srv/a/\u{fffd}ile", "/srv/c"]);
    assert_eq!(listing["entries"][1]["encoded_path"], "/srv/a/%FFile");
    assert_eq!(listing["truncated"], false);
    let near = host.get(&format!("{files}/list?path=/srv")).await.json();
    assert_eq!(near["entries"].as_array().unwrap().len(), 2);
    let remove = async |query: &str| host.delete_at(&format!("{files}?path={query}")).await;
    let answer = remove("/srv/a").await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::CONFLICT, &json!("ENOTEMPTY")));
    assert_eq!(remove("/srv/a&recursive=true").await.status, StatusCode::NO_CONTENT);
    assert_eq!(remove("/srv/a&recursive=true").await.status, StatusCode::NOT_FOUND);
    let answer = host.get(&format!("{files}/stat?path=/srv")).await;
    assert_eq!((&answer.json()["type"], &answer.json()["name"]), (&json!("directory"), &json!("srv")));
}

#[tokio::test]
async fn a_listing_longer_than_one_message_is_whole() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    for number in 0..250 {
        host.put_file(&id, &format!("/many/{number:03}"), "").await;
    }
    let listing = host.get(&format!("/v1/sandboxes/{id}/files/list?path=/many")).await.json();
    let names: Vec<_> =
        listing["entries"].as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, (0..250).map(|number| json!(format!("{number:03}"))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_watch_tells_what_happens_and_that_it_lives() {
    let host = Host::start(&["--heartbeat", "1"]).await;
    let id = host.create().await;
    host.put_file(&id, "/srv/before", "").await;
    let path = format!("/v1/sandboxes/{id}/files/watch?path=/srv&recursive=1");
    let (status, headers, mut stream) = host.open(&path).await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/x-ndjson"));
    assert!(headers["server-timing"].to_str().unwrap().contains("guest;dur="));
    assert_eq!(stream.next_bytes().await.unwrap(), "\n", "a heartbeat");
    host.put_file(&id, "/srv/file\u{2028}%FF".replace('\u{2028}', "%E2%80%A8").as_str(), "").await;
    let mut line = Bytes::new();
    while line.iter().all(u8::is_ascii_whitespace) {
        line = stream.next_bytes().await.unwrap();
    }
    let text = std::str::from_utf8(&line).unwrap();
    assert!(!text.contains('\u{2028}'), "{text}");
    let event: serde_json::Value = serde_json::from_str(text).unwrap();
    let expected = json!({
        "type": "create",
        "path": "/srv/file\u{2028}\u{fffd}",
        "encoded_path": "/srv/file%E2%80%A8%FF",
        "is_directory": false,
        "cookie": 0,
    });
    assert_eq!(event, expected);
    let answer = host.get(&format!("/v1/sandboxes/{id}/files/watch?path=/missing")).await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::NOT_FOUND, &json!("ENOENT")));
}

#[tokio::test]
async fn only_so_many_operations_are_under_way_at_once() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.put_file(&id, "/root/file", "content").await;
    let mut watches = Vec::new();
    for _ in 0..OPERATIONS_MAX {
        watches.push(host.open(&format!("/v1/sandboxes/{id}/files/watch?path=/root")).await);
    }
    let answer = host.get_file(&id, "/root/file").await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", answer.body);
    watches.pop();
    assert_eq!(host.get_file(&id, "/root/file").await.body, "content");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_keeps_a_sandbox_from_idling_and_a_watch_does_not() {
    let host = Host::start(&["--idle-timeout", "60"]).await;
    let (busy, watched) = (host.create().await, host.create().await);
    host.put_file(&watched, "/root/file", "").await;
    let download = host.open(&format!("/v1/sandboxes/{busy}/files?path=/slow")).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    let _watch = host.open(&format!("/v1/sandboxes/{watched}/files/watch?path=/root")).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    for id in [&busy, &watched] {
        assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.status, StatusCode::OK);
    }
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{busy}")).await.status, StatusCode::OK);
    assert_eq!(host.get(&format!("/v1/sandboxes/{watched}")).await.status, StatusCode::NOT_FOUND);
    drop(download);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{busy}")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_tells_something_keeps_its_sandbox_from_idling() {
    let host = Host::start(&["--idle-timeout", "60", "--heartbeat", "3600"]).await;
    let id = host.create().await;
    let watch = host.open(&format!("/v1/sandboxes/{id}/files/watch?path=/busy")).await;
    let told = tokio::spawn(watch.2.rest_bytes());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.status, StatusCode::OK);
    told.abort();
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{id}")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_guest_that_tells_nothing_for_ever_is_not_listened_to() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let answer = host.get(&format!("/v1/sandboxes/{id}/files/list?path=/silent")).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.error().contains("does not keep to the protocol"), "{}", answer.body);
    let watch = Request::get(format!("/v1/sandboxes/{id}/files/watch?path=/silent"));
    let answer = host.router().oneshot(watch.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let told = tokio::time::timeout(Duration::from_secs(30), answer.into_body().collect()).await;
    assert!(told.unwrap().is_err(), "the stream breaks off");
}

#[tokio::test]
async fn a_sandbox_that_ends_under_an_upload_says_so() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let (sender, body) = body_to_come();
    sender.send(Ok(Bytes::from_static(b"so far"))).unwrap();
    let router = host.router();
    let request = Request::put(format!("/v1/sandboxes/{id}/files?path=/root/file")).body(body).unwrap();
    let upload = tokio::spawn(async move { router.oneshot(request).await.unwrap().status() });
    until("the upload is under way", async || host.app.activity.now().executions == 1).await;
    host.delete(&id).await;
    assert_eq!(upload.await.unwrap(), StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stands_still_is_not_waited_for_for_ever() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.stall_after_renewals(1);
    let id = host.create().await;
    let answer = host.get_file(&id, "/root/file").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{}", answer.body);
    assert!(answer.error().contains("has not answered within 120 s"), "{}", answer.body);
}
