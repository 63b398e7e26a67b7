//! Templates and sizes: booted when they are first wanted, kept while they are, taken and removed.

use crate::host::{Answer, Host, until};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;

/// A folder of templates, as a builder leaves it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A build of a template, with these instead of what is usual.
    fn put(&self, name: &str, built_at_ms: u64, instead: &Value) {
        let mut manifest = json!({
            "version": 1, "name": name, "description": "ours", "rootfs": "rootfs.ext4", "ram_mib": 512,
            "vcpus": 1, "rootfs_gb": 6, "digest": "d", "built_at_ms": built_at_ms,
        });
        manifest.as_object_mut().unwrap().extend(instead.as_object().unwrap().clone());
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("template.json"), manifest.to_string()).unwrap();
        fs::write(folder.join("rootfs.ext4"), "disk").unwrap();
    }

    async fn host(&self, arguments: &[&str]) -> Host {
        let path = self.path().to_str().unwrap();
        Host::start(&[&["--template-dir", path], arguments].concat()).await
    }
}

impl Host {
    async fn create_as(&self, body: Value) -> Answer {
        self.post("/v1/sandboxes", &body).await
    }

    async fn take(&self, name: &str) -> Answer {
        self.send(Request::post(format!("/v1/templates/{name}")).body(Body::empty()).unwrap()).await
    }

    /// Boots so far, the default template's included.
    fn boots(&self) -> usize {
        self.vmm.boots().len()
    }

    async fn template(&self, name: &str) -> Value {
        self.get(&format!("/v1/templates/{name}")).await.json()
    }

    async fn pools_are_full(&self) {
        until("all pools are full", async || {
            let full = |template: &Value| template["pool_ready"] == template["pool_size"];
            self.capacity().await["templates"].as_array().unwrap().iter().all(full)
        })
        .await;
    }
}

fn id(created: &Answer) -> String {
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    created.json()["id"].as_str().unwrap().to_owned()
}

fn timing(answer: &Answer) -> &str {
    answer.headers["server-timing"].to_str().unwrap()
}

fn progress(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let lines = answer.body.lines().filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_sandbox_has_the_memory_and_processors_that_were_asked_for_and_so_do_its_copies() {
    let host = Host::start(&["--vcpus", "1", "--vcpus-max", "4"]).await;
    let created = host.create_as(json!({"ram_mib": 2000, "vcpus": 3})).await;
    let sandbox = id(&created);
    let created = created.json();
    assert_eq!((&created["ram_mib"], &created["vcpus"]), (&json!(2048), &json!(3)));
    let child = host.fork(&sandbox, 1).await.remove(0);
    let checkpoint = host.checkpoint(&child).await;
    let of_checkpoint = host.fork_checkpoint(&checkpoint, 1).await.remove(0);
    for sandbox in [&sandbox, &child, &of_checkpoint] {
        assert_eq!(host.text(sandbox, "size").await, "2048 MiB, 3 vCPUs");
        let view = host.get(&format!("/v1/sandboxes/{sandbox}")).await.json();
        assert_eq!((&view["ram_mib"], &view["vcpus"]), (&json!(2048), &json!(3)));
    }
    let usual = host.create().await;
    assert_eq!(host.text(&usual, "size").await, "1024 MiB, 1 vCPUs");
}

#[tokio::test(start_paused = true)]
async fn creates_that_want_the_same_size_share_one_boot() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.set_boot_time(Duration::from_secs(9));
    let creates = (0..10).map(|_| host.create_as(json!({"ram_mib": 512})));
    for created in join_all(creates).await {
        assert_eq!(host.text(&id(&created), "size").await.split(',').next(), Some("512 MiB"));
    }
    assert_eq!(host.boots(), 2);
    let later = host.create_as(json!({"ram_mib": 300})).await;
    assert!(timing(&later).contains("boot;dur=0."), "{}", timing(&later));
    assert_eq!(host.boots(), 2, "a copy, and no boot");
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_used_has_a_pool_of_its_own() {
    let host = Host::start(&["--pool-size", "2"]).await;
    id(&host.create_as(json!({"ram_mib": 512})).await);
    host.pools_are_full().await;
    let capacity = host.capacity().await;
    let pools = capacity["templates"].as_array().unwrap();
    let sizes: Vec<_> = pools.iter().map(|pool| (&pool["ram_mib"], &pool["pool_target"])).collect();
    assert_eq!(sizes, [(&json!(1024), &json!(2)), (&json!(512), &json!(1))]);
    let claimed = host.create_as(json!({"ram_mib": 512})).await;
    assert!(timing(&claimed).starts_with("claim;dur="), "{}", timing(&claimed));
    assert_eq!(host.text(&id(&claimed), "size").await.split(',').next(), Some("512 MiB"));
}

#[tokio::test(start_paused = true)]
async fn sizes_boot_one_after_the_other() {
    let host = Host::start(&["--pool-size", "0"]).await;
    host.vmm.set_boot_time(Duration::from_secs(3));
    let creates = [256, 512, 768].map(|ram_mib| host.create_as(json!({"ram_mib": ram_mib})));
    for created in join_all(creates).await {
        id(&created);
    }
    assert_eq!((host.boots(), host.vmm.booting_max()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_create_does_not_wait_longer_for_a_boot_than_its_client_but_the_boot_goes_on() {
    let host = Host::start(&[]).await;
    host.vmm.set_boot_time(Duration::from_secs(50));
    let begun = tokio::time::Instant::now();
    for _ in 0..2 {
        let answer = host.create_as(json!({"ram_mib": 512})).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers["retry-after"], "5");
        assert!(answer.error().contains("boots, with 512 MiB"), "{}", answer.body);
    }
    assert_eq!(begun.elapsed().as_secs(), 40);
    id(&host.create_as(json!({"ram_mib": 512})).await);
    assert_eq!(begun.elapsed().as_secs(), 50);
    assert_eq!(host.boots(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next() {
    let host = Host::start(&[]).await;
    let before = host.vmm.alive();
    host.vmm.fail_boots(1);
    let creates = (0..3).map(|_| host.create_as(json!({"ram_mib": 512})));
    for answer in join_all(creates).await {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer.error().contains("no root disk"), "{}", answer.body);
    }
    host.machines_are(before).await;
    assert_eq!(host.boots(), 2);
    assert_eq!(host.template("default").await["sizes"].as_array().unwrap().len(), 1);
    id(&host.create_as(json!({"ram_mib": 512})).await);
    host.create().await;
}

#[tokio::test(start_paused = true)]
async fn a_size_that_is_lost_is_booted_again_when_it_is_next_wanted() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let kept = id(&host.create_as(json!({"ram_mib": 512})).await);
    let lost = host.app.templates.variants().remove(1);
    let podflare_hostd::template::Availability::Ready(template) = lost.availability() else { panic!() };
    template.machine.end().await;
    until("it is gone", async || host.app.templates.variants().len() == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(host.boots(), 2, "nobody wants it");
    id(&host.create_as(json!({"ram_mib": 512})).await);
    assert_eq!(host.boots(), 3);
    assert_eq!(host.text(&kept, "print still here").await, "still here");
}

#[tokio::test(start_paused = true)]
async fn the_size_that_was_used_longest_ago_makes_room_and_its_sandboxes_go_on() {
    let host = Host::start(&["--pool-size", "1", "--templates-max", "2"]).await;
    let of_first = id(&host.create_as(json!({"ram_mib": 256})).await);
    for ram_mib in [512, 256, 768] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        id(&host.create_as(json!({"ram_mib": ram_mib})).await);
    }
    let sizes = host.template("default").await["sizes"].clone();
    let mut sizes: Vec<_> = sizes.as_array().unwrap().iter().map(|size| size["ram_mib"].as_u64()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [Some(256), Some(768), Some(1024)]);
    host.pools_are_full().await;
    // The templates, the members of their pools, and the sandboxes.
    host.machines_are(3 + 3 + 4).await;
    assert_eq!(host.boots(), 4);
    let child = host.fork(&of_first, 1).await.remove(0);
    assert_eq!(host.text(&child, "size").await.split(',').next(), Some("256 MiB"));
    id(&host.create_as(json!({"ram_mib": 512})).await);
    assert_eq!(host.boots(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_boots_makes_no_room_and_nor_does_the_default_one() {
    let host = Host::start(&["--pool-size", "0", "--templates-max", "1"]).await;
    host.vmm.set_boot_time(Duration::from_secs(5));
    let first = host.create_as(json!({"ram_mib": 256}));
    let second = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.create_as(json!({"ram_mib": 512})).await
    };
    let (first, second) = tokio::join!(first, second);
    id(&first);
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.headers["retry-after"], "5");
    assert!(second.error().contains("all of them are in use"), "{}", second.body);
    id(&host.create_as(json!({"ram_mib": 512})).await);
    id(&host.create_as(json!({})).await);
    assert_eq!(host.boots(), 3, "the default one is still there");
}

#[tokio::test(start_paused = true)]
async fn all_pools_together_take_no_more_memory_than_there_is() {
    let host = Host::start(&["--pool-size", "4"]).await;
    id(&host.create_as(json!({"ram_mib": 512})).await);
    host.pools_are_full().await;
    let total: u64 = 8 << 30;
    // Room for none more than the five that there are, less two.
    host.vmm.set_memory(podflare_hostd::pool::policy::Memory { total, available: (1 << 30) - (16 << 20) });
    until("two have ended", async || {
        let capacity = host.capacity().await;
        let ready = |index: usize| capacity["templates"][index]["pool_ready"].as_u64().unwrap();
        ready(0) + ready(1) <= 3
    })
    .await;
    let capacity = host.capacity().await;
    assert_eq!(capacity["templates"][1]["pool_ready"], 0, "the default one's come first: {capacity}");
}

#[tokio::test]
async fn a_built_template_is_listed_and_booted_when_it_is_first_wanted() {
    let folder = Folder::new();
    folder.put("ours", 7, &json!({}));
    folder.put("hostile", 7, &json!({"rootfs": "/etc/shadow"}));
    let host = folder.host(&[]).await;
    let list = host.get("/v1/templates").await.json();
    let names: Vec<_> = list["templates"].as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["default", "ours"]);
    let ours = json!({
        "name": "ours", "description": "ours", "ram_mib": 512, "vcpus": 1, "rootfs_gb": 6, "built_at_ms": 7,
        "state": "cold", "sizes": [],
    });
    assert_eq!(host.template("ours").await, ours);
    assert_eq!(host.template("default").await["state"], "ready");
    let created = host.create_as(json!({"template": "ours"})).await;
    assert_eq!(created.json()["template"], "ours");
    assert_eq!((&created.json()["ram_mib"], &created.json()["rootfs_gb"]), (&json!(512), &json!(6)));
    let boot = host.vmm.boots().pop().unwrap();
    assert_eq!(boot.rootfs, folder.path().join("ours/rootfs.ext4").canonicalize().unwrap());
    assert_eq!((boot.config.memory_mib, boot.config.disk_bytes), (512, 6 * GIB));
    assert_eq!(host.template("ours").await["state"], "ready");
    let unknown = host.create_as(json!({"template": "windows"})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.error(), "template \"windows\" not found; this host has: default, ours");
    assert_eq!(host.get("/v1/templates/windows").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn start_up_code_has_run_and_the_ready_check_has_succeeded_before_anyone_has_a_sandbox() {
    let folder = Folder::new();
    let code = json!({"startup": {"python": "flood 3000000\nset pd loaded"}, "ready": {"bash": "attempt 4", "timeout_ms": 5000}});
    folder.put("ours", 1, &code);
    let host = folder.host(&[]).await;
    let sandbox = id(&host.create_as(json!({"template": "ours"})).await);
    assert_eq!(host.text(&sandbox, "get pd").await, "loaded");
    assert_eq!(host.text(&sandbox, "attempt 4\nprint fourth").await, "fourth");
}

#[tokio::test(start_paused = true)]
async fn code_of_a_template_that_fails_or_does_not_end_is_told_with_its_output() {
    let folder = Folder::new();
    let startup = |code: &str| json!({"startup": {"python": code}});
    let ready = |code: &str| json!({"ready": {"bash": code, "timeout_ms": 700}});
    folder.put("wrong", 1, &startup("error No module named pandas\nexit 3"));
    folder.put("endless", 1, &startup("sleep 1000000000"));
    folder.put("not-ready", 1, &ready("attempt 1000000"));
    folder.put("not-ready-ever", 1, &ready("print waiting for the database\nsleep 1000000000"));
    let host = folder.host(&["--boot-timeout", "15"]).await;
    let before = host.vmm.alive();
    for (name, words) in [
        ("wrong", vec!["start-up code ended with exit code 3", "No module named pandas"]),
        ("endless", vec!["not ready within 15 s", "its start-up code has not ended"]),
        ("not-ready", vec!["ready check had not succeeded after 700 ms", "attempt 4 failed"]),
        ("not-ready-ever", vec!["ready check had not succeeded", "waiting for the database"]),
    ] {
        let answer = host.create_as(json!({"template": name})).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{name}: {}", answer.body);
        for word in words {
            assert!(answer.error().contains(word), "{name}: {}", answer.body);
        }
    }
    host.machines_are(before).await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_was_built_while_the_host_runs_is_taken_when_it_has_booted() {
    let folder = Folder::new();
    let host = folder.host(&[]).await;
    folder.put("ours", 1, &json!({"startup": {"python": "set build first"}}));
    let missing = host.create_as(json!({"template": "ours"})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let taken = host.take("ours").await;
    assert_eq!(taken.headers["content-type"], "application/x-ndjson");
    assert_eq!(progress(&taken), [json!({"state": "booting"}), json!({"state": "ready"})]);
    assert_eq!(host.template("ours").await["state"], "ready");
    let created = host.create_as(json!({"template": "ours"})).await;
    assert_eq!(host.boots(), 2);
    assert_eq!(host.text(&id(&created), "get build").await, "first");
    assert_eq!(progress(&host.take("ours").await).last(), Some(&json!({"state": "ready"})));
    assert_eq!(host.boots(), 2, "the same build is not booted twice");
}

#[tokio::test(start_paused = true)]
async fn a_new_build_takes_the_former_ones_place_and_its_sandboxes_go_on() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({"startup": {"python": "set build first"}}));
    let host = folder.host(&["--pool-size", "0"]).await;
    let first = id(&host.create_as(json!({"template": "ours"})).await);
    id(&host.create_as(json!({"template": "ours", "ram_mib": 768})).await);
    folder.put("ours", 2, &json!({"startup": {"python": "set build second"}}));
    assert_eq!(progress(&host.take("ours").await).last(), Some(&json!({"state": "ready"})));
    assert_eq!(host.template("ours").await["built_at_ms"], 2);
    for ram_mib in [512, 768] {
        let created = host.create_as(json!({"template": "ours", "ram_mib": ram_mib})).await;
        assert_eq!(host.text(&id(&created), "get build").await, "second");
    }
    assert_eq!(host.text(&first, "get build").await, "first");
    // Default and both sizes of the second build; four sandboxes.
    host.machines_are(3 + 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_does_not_boot_leaves_the_former_one_in_its_place() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({"startup": {"python": "set build first"}}));
    let host = folder.host(&["--pool-size", "0"]).await;
    id(&host.create_as(json!({"template": "ours"})).await);
    folder.put("ours", 2, &json!({"startup": {"python": "exit 1"}}));
    let lines = progress(&host.take("ours").await);
    assert_eq!(lines.last().unwrap()["state"], "failed");
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("start-up code ended"), "{lines:?}");
    folder.put("ours", 3, &json!({"ram_mib": 0}));
    let refused = host.take("ours").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.error().contains("`ram_mib` is 0"), "{}", refused.body);
    let created = host.create_as(json!({"template": "ours"})).await;
    assert_eq!(host.text(&id(&created), "get build").await, "first");
    assert_eq!(host.template("ours").await["built_at_ms"], 1);
    host.machines_are(2 + 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_template_is_taken_to_the_end_though_nobody_reads_how_it_goes() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({}));
    folder.put("other", 1, &json!({}));
    let host = folder.host(&[]).await;
    host.vmm.set_boot_time(Duration::from_secs(60));
    let request = Request::post("/v1/templates/ours").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(host.router(), request).await.unwrap();
    drop(response);
    let waiting = host.take("other");
    let waiting = waiting.await;
    let states: Vec<_> = progress(&waiting).iter().map(|line| line["state"].clone()).collect();
    assert_eq!(states, ["waiting", "booting", "ready"]);
    assert!(waiting.body.starts_with("{\"state\":\"waiting\"}\n\n"), "with heartbeats: {}", waiting.body);
    assert_eq!(host.template("ours").await["state"], "ready");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_removed_while_it_is_taken_is_not_there_afterwards() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({}));
    let host = folder.host(&["--pool-size", "0"]).await;
    folder.put("new", 1, &json!({"startup": {"python": "sleep 1000000000"}}));
    folder.put("ours", 2, &json!({"ready": {"bash": "attempt 1000000", "timeout_ms": 600_000}}));
    let before = host.vmm.alive();
    for name in ["new", "ours"] {
        let (taken, removed) = tokio::join!(host.take(name), async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            host.delete_at(&format!("/v1/templates/{name}")).await
        });
        assert_eq!(removed.status, StatusCode::NO_CONTENT, "{name}: {}", removed.body);
        let last = progress(&taken).pop().unwrap();
        assert_eq!(last["state"], "failed");
        assert!(last["error"].as_str().unwrap().contains("was removed"), "{last}");
        assert_eq!(host.get(&format!("/v1/templates/{name}")).await.status, StatusCode::NOT_FOUND);
        host.machines_are(before).await;
    }
    assert_eq!(progress(&host.take("ours").await).len(), 2, "another one can be taken");
}

#[tokio::test(start_paused = true)]
async fn code_of_a_template_that_waits_for_something_holds_no_other_boot_up() {
    let folder = Folder::new();
    folder.put("slow", 1, &json!({"ready": {"bash": "attempt 1000000", "timeout_ms": 600_000}}));
    folder.put("quick", 1, &json!({}));
    let host = folder.host(&[]).await;
    let begun = tokio::time::Instant::now();
    let (slow, quick) = tokio::join!(host.create_as(json!({"template": "slow"})), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.create_as(json!({"template": "quick"})).await
    });
    assert_eq!(slow.status, StatusCode::SERVICE_UNAVAILABLE, "{}", slow.body);
    assert_eq!(quick.json()["template"], "quick");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_template_that_is_not_there_or_not_built_cannot_be_taken() {
    let folder = Folder::new();
    let host = folder.host(&[]).await;
    for (name, status) in [
        ("missing", StatusCode::NOT_FOUND),
        ("%2e%2e", StatusCode::NOT_FOUND),
        ("..%2Fetc", StatusCode::NOT_FOUND),
        ("%ff", StatusCode::NOT_FOUND),
        ("default", StatusCode::CONFLICT),
    ] {
        let answer = host.take(name).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        answer.error();
    }
    let without = Host::start(&[]).await;
    assert!(without.take("ours").await.error().contains("PODFLARE_TEMPLATE_DIR"));
}

#[tokio::test(start_paused = true)]
async fn a_removed_template_is_gone_and_its_sandboxes_go_on() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({}));
    let host = folder.host(&["--pool-size", "1"]).await;
    let sandbox = id(&host.create_as(json!({"template": "ours"})).await);
    host.pools_are_full().await;
    let removed = host.delete_at("/v1/templates/ours").await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    // The default one and its member, and the sandbox.
    host.machines_are(2 + 1).await;
    assert_eq!(host.create_as(json!({"template": "ours"})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(host.text(&sandbox, "print still here").await, "still here");
    host.fork(&sandbox, 1).await;
    assert_eq!(host.delete_at("/v1/templates/ours").await.status, StatusCode::NOT_FOUND);
    let default = host.delete_at("/v1/templates/default").await;
    assert_eq!(default.status, StatusCode::CONFLICT);
    assert!(default.error().contains("always there"), "{}", default.body);
    // What is in the folder may be taken again.
    assert_eq!(progress(&host.take("ours").await).last(), Some(&json!({"state": "ready"})));
}

#[tokio::test(start_paused = true)]
async fn a_create_that_waits_for_a_template_that_is_removed_is_told_so() {
    let folder = Folder::new();
    folder.put("ours", 1, &json!({}));
    let host = folder.host(&["--pool-size", "0"]).await;
    host.vmm.set_boot_time(Duration::from_secs(10));
    let created = host.create_as(json!({"template": "ours"}));
    let (created, removed) = tokio::join!(created, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.delete_at("/v1/templates/ours").await
    });
    assert_eq!((removed.status, created.status), (StatusCode::NO_CONTENT, StatusCode::NOT_FOUND));
    host.machines_are(1).await;
}
