//! Connections: accepted up to a limit, cut when nothing comes of them, seen to their end at shutdown.

use super::limits::{CONNECTIONS_MAX, HEAD_TIMEOUT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};
use super::linger::{lend, linger};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

/// The pause after a connection could not be accepted, for want of descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves until `stop` resolves, and then until all answers have been taken.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let server = server();
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let (stream, place) = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut stop => break,
        };
        let begun = Arc::new(Notify::new());
        let begins = begun.clone();
        let service = router.clone().map_request(move |request| {
            begins.notify_one();
            request
        });
        let (stream, mut left) = lend(stream);
        let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            let whole = see_through(connection, &begun).await;
            // An answer that has broken off is cut: its client is to see that.
            if whole && let Ok(stream) = left.try_recv() {
                linger(stream).await;
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

fn server() -> Builder<TokioExecutor> {
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE_IDLE);
    server
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = set_options(&stream) {
                    tracing::warn!(%error, "Could not set a connection's options");
                }
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "Could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// Whether all that was asked on a connection has been answered to its end.
///
/// The server's own time limits begin when it knows which HTTP it speaks: the first request has one here.
async fn see_through<E: Into<Box<dyn Error + Send + Sync>>>(
    connection: impl Future<Output = Result<(), E>>,
    begun: &Notify,
) -> bool {
    let mut connection = pin!(connection);
    let result = tokio::select! {
        // What has arrived counts, also in the last moment.
        biased;
        result = &mut connection => result,
        first = timeout(HEAD_TIMEOUT, begun.notified()) => match first {
            Ok(()) => connection.await,
            Err(_) => return false,
        },
    };
    match result {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(error = %error.into(), "A connection broke");
            false
        }
    }
}
