//! What becomes of a connection when an answer and a request's body do not end together.

use crate::host::Host;
use podflare_hostd::http::serve;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// More than any buffer on the way holds.
const LONG_LEN: usize = 64 << 20;

const DEADLINE: Duration = Duration::from_secs(60);

async fn listen(host: &Host) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, host.router(), std::future::pending()));
    address
}

/// Sends all of a request before it reads anything, as many clients do, and reads to the connection's end.
async fn answer(address: SocketAddr, head: &str, body_len: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("{head} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {body_len}\r\n");
    stream.write_all(format!("{head}content-type: application/json\r\n\r\n").as_bytes()).await?;
    let part = vec![b' '; 1 << 20];
    for _ in 0..body_len / part.len() {
        stream.write_all(&part).await?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn who_sends_a_long_body_for_nothing_reads_why() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let address = listen(&host).await;
    host.put_file(&id, "/root/folder/file", "").await;
    for (head, status, reason) in [
        ("PUT /v1/sandboxes/none/files?path=/root/file".to_owned(), "404", "sandbox not found"),
        (format!("PUT /v1/sandboxes/{id}/files?path=/root/folder"), "409", "EISDIR"),
        (format!("PUT /v1/sandboxes/{id}/files?path=/full/file"), "507", "ENOSPC"),
        (format!("PUT /v1/sandboxes/{id}/files?path="), "400", "path is empty"),
        ("POST /v1/sandboxes".to_owned(), "413", "limit"),
    ] {
        let answer = timeout(DEADLINE, answer(address, &head, LONG_LEN)).await.unwrap();
        let answer = answer.unwrap_or_else(|error| panic!("{head}: {error}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        assert!(answer.contains(reason), "{head}: {answer}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_does_not_seem_whole() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let address = listen(&host).await;
    for (name, framing, end) in [
        ("sized", "content-length: 131072", "\r\n\r\n"),
        ("unsized", "transfer-encoding: chunked", "0\r\n\r\n"),
    ] {
        let head = format!("GET /v1/sandboxes/{id}/files?path=/broken/{name}");
        let answer = timeout(DEADLINE, answer(address, &head, 0)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(framing), "{answer:.300}");
        assert!(!answer.ends_with(end) && answer.len() < 100_000, "{name} ends as if it were whole");
        assert!(answer.ends_with("xxxx") || answer.ends_with("xxxx\r\n"), "{answer:.300}");
    }
}
