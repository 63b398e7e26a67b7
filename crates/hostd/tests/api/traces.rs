//! Spans of requests, as a collector of OpenTelemetry gets them.

use crate::host::Host;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A collector, and the head and body of each request that comes to it.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut len) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    len = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; len];
            reader.read_exact(&mut body).unwrap();
            reader
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
            // The test may be over.
            sender.send((head, body)).ok();
        }
    });
    (url, requests)
}

fn has(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

async fn ask(host: &Host, path: &str, flags: &str) {
    let parent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
    let request = Request::get(path).header("traceparent", parent).body(Body::empty()).unwrap();
    assert_eq!(host.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_collector_gets_a_span_of_each_request_that_its_client_wants_told() {
    let (url, requests) = collector();
    let host = Host::start(&["--otlp-endpoint", &url, "--otlp-headers", "x-key=secret"]).await;
    ask(&host, "/v1/sandboxes", "01").await;
    ask(&host, "/v1/templates", "00").await;
    let app = host.app.clone();
    tokio::task::spawn_blocking(move || app.traces.finish()).await.unwrap();
    let (head, body) = requests.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(head.starts_with("POST /v1/traces ") && head.to_lowercase().contains("x-key: secret"), "{head}");
    assert!(has(&body, &u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes()));
    assert!(has(&body, b"GET /v1/sandboxes") && has(&body, b"podflare-hostd"));
    assert!(!has(&body, b"/v1/templates"));
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_nothing_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let host = Host::start(&["--otlp-endpoint", &url]).await;
    for _ in 0..100 {
        ask(&host, "/v1/sandboxes", "01").await;
    }
    // It has been sent nothing that it has taken.
    drop(listener);
}
