//! What holds for every request: errors, keys, limits, timing, the document.

use crate::host::{Host, json_request};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use podflare_api::openapi::{self, ENDPOINTS, Method};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn the_host_is_healthy_when_its_template_is_ready() {
    let host = Host::start_without_template(&[]);
    let answer = host.get("/v1/healthz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().starts_with("starting: "), "{}", answer.body);
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("starting"), "{}", answer.body);
    let host = Host::start(&[]).await;
    let answer = host.get("/v1/healthz").await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "ok"));
}

#[tokio::test]
async fn every_error_has_the_one_body_and_says_how_long_it_took() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let post = |path: &str, content_type: &str, body: &'static str| {
        Request::post(path).header("content-type", content_type).body(Body::from(body)).unwrap()
    };
    let long = format!("{{\"template\": \"{}\"}}", "x".repeat(70_000));
    let exec = format!("/v1/sandboxes/{id}/exec");
    let cases = [
        (Request::get("/nowhere").body(Body::empty()).unwrap(), StatusCode::NOT_FOUND),
        (Request::get("/v1/sandboxes/x/y/z").body(Body::empty()).unwrap(), StatusCode::NOT_FOUND),
        (Request::get("/v1/sandboxes/nonsense").body(Body::empty()).unwrap(), StatusCode::NOT_FOUND),
        (Request::get("/v1/sandboxes/%ff").body(Body::empty()).unwrap(), StatusCode::NOT_FOUND),
        (post("/v1/sandboxes/%ff/fork", "application/json", ""), StatusCode::NOT_FOUND),
        (post("/v1/sandboxes/a/merge_into/%ff", "application/json", ""), StatusCode::NOT_FOUND),
        (Request::get("/v1/checkpoints/%ff").body(Body::empty()).unwrap(), StatusCode::NOT_FOUND),
        (post("/v1/checkpoints/%ff/fork", "application/json", ""), StatusCode::NOT_FOUND),
        (Request::put("/v1/sandboxes").body(Body::empty()).unwrap(), StatusCode::METHOD_NOT_ALLOWED),
        (Request::post("/v1/healthz").body(Body::empty()).unwrap(), StatusCode::METHOD_NOT_ALLOWED),
        (post("/v1/sandboxes", "application/json", "{"), StatusCode::BAD_REQUEST),
        (post("/v1/sandboxes", "application/json", "[]x"), StatusCode::BAD_REQUEST),
        (post("/v1/sandboxes", "application/json", r#"{"ram_mib": -1}"#), StatusCode::BAD_REQUEST),
        (post(&exec, "application/json; charset=utf-8", ""), StatusCode::BAD_REQUEST),
        (post("/v1/sandboxes", "text/plain", "{}"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (Request::post(&exec).body(Body::from("{}")).unwrap(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (json_request("/v1/sandboxes", &serde_json::from_str(&long).unwrap()), StatusCode::PAYLOAD_TOO_LARGE),
    ];
    for (request, status) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = host.send(request).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert!(!answer.error().is_empty());
        assert_eq!(answer.headers["content-type"], "application/json", "{what}");
        assert!(answer.headers["server-timing"].to_str().unwrap().contains("total;dur="), "{what}");
    }
}

#[tokio::test]
async fn an_empty_body_is_an_empty_object_whatever_it_says_it_is() {
    let host = Host::start(&[]).await;
    for content_type in [None, Some("application/json"), Some("application/x-www-form-urlencoded")] {
        let mut request = Request::post("/v1/sandboxes");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = host.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{content_type:?}: {}", answer.body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_in_drops_gives_its_place_to_others() {
    let host = Host::start(&[]).await;
    // As long as it takes, were it not broken off.
    let drops = || {
        let drops = stream::iter(0..1_000).then(async |_| {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b" "))
        });
        let request = Request::post("/v1/sandboxes").header("content-type", "application/json");
        request.body(Body::from_stream(drops)).unwrap()
    };
    // More than there are places for.
    let answers = join_all((0..9).map(|_| host.send(drops()))).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(StatusCode::REQUEST_TIMEOUT), count(StatusCode::SERVICE_UNAVAILABLE)), (8, 1));
    let late = answers.iter().find(|answer| answer.status == StatusCode::REQUEST_TIMEOUT).unwrap();
    assert!(late.error().contains("too slowly"), "{}", late.body);
    let long = Body::from_stream(stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{}"))]));
    let request = Request::post("/v1/sandboxes").header("content-type", "application/json");
    assert_eq!(host.send(request.body(long).unwrap()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_host_without_keys_answers_no_web_page_but_its_own() {
    let host = Host::start(&[]).await;
    let from = |name: &str, origin: &str| {
        let request = Request::post("/v1/sandboxes").header("host", name).header("origin", origin);
        request.body(Body::empty()).unwrap()
    };
    let rebound = host.send(from("evil.example:7070", "http://evil.example:7070")).await;
    assert_eq!(rebound.status, StatusCode::FORBIDDEN);
    assert!(rebound.error().contains("PODFLARE_API_KEYS"), "{}", rebound.body);
    let foreign = host.send(from("127.0.0.1:7070", "http://evil.example")).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    foreign.error();
    let own = host.send(from("127.0.0.1:7070", "http://127.0.0.1:7070")).await;
    assert_eq!(own.status, StatusCode::OK);

    let keyed = Host::start(&["--api-keys", "pf_live_one"]).await;
    let request = Request::get("/v1/sandboxes").header("host", "sandboxes.example");
    let request = request.header("authorization", "Bearer pf_live_one").body(Body::empty()).unwrap();
    assert_eq!(keyed.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_host_with_keys_lets_nobody_else_in() {
    let host = Host::start(&["--api-keys", "pf_live_one,pf_live_two"]).await;
    let with = |value: &str| {
        Request::get("/v1/sandboxes").header("authorization", value).body(Body::empty()).unwrap()
    };
    let answer = host.get("/v1/sandboxes").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.error(), "missing Authorization: Bearer <key>");
    let answer = host.send(with("Bearer pf_live_three")).await;
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::UNAUTHORIZED, "invalid api key"));
    assert_eq!(host.send(with("Bearer pf_live_two")).await.status, StatusCode::OK);
    for open in ["/v1/healthz", "/openapi.json"] {
        assert_eq!(host.get(open).await.status, StatusCode::OK, "{open}");
    }
    for endpoint in ENDPOINTS.iter().filter(|endpoint| !endpoint.open) {
        let answer = host.send(request_to(endpoint.method, endpoint.path)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", endpoint.path);
    }
}

#[tokio::test]
async fn every_documented_endpoint_is_served() {
    let host = Host::start(&[]).await;
    for endpoint in ENDPOINTS {
        let answer = host.send(request_to(endpoint.method, endpoint.path)).await;
        assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{}", endpoint.path);
        assert!(!answer.body.contains("there is nothing at"), "{}", endpoint.path);
    }
    assert_eq!(host.get("/openapi.json").await.body, openapi::document());
}

#[tokio::test]
async fn every_answer_says_how_long_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let template = "mine".to_owned();
    put_template(folder.path(), &template);
    let host = Host::start(&["--template-dir", folder.path().to_str().unwrap(), "--auth-disabled"]).await;
    for endpoint in ENDPOINTS {
        let refused = host.send(request_to(endpoint.method, endpoint.path)).await;
        assert!(timing(&refused.headers).contains("total;dur="), "{}", endpoint.path);
        let id = host.create().await;
        let winner = host.fork(&id, 1).await.remove(0);
        let checkpoint = host.checkpoint(&id).await;
        let pty = host.exited_pty(&id).await;
        let key =
            host.post("/v1/keys", &json!({"tier": "pro"})).await.json()["id"].as_str().unwrap().to_owned();
        // Nobody is there to be told.
        let hook = json!({"url": "http://127.0.0.1:1/"});
        let webhook = host.post("/v1/webhooks", &hook).await.json()["id"].as_str().unwrap().to_owned();
        let frozen = host.create().await;
        let space = host.post(&format!("/v1/sandboxes/{frozen}/freeze"), &json!({})).await;
        let space = space.json()["id"].as_str().unwrap().to_owned();
        let archive = crate::spaces::exported(&host, &space).await;
        let names = [
            ("{id}", &id),
            ("{space}", &space),
            ("{parent}", &id),
            ("{winner}", &winner),
            ("{checkpoint}", &checkpoint),
            ("{name}", &template),
            ("{pty}", &pty),
            ("{key}", &key),
            ("{webhook}", &webhook),
        ];
        let path = names.iter().fold(endpoint.path.to_owned(), |path, (name, id)| path.replace(name, id));
        if path.ends_with("/files/watch") {
            // It has no end; files.rs looks at its head.
            continue;
        }
        host.put_file(&id, "/root/file", "content").await;
        let path = path + query_for(endpoint.path);
        let body = match endpoint.path.rsplit('/').next().unwrap() {
            "exec" => Some(json!({"code": "pass"})),
            "egress" => Some(json!({"egress": false})),
            "keys" if endpoint.method == Method::Post => Some(json!({"tier": "free"})),
            "webhooks" if endpoint.method == Method::Post => Some(hook),
            "restore" => Some(json!({"checkpoint": checkpoint})),
            "pty" if endpoint.method == Method::Post => Some(json!({"shellCmd": "exit 0"})),
            "input" => Some(json!({"data_b64": ""})),
            "resize" => Some(json!({"cols": 1, "rows": 1})),
            _ => None,
        };
        let answer = match body {
            None if path == "/v1/spaces/import" => crate::spaces::import(&host, archive).await,
            Some(body) if endpoint.method == Method::Put => host.put(&path, &body).await,
            Some(body) => host.post(&path, &body).await,
            None => host.send(request_to(endpoint.method, &path)).await,
        };
        assert!(answer.status.is_success(), "{path}: {}", answer.body);
        host.delete_at(&format!("/v1/webhooks/{webhook}")).await;
        let phase = match endpoint.path.rsplit('/').next().unwrap() {
            "exec" => "submit",
            "fork" | "restore" => "renew",
            "checkpoints" if endpoint.method == Method::Post => "pause",
            "ping" | "files" | "stat" | "list" | "mkdir" | "move" => "guest",
            "{winner}" => "swap",
            "{id}" if endpoint.method == Method::Delete => "remove",
            _ => "total",
        };
        let timing = timing(&answer.headers);
        assert!(
            timing.contains(&format!("{phase};dur=")) && timing.contains("total;dur="),
            "{path}: {timing}"
        );
    }
}

fn put_template(folder: &std::path::Path, name: &str) {
    let manifest = json!({
        "version": 1, "name": name, "rootfs": "rootfs.ext4", "ram_mib": 512, "vcpus": 1, "rootfs_gb": 4,
        "digest": "d", "built_at_ms": 1,
    });
    std::fs::create_dir(folder.join(name)).unwrap();
    std::fs::write(folder.join(name).join("template.json"), manifest.to_string()).unwrap();
    std::fs::write(folder.join(name).join("rootfs.ext4"), "disk").unwrap();
}

fn timing(headers: &HeaderMap) -> &str {
    headers["server-timing"].to_str().unwrap()
}

fn query_for(path: &str) -> &'static str {
    match path.rsplit('/').next().unwrap() {
        "files" | "stat" => "?path=/root/file",
        "list" => "?path=/root",
        "mkdir" => "?path=/root/folder",
        "move" => "?from=/root/file&to=/root/other",
        _ => "",
    }
}

fn request_to(method: Method, path: &str) -> Request<Body> {
    let path = path
        .replace("{id}", "a")
        .replace("{parent}", "b")
        .replace("{winner}", "c")
        .replace("{checkpoint}", "d")
        .replace("{name}", "e");
    let request = match method {
        Method::Get => Request::get(path),
        Method::Put => Request::put(path),
        Method::Patch => Request::patch(path),
        Method::Post => Request::post(path),
        Method::Delete => Request::delete(path),
    };
    request.body(Body::empty()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn only_a_few_long_bodies_are_read_at_once() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let path = format!("/v1/sandboxes/{id}/exec");
    let long = json!({"code": format!("#{}", "x".repeat(100_000))});
    let taken = host.app.long_bodies.acquire_many(8).await.unwrap();
    let answer = host.post(&path, &long).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "5");
    assert!(answer.error().contains("long bodies"), "{}", answer.body);
    assert_eq!(host.post(&path, &json!({"code": "pass"})).await.status, StatusCode::OK);
    drop(taken);
    assert_eq!(host.post(&path, &long).await.status, StatusCode::OK);
}
