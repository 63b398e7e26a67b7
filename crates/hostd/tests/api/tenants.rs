//! Keys: who gets in, what is whose, and what each may have.

use crate::host::{Answer, Host};
use axum::http::StatusCode;
use serde_json::{Value, json};

const ADMIN: &str = "pf_admin_key";

/// A host with an operator and two keys of a tier.
struct Shared {
    host: Host,
    keys: [String; 2],
}

impl Shared {
    async fn start(tier: &str) -> Shared {
        let host = Host::start(&["--admin-key", ADMIN, "--pool-size", "1"]).await;
        let mut keys = Vec::new();
        for name in ["one", "other"] {
            let body = json!({ "tier": tier, "name": name });
            let created = host.ask(ADMIN, "POST", "/v1/keys", Some(&body)).await;
            assert_eq!(created.status, StatusCode::OK, "{}", created.body);
            keys.push(created.json()["key"].as_str().unwrap().to_owned());
        }
        Shared { host, keys: keys.try_into().unwrap() }
    }

    async fn create(&self, key: &str, body: Value) -> Answer {
        self.host.ask(key, "POST", "/v1/sandboxes", Some(&body)).await
    }

    async fn post(&self, key: &str, path: &str, body: &Value) -> Answer {
        self.host.ask(key, "POST", path, Some(body)).await
    }

    async fn sandbox(&self, key: &str) -> String {
        let created = self.create(key, json!({})).await;
        assert_eq!(created.status, StatusCode::OK, "{}", created.body);
        created.json()["id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn what_is_another_keys_is_as_if_it_were_not_there() {
    let shared = Shared::start("pro").await;
    let [one, other] = &shared.keys;
    let [own, foreign] = [shared.sandbox(one).await, shared.sandbox(other).await];
    let path = format!("/v1/sandboxes/{foreign}/checkpoints");
    let checkpoint = shared.host.ask(other, "POST", &path, Some(&json!({}))).await.json()["id"].clone();
    let checkpoint = checkpoint.as_str().unwrap();
    let unknown = "sbx_00000000000000000000000000000000";
    let no_checkpoint = "ckp_00000000000000000000000000000000";
    let requests = |id: &str, checkpoint: &str| {
        let sandbox = |rest: &str| format!("/v1/sandboxes/{id}{rest}");
        let checkpoint_path = |rest: &str| format!("/v1/checkpoints/{checkpoint}{rest}");
        vec![
            ("GET", sandbox(""), None),
            ("DELETE", sandbox(""), None),
            ("POST", sandbox("/exec"), Some(json!({ "code": "1" }))),
            ("POST", sandbox("/exec"), Some(json!({ "no": "code" }))),
            ("POST", sandbox("/fork"), Some(json!({ "n": 99 }))),
            ("POST", sandbox("/restore"), Some(json!({ "checkpoint": checkpoint }))),
            ("POST", format!("/v1/sandboxes/{own}/restore"), Some(json!({ "checkpoint": checkpoint }))),
            ("POST", format!("/v1/sandboxes/{own}/merge_into/{id}"), None),
            ("POST", format!("/v1/sandboxes/{id}/merge_into/{own}"), None),
            ("GET", sandbox("/files?path=/x"), None),
            ("DELETE", sandbox("/files?path=/x"), None),
            ("PUT", sandbox("/egress"), Some(json!({ "egress": false }))),
            ("GET", sandbox("/pty"), None),
            ("GET", sandbox("/checkpoints"), None),
            ("GET", sandbox("/replay"), None),
            ("GET", checkpoint_path(""), None),
            ("POST", checkpoint_path("/fork"), Some(json!({}))),
            ("DELETE", checkpoint_path(""), None),
            ("POST", sandbox("/freeze"), None),
        ]
    };
    let pairs = requests(&foreign, checkpoint).into_iter().zip(requests(unknown, no_checkpoint));
    for ((method, path, body), (_, unknown_path, unknown_body)) in pairs {
        let about_foreign = shared.host.ask(one, method, &path, body.as_ref()).await;
        let about_unknown = shared.host.ask(one, method, &unknown_path, unknown_body.as_ref()).await;
        let told = |answer: &Answer| (answer.status, answer.body.clone());
        assert_eq!(told(&about_foreign), told(&about_unknown), "{method} {path}");
        assert!(about_foreign.status == StatusCode::NOT_FOUND || method == "DELETE", "{method} {path}");
    }
    // All is still there, for whose it is.
    for (key, id) in [(one, &own), (other, &foreign)] {
        let listed = shared.host.ask(key, "GET", "/v1/sandboxes", None).await.json();
        assert_eq!(listed["sandboxes"].as_array().unwrap().len(), 1);
        assert_eq!(listed["sandboxes"][0]["id"], **id);
    }
    let mine = shared.host.ask(one, "GET", "/v1/checkpoints", None).await.json();
    assert_eq!(mine["checkpoints"], json!([]));
    let all = shared.host.ask(ADMIN, "GET", "/v1/sandboxes", None).await.json();
    assert_eq!(all["sandboxes"].as_array().unwrap().len(), 2, "the operator sees everything");
    assert_eq!(
        shared.host.ask(other, "GET", &format!("/v1/checkpoints/{checkpoint}"), None).await.status,
        200
    );
}

#[tokio::test]
async fn what_has_ended_is_told_only_to_whose_it_was() {
    let shared = Shared::start("pro").await;
    let [one, other] = &shared.keys;
    let id = shared.sandbox(one).await;
    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(shared.host.ask(one, "DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    assert!(shared.host.ask(one, "GET", &path, None).await.error().contains("it was deleted"));
    assert_eq!(shared.host.ask(other, "GET", &path, None).await.error(), "sandbox not found");
}

#[tokio::test]
async fn a_space_is_there_for_its_key_and_the_operator_alone_also_after_the_host_was_killed() {
    let mut shared = Shared::start("pro").await;
    let [one, other] = shared.keys.clone();
    let id = shared.sandbox(&one).await;
    let frozen = shared.post(&one, &format!("/v1/sandboxes/{id}/freeze"), &json!({})).await;
    assert_eq!(frozen.status, StatusCode::OK, "{}", frozen.body);
    let space = frozen.json()["id"].as_str().unwrap().to_owned();
    let unknown = "spc_00000000000000000000000000000000";
    let of = |id: &str| {
        let path = format!("/v1/spaces/{id}");
        [
            ("GET", path.clone(), None),
            ("POST", format!("{path}/resume"), Some(json!({}))),
            ("DELETE", path, None),
        ]
    };
    for ((method, path, body), (_, unknown_path, _)) in of(&space).into_iter().zip(of(unknown)) {
        let about_foreign = shared.host.ask(&other, method, &path, body.as_ref()).await;
        let about_unknown = shared.host.ask(&other, method, &unknown_path, body.as_ref()).await;
        assert_eq!((about_foreign.status, about_foreign.body), (about_unknown.status, about_unknown.body));
    }
    let listed = async |shared: &Shared, key: &str| {
        let list = shared.host.ask(key, "GET", "/v1/spaces", None).await.json();
        list["spaces"].as_array().unwrap().len()
    };
    assert_eq!(
        (listed(&shared, &one).await, listed(&shared, &other).await, listed(&shared, ADMIN).await),
        (1, 0, 1)
    );
    // The keys are in the store, which these hosts have in memory: only the operator's is the same.
    shared.host = shared.host.start_again().await;
    assert_eq!(listed(&shared, ADMIN).await, 1);
}

#[tokio::test]
async fn a_tier_without_spaces_overlooks_that_a_sandbox_is_to_be_persistent() {
    let shared = Shared::start("free").await;
    let created = shared.create(&shared.keys[0], json!({ "persistent": true })).await.json();
    assert_eq!(created["persistent"], json!(false));
    let path = format!("/v1/sandboxes/{}/freeze", created["id"].as_str().unwrap());
    let refused = shared.post(&shared.keys[0], &path, &json!({})).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.error().contains("may have 0 Spaces"), "{}", refused.body);
}

#[tokio::test]
async fn a_tier_lowers_what_is_asked_and_the_answer_says_to_what() {
    let shared = Shared::start("free").await;
    let asked =
        json!({ "ram_mib": 8192, "rootfs_gb": 64, "timeout_seconds": 86400, "idle_timeout_seconds": 7200 });
    let created = shared.create(&shared.keys[0], asked).await.json();
    assert_eq!(created["ram_mib"], 1024);
    assert_eq!(created["rootfs_gb"], 4);
    assert_eq!(created["timeout_seconds"], 1800);
    assert_eq!(created["idle_timeout_seconds"], 300);
    let path = format!("/v1/sandboxes/{}", created["id"].as_str().unwrap());
    let inspected = shared.host.ask(&shared.keys[0], "GET", &path, None).await.json();
    assert_eq!(inspected["timeout_seconds"], 1800);
}

#[tokio::test]
async fn a_key_has_no_more_sandboxes_and_checkpoints_than_its_tier_allows() {
    let shared = Shared::start("free").await;
    let [one, other] = &shared.keys;
    let first = shared.sandbox(one).await;
    let forked = shared.post(one, &format!("/v1/sandboxes/{first}/fork"), &json!({ "n": 8 })).await;
    assert_eq!(forked.status, StatusCode::OK, "{}", forked.body);
    let taken = shared.post(one, &format!("/v1/sandboxes/{first}/checkpoints"), &json!({})).await;
    assert_eq!(taken.status, StatusCode::OK, "{}", taken.body);
    for full in [
        shared.create(one, json!({})).await,
        shared.post(one, &format!("/v1/sandboxes/{first}/fork"), &json!({ "n": 1 })).await,
        shared.post(one, &format!("/v1/sandboxes/{first}/checkpoints"), &json!({})).await,
    ] {
        assert_eq!(full.status, StatusCode::TOO_MANY_REQUESTS);
        let said = "This key may have 10 sandboxes and checkpoints at once, and has 10; end some first";
        assert!(full.error().ends_with(said), "{}", full.body);
    }
    // What takes another's place needs no room.
    let restored = shared
        .post(one, &format!("/v1/sandboxes/{first}/restore"), &json!({ "checkpoint": taken.json()["id"] }))
        .await;
    assert_eq!(restored.status, StatusCode::NO_CONTENT, "{}", restored.body);
    shared.sandbox(other).await;
    let child = forked.json()["children"][0].as_str().unwrap().to_owned();
    shared.host.ask(one, "DELETE", &format!("/v1/sandboxes/{child}"), None).await;
    crate::host::until("its room is free again", async || {
        shared.create(one, json!({})).await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn only_the_operator_makes_keys_and_takes_templates() {
    let shared = Shared::start("pro").await;
    let body = json!({ "tier": "pro" });
    for (method, path) in [
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys"),
        ("DELETE", "/v1/keys/key_00000000000000000000000000000000"),
        ("POST", "/v1/keys/key_00000000000000000000000000000000/rotate"),
        ("POST", "/v1/templates/x"),
        ("DELETE", "/v1/templates/x"),
    ] {
        let answer = shared.host.ask(&shared.keys[0], method, path, Some(&body)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
    assert_eq!(shared.host.get("/v1/sandboxes").await.error(), "missing Authorization: Bearer <key>");
    let unknown = shared.host.ask(ADMIN, "POST", "/v1/keys", Some(&json!({ "tier": "gold" }))).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
    assert!(unknown.error().contains("enterprise, free, pro, scale"));
}

#[tokio::test]
async fn a_key_is_listed_revoked_and_rotated_without_being_shown_again() {
    let shared = Shared::start("pro").await;
    let [one, other] = &shared.keys;
    let listed = shared.host.ask(ADMIN, "GET", "/v1/keys", None).await;
    assert!(!listed.body.contains(&one[8..]), "{}", listed.body);
    let listed = listed.json();
    let id = |name: &str| {
        let key = listed["keys"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
        key["id"].as_str().unwrap().to_owned()
    };
    let sandbox = shared.sandbox(one).await;

    let rotated =
        shared.host.ask(ADMIN, "POST", &format!("/v1/keys/{}/rotate", id("one")), None).await.json();
    assert_eq!(shared.host.ask(one, "GET", "/v1/sandboxes", None).await.error(), "invalid api key");
    let new = rotated["key"].as_str().unwrap();
    assert_eq!(shared.host.ask(new, "GET", &format!("/v1/sandboxes/{sandbox}"), None).await.status, 200);

    let revoke = format!("/v1/keys/{}", id("other"));
    assert_eq!(shared.host.ask(ADMIN, "DELETE", &revoke, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(shared.host.ask(other, "GET", "/v1/sandboxes", None).await.error(), "invalid api key");
    assert_eq!(shared.host.ask(ADMIN, "DELETE", &revoke, None).await.status, StatusCode::NOT_FOUND);
}
