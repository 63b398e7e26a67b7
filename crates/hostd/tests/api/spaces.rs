//! Spaces: what is frozen comes back as it was, once or as often as wanted, whatever becomes of the host.

use crate::host::{Answer, Host, exit, until};
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::slice;
use std::time::Duration;

const UNKNOWN: &str = "spc_00000000000000000000000000000000";

async fn freeze(host: &Host, sandbox: &str) -> Answer {
    host.post(&format!("/v1/sandboxes/{sandbox}/freeze"), &json!({})).await
}

/// Freezes a sandbox and gives the Space's id.
async fn frozen(host: &Host, sandbox: &str) -> String {
    let answer = freeze(host, sandbox).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn resume(host: &Host, space: &str, body: &Value) -> Answer {
    host.post(&format!("/v1/spaces/{space}/resume"), body).await
}

/// Resumes a Space and gives the sandbox's id.
async fn resumed(host: &Host, space: &str, body: &Value) -> String {
    let answer = resume(host, space, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// A Space as one file.
pub(crate) async fn exported(host: &Host, space: &str) -> Bytes {
    let request = Request::get(format!("/v1/spaces/{space}/export")).body(Body::empty()).unwrap();
    let (status, archive) = host.send_for_bytes(request).await;
    assert_eq!(status, StatusCode::OK);
    archive
}

pub(crate) async fn import(host: &Host, archive: impl Into<Body>) -> Answer {
    host.send(Request::post("/v1/spaces/import").body(archive.into()).unwrap()).await
}

async fn spaces(host: &Host) -> Vec<String> {
    let list = host.get("/v1/spaces").await.json();
    let id = |view: &Value| view["id"].as_str().unwrap().to_owned();
    list["spaces"].as_array().unwrap().iter().map(id).collect()
}

/// The names in a folder; none if there is none.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A sandbox that holds something.
async fn sandbox_with(host: &Host, body: &Value, value: &str) -> String {
    let id = host.create_with(body).await["id"].as_str().unwrap().to_owned();
    host.exec(&id, &format!("set x {value}")).await;
    id
}

/// The only Space, as soon as there is one.
async fn only_space(host: &Host) -> String {
    until("there is a Space", async || !spaces(host).await.is_empty()).await;
    spaces(host).await.remove(0)
}

#[tokio::test]
async fn a_sandbox_that_is_frozen_goes_on_where_it_was() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let wanted = json!({"timeout_seconds": 500, "idle_timeout_seconds": 50, "egress": false});
    let sandbox = sandbox_with(&host, &wanted, "kept").await;
    let view = freeze(&host, &sandbox).await.json();
    let space = view["id"].as_str().unwrap().to_owned();
    assert_eq!(view["sandbox"], json!(sandbox));
    assert_eq!((&view["template"], &view["generation"]), (&json!("default"), &json!(1)));
    assert!(view["bytes"].as_u64().unwrap() > 0);
    assert_eq!(host.get(&format!("/v1/spaces/{space}")).await.json(), view);

    let gone = host.get(&format!("/v1/sandboxes/{sandbox}")).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert!(gone.error().contains(&format!("frozen as {space}")), "{}", gone.body);

    let answer = resume(&host, &space, &json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let created = answer.json();
    let resumed = created["id"].as_str().unwrap();
    assert_ne!(resumed, sandbox);
    assert_eq!(host.text(resumed, "get x").await, "kept");
    assert_eq!((&created["timeout_seconds"], &created["idle_timeout_seconds"]), (&json!(500), &json!(50)));
    assert_eq!((&created["egress"], &created["persistent"]), (&json!(false), &json!(false)));
    let view = host.get(&format!("/v1/sandboxes/{resumed}")).await.json();
    assert_eq!(view["generation"], json!(2));
    // A template, what the Space was laid over, and the sandbox.
    host.machines_are(3).await;
}

#[tokio::test]
async fn a_space_is_resumed_once() {
    let host = Host::start(&[]).await;
    let sandbox = sandbox_with(&host, &json!({}), "one").await;
    let space = frozen(&host, &sandbox).await;
    assert_eq!(spaces(&host).await, slice::from_ref(&space));
    let resumed = resumed(&host, &space, &json!({})).await;
    assert!(spaces(&host).await.is_empty());
    for answer in [resume(&host, &space, &json!({})).await, host.get(&format!("/v1/spaces/{space}")).await] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.error().contains("it has been resumed"), "{}", answer.body);
    }
    host.delete(&resumed).await;
    until("its folder is removed", async || names(&host.spaces_folder()).is_empty()).await;
    assert_eq!(resume(&host, &space, &json!({})).await.error(), "Space not found");
}

#[tokio::test]
async fn a_space_that_is_kept_is_resumed_by_many_at_once_and_again() {
    let host = Host::start(&[]).await;
    let (space, keep) =
        (frozen(&host, &sandbox_with(&host, &json!({}), "many").await).await, json!({"keep": true}));
    for _ in 0..2 {
        let ids = join_all((0..4).map(|_| resumed(&host, &space, &keep))).await;
        for id in &ids {
            assert_eq!(host.text(id, "get x").await, "many");
            host.exec(id, "set x its own").await;
            host.delete(id).await;
        }
    }
    assert_eq!(spaces(&host).await, slice::from_ref(&space));
    host.delete_at(&format!("/v1/spaces/{space}")).await;
    assert!(names(&host.spaces_folder()).is_empty());
}

#[tokio::test]
async fn several_who_resume_at_once_get_one_sandbox_in_all() {
    let host = Host::start(&[]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "one").await).await;
    let body = json!({});
    let answers = join_all((0..8).map(|_| resume(&host, &space, &body))).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(made, 1);
    assert!(answers.iter().all(|answer| matches!(answer.status, StatusCode::OK | StatusCode::NOT_FOUND)));
}

#[tokio::test]
async fn a_persistent_sandbox_that_idles_is_frozen_and_its_event_names_the_space() {
    let host = Host::start(&[]).await;
    let wanted = json!({"persistent": true, "idle_timeout_seconds": 1});
    let created = host.create_with(&wanted).await;
    assert_eq!(created["persistent"], json!(true));
    let sandbox = created["id"].as_str().unwrap();
    host.exec(sandbox, "set x idle").await;
    let space = only_space(&host).await;
    let is_told = async || {
        let events = host.get("/v1/events").await.json();
        events["events"].as_array().unwrap().iter().any(|event| {
            event["type"] == "sandbox.frozen"
                && event["space"] == json!(space)
                && event["sandbox"] == json!(sandbox)
        })
    };
    until("there is an event", is_told).await;
    let again = resumed(&host, &space, &json!({"persistent": true, "idle_timeout_seconds": 1})).await;
    assert_eq!(host.text(&again, "get x").await, "idle");
    // Into another Space; the first is gone with the sandbox that went on with it.
    let next = only_space(&host).await;
    assert_ne!(next, space);
    until("the first is removed", async || names(&host.spaces_folder()) == [next.clone()]).await;
}

#[tokio::test]
async fn a_persistent_sandbox_whose_lifetime_is_over_is_frozen_although_it_is_busy() {
    let host = Host::start(&[]).await;
    let wanted = json!({"persistent": true, "timeout_seconds": 1});
    let sandbox = sandbox_with(&host, &wanted, "old").await;
    let running = host.start_exec(&sandbox, "sleep 60000").await;
    let space = only_space(&host).await;
    let end = running.rest_bytes().await;
    assert!(end.contains(&format!("frozen as {space}")), "{end}");
    let again = resumed(&host, &space, &json!({"timeout_seconds": 600})).await;
    assert_eq!(host.text(&again, "get x").await, "old");
}

#[tokio::test]
async fn a_sandbox_that_is_used_while_it_idles_into_a_space_goes_on() {
    let host = Host::start(&[]).await;
    host.vmm.set_saving_time(Duration::from_millis(1500));
    let sandbox = sandbox_with(&host, &json!({"persistent": true, "idle_timeout_seconds": 1}), "used").await;
    until("it is being written", async || !names(&host.spaces_folder()).is_empty()).await;
    for _ in 0..20 {
        assert_eq!(host.text(&sandbox, "get x").await, "used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(spaces(&host).await.is_empty());
    only_space(&host).await;
    host.is_gone(&sandbox).await;
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_written_goes_on_and_nothing_is_left_of_the_attempt() {
    let host = Host::start(&[]).await;
    let sandbox = sandbox_with(&host, &json!({}), "alive").await;
    host.vmm.fill_disk_in_saves(1);
    let answer = freeze(&host, &sandbox).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{}", answer.body);
    assert!(answer.error().contains("goes on"), "{}", answer.body);
    assert_eq!(host.text(&sandbox, "get x").await, "alive");
    assert!(names(&host.spaces_folder()).is_empty() && spaces(&host).await.is_empty());
    // The base has been tried again, too.
    let space = frozen(&host, &sandbox).await;
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "alive");
}

#[tokio::test]
async fn a_persistent_sandbox_that_cannot_be_written_is_tried_again_while_it_idles() {
    let host = Host::start(&[]).await;
    host.vmm.fill_disk_in_saves(1);
    sandbox_with(&host, &json!({"persistent": true, "idle_timeout_seconds": 1}), "late").await;
    let space = only_space(&host).await;
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "late");
}

#[tokio::test]
async fn what_comes_while_a_sandbox_is_frozen_hears_of_it_and_nobody_freezes_it_twice() {
    let host = Host::start(&[]).await;
    host.vmm.set_saving_time(Duration::from_millis(500));
    let sandbox = sandbox_with(&host, &json!({}), "busy").await;
    let during = async {
        until("it is being written", async || !names(&host.spaces_folder()).is_empty()).await;
        let late = host.start_exec(&sandbox, "set x late").await.rest_bytes().await;
        assert!(late.contains("is being frozen"), "{late}");
        let twice = freeze(&host, &sandbox).await;
        assert!(matches!(twice.status, StatusCode::CONFLICT | StatusCode::NOT_FOUND), "{}", twice.body);
    };
    let (space, ()) = tokio::join!(frozen(&host, &sandbox), during);
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "busy");
}

#[tokio::test]
async fn a_host_that_was_killed_finds_its_spaces_and_removes_what_was_half_written() {
    let host = Host::start(&[]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "survives").await).await;
    let folder = host.spaces_folder();
    fs::create_dir(folder.join(".new-spc_11111111111111111111111111111111")).unwrap();
    let host = host.start_again().await;
    assert_eq!(spaces(&host).await, slice::from_ref(&space));
    assert_eq!(names(&folder), slice::from_ref(&space));
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "survives");
    // And the one after that finds it again, since its sandbox is lost.
    let host = host.start_again().await;
    assert_eq!(spaces(&host).await, slice::from_ref(&space));
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "survives");
}

#[tokio::test]
async fn a_space_whose_sandbox_was_lost_can_be_resumed_again() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "again").await).await;
    let sandbox = resumed(&host, &space, &json!({})).await;
    host.exec(&sandbox, "panic").await;
    until("it is there again", async || spaces(&host).await == [space.clone()]).await;
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "again");
}

#[tokio::test]
async fn a_sandbox_that_was_resumed_forks_and_freezes_ten_generations_deep() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let mut newest = sandbox_with(&host, &json!({}), "0").await;
    for generation in 0..10 {
        let child = host.fork(&newest, 1).await.remove(0);
        assert_eq!(host.text(&child, "get x").await, generation.to_string());
        host.exec(&child, &format!("set x {}", generation + 1)).await;
        assert_eq!(host.merge(&newest, &child).await.status, StatusCode::NO_CONTENT);
        let space = frozen(&host, &newest).await;
        newest = resumed(&host, &space, &json!({})).await;
    }
    assert_eq!(host.text(&newest, "get x").await, "10");
    // However often it was frozen, there is one base.
    assert_eq!(names(&host.bases_folder()).len(), 1);
}

#[tokio::test]
async fn a_space_outlives_its_template_and_its_base_goes_with_the_last() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "old").await).await;
    let host = host.start_again().await;
    let other = frozen(&host, &sandbox_with(&host, &json!({}), "new").await).await;
    assert_eq!(names(&host.bases_folder()).len(), 2);
    // The template's image is another one now; the base keeps its own.
    fs::remove_file(host.rootfs()).unwrap();
    fs::write(host.rootfs(), "another image").unwrap();
    assert_eq!(host.text(&resumed(&host, &space, &json!({"keep": true})).await, "get x").await, "old");
    host.delete_at(&format!("/v1/spaces/{space}")).await;
    host.delete_at(&format!("/v1/spaces/{other}")).await;
    let host = host.start_again().await;
    assert!(names(&host.bases_folder()).is_empty());
}

#[tokio::test]
async fn what_cannot_be_resumed_here_says_why_and_stays() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "x").await).await;
    let folder = host.spaces_folder().join(&space);
    let damaged = fs::read(folder.join("state")).unwrap();
    fs::write(folder.join("state"), [0xff; 8]).unwrap();
    let answer = resume(&host, &space, &json!({})).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
    assert_eq!(spaces(&host).await, slice::from_ref(&space));
    fs::write(folder.join("state"), damaged).unwrap();

    let manifest = folder.join("manifest.json");
    let written = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, written.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let mut host = host.start_again().await;
    let answer = resume(&host, &space, &json!({})).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(
        answer.error().contains("format 2") && answer.error().contains("reads format 1"),
        "{}",
        answer.body
    );

    fs::write(&manifest, written).unwrap();
    let base = host.bases_folder().join(names(&host.bases_folder()).remove(0));
    let manifest = base.join("manifest.json");
    let known = fs::read_to_string(&manifest).unwrap();
    for (from, to, words) in [
        ("\"protocol\": ", "\"protocol\": 99", "the agent's protocol"),
        ("\"image\": \"", "\"image\": \"00", "is another than the one"),
    ] {
        fs::write(&manifest, known.replace(from, to)).unwrap();
        host = host.start_again().await;
        let answer = resume(&host, &space, &json!({})).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
        assert!(answer.error().contains(words), "{}", answer.body);
    }
    fs::write(&manifest, known).unwrap();
    let host = host.start_again().await;
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "x");
}

#[tokio::test]
async fn what_is_no_space_is_not_found_and_deleted_all_the_same() {
    let host = Host::start(&[]).await;
    for id in [UNKNOWN, "nonsense", "%ff"] {
        assert_eq!(resume(&host, id, &json!({})).await.status, StatusCode::NOT_FOUND);
        assert_eq!(host.get(&format!("/v1/spaces/{id}")).await.status, StatusCode::NOT_FOUND);
        assert_eq!(host.delete_at(&format!("/v1/spaces/{id}")).await.status, StatusCode::NO_CONTENT);
        assert_eq!(freeze(&host, id).await.status, StatusCode::NOT_FOUND);
    }
    let space = frozen(&host, &host.create().await).await;
    let answer = resume(&host, &space, &json!({"egress": 7})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(spaces(&host).await, [space]);
}

#[tokio::test]
async fn a_freeze_whose_client_goes_away_is_done_all_the_same() {
    let host = Host::start(&[]).await;
    host.vmm.set_saving_time(Duration::from_millis(300));
    let sandbox = sandbox_with(&host, &json!({}), "done").await;
    assert!(tokio::time::timeout(Duration::from_millis(100), freeze(&host, &sandbox)).await.is_err());
    let space = only_space(&host).await;
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "done");
}

#[tokio::test]
async fn what_runs_in_a_space_runs_on_when_it_is_resumed() {
    let host = Host::start(&[]).await;
    let sandbox = host.create().await;
    let running = host.start_exec(&sandbox, "sleep 600").await;
    until("it runs", async || host.execs(&sandbox).await.len() == 1).await;
    let space = frozen(&host, &sandbox).await;
    let end = running.rest_bytes().await;
    assert!(end.contains(&space), "{end}");
    let resumed = resumed(&host, &space, &json!({})).await;
    assert_eq!(host.exec(&resumed, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn a_sealed_space_is_read_by_nobody_without_the_key() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("key");
    fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    let host = Host::start(&["--pool-size", "0", "--spaces-key-file", file.to_str().unwrap()]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "secret").await).await;
    let folder = host.spaces_folder().join(&space);
    for part in ["state", "memory", "disk"] {
        assert!(fs::read(folder.join(part)).unwrap().starts_with(b"PODFSEA1"), "{part}");
    }
    assert_eq!(host.text(&resumed(&host, &space, &json!({"keep": true})).await, "get x").await, "secret");
    let mut names = names(&folder);
    names.sort();
    assert_eq!(names, ["disk", "manifest.json", "memory", "state"]);

    fs::write(&file, "another one, of thirty-two bytes and more").unwrap();
    let host = host.start_again().await;
    let answer = resume(&host, &space, &json!({})).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
    assert!(answer.error().contains("sealed with the key"), "{}", answer.body);

    fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    let host = host.start_again().await;
    let sealed = fs::read(folder.join("memory")).unwrap();
    fs::write(folder.join("memory"), &sealed[..sealed.len() - 1]).unwrap();
    let answer = resume(&host, &space, &json!({})).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
    fs::write(folder.join("memory"), sealed).unwrap();
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "secret");
}

#[tokio::test]
async fn a_space_goes_as_one_file_to_another_host_and_back() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "travels").await).await;
    let archive = exported(&host, &space).await;
    host.delete_at(&format!("/v1/spaces/{space}")).await;
    let other = host.start_beside().await;
    for host in [&other, &host, &other] {
        let answer = import(host, archive.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        assert_ne!(id, space);
        assert_eq!(host.text(&resumed(host, &id, &json!({})).await, "get x").await, "travels");
    }
    // Twice there, with one base.
    assert_eq!(names(&other.bases_folder()).len(), 1);
}

#[tokio::test]
async fn a_sealed_space_leaves_its_host_as_it_is_and_is_sealed_again_elsewhere() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("key");
    fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    let host = Host::start(&["--pool-size", "0", "--spaces-key-file", file.to_str().unwrap()]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "secret").await).await;
    let archive = exported(&host, &space).await;
    assert!(!archive.windows(8).any(|window| window == b"PODFSEA1"));
    let id = import(&host, archive).await.json()["id"].as_str().unwrap().to_owned();
    let sealed = fs::read(host.spaces_folder().join(&id).join("memory")).unwrap();
    assert!(sealed.starts_with(b"PODFSEA1"));
    assert_eq!(host.text(&resumed(&host, &id, &json!({})).await, "get x").await, "secret");
}

/// An archive's manifest, and then not what should follow.
fn in_another_order(archive: &[u8]) -> Vec<u8> {
    let mut entries = tar::Archive::new(archive);
    let mut manifest = entries.entries().unwrap().next().unwrap().unwrap();
    let mut other = tar::Builder::new(Vec::new());
    let mut header = manifest.header().clone();
    other.append_data(&mut header, "manifest.json", &mut manifest).unwrap();
    header.set_size(0);
    other.append_data(&mut header, "state", std::io::empty()).unwrap();
    other.into_inner().unwrap()
}

#[tokio::test]
async fn what_is_no_exported_space_is_refused_and_leaves_nothing() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "x").await).await;
    let archive = exported(&host, &space).await.to_vec();
    host.delete_at(&format!("/v1/spaces/{space}")).await;
    let other = host.start_beside().await;
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = archive.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut archive = archive.clone();
        archive[at..at + to.len()].copy_from_slice(to.as_bytes());
        archive
    };
    let image = "\"image\": \"";
    let at =
        archive.windows(image.len()).position(|window| window == image.as_bytes()).unwrap() + image.len();
    let mut other_image = archive.clone();
    other_image[at] = if archive[at] == b'0' { b'1' } else { b'0' };
    let cases = [
        (Vec::new(), StatusCode::BAD_REQUEST, "manifest.json"),
        (vec![b'x'; 4096], StatusCode::BAD_REQUEST, ""),
        (archive[..archive.len() / 2].to_vec(), StatusCode::BAD_REQUEST, ""),
        (changed("base/memory", "base/../etc"), StatusCode::BAD_REQUEST, ""),
        (in_another_order(&archive), StatusCode::BAD_REQUEST, "where base/state should be"),
        (changed("\"ram_mib\": 1024", "\"ram_mib\": 9999"), StatusCode::CONFLICT, "more than it may"),
        (changed("\"format\": 1", "\"format\": 7"), StatusCode::CONFLICT, "format 7"),
        (changed("\"base\": \"base_", "\"base\": \"../x_"), StatusCode::BAD_REQUEST, "no name"),
        (other_image, StatusCode::CONFLICT, "No template of this host"),
    ];
    for (archive, status, words) in cases {
        let answer = import(&other, archive).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.error().contains(words), "{}", answer.body);
        assert!(names(&other.spaces_folder()).is_empty() && names(&other.bases_folder()).is_empty());
    }
    assert!(spaces(&other).await.is_empty());
    assert_eq!(import(&other, archive).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_base_that_is_there_is_not_changed_by_one_of_its_name() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let space = frozen(&host, &sandbox_with(&host, &json!({}), "x").await).await;
    let archive = exported(&host, &space).await.to_vec();
    let base = host.bases_folder().join(names(&host.bases_folder()).remove(0));
    let state = fs::read(base.join("state")).unwrap();
    fs::write(base.join("state"), [7; 8]).unwrap();
    let answer = import(&host, archive).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
    assert!(answer.error().contains("another base"), "{}", answer.body);
    fs::write(base.join("state"), state).unwrap();
    assert_eq!(host.text(&resumed(&host, &space, &json!({})).await, "get x").await, "x");
}
