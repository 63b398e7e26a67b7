//! Request bodies as streams, with a bound on how long nothing may come of them.

use super::limits::{BODY_IDLE_TIMEOUT, JSON_RATE_MIN};
use axum::body::{Body, Bytes};
use futures_util::stream::{self, Stream, StreamExt};
use std::error::Error;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// A body that does not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Late {
    #[error("nothing more of it came for {} s", BODY_IDLE_TIMEOUT.as_secs())]
    Stalled,
    #[error("it comes too slowly: send at least {} KiB a second", JSON_RATE_MIN / 1024)]
    Slow,
}

/// The body, broken off when its sender stands still.
pub(super) fn within_time(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send {
    stream::unfold(body.into_data_stream(), async |mut chunks| {
        let chunk = match timeout(BODY_IDLE_TIMEOUT, chunks.next()).await {
            Ok(chunk) => chunk?,
            Err(_) => Err(axum::Error::new(Late::Stalled)),
        };
        Some((chunk, chunks))
    })
}

/// The same, broken off also when it comes too slowly.
pub(super) fn at_a_pace(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send {
    let chunks = Box::pin(within_time(body));
    stream::unfold((chunks, Instant::now(), 0), async |(mut chunks, begun, received)| {
        let allowed = BODY_IDLE_TIMEOUT + Duration::from_secs(received / JSON_RATE_MIN);
        let chunk = match timeout_at(begun + allowed, chunks.next()).await {
            Ok(chunk) => chunk?,
            Err(_) => Err(axum::Error::new(if received == 0 { Late::Stalled } else { Late::Slow })),
        };
        let len = chunk.as_ref().map_or(0, Bytes::len);
        Some((chunk, (chunks, begun, received + len as u64)))
    })
}

/// Whether a body could not be read because it did not come.
pub(super) fn is_late(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| error.is::<Late>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// A body of as many chunks, one a second.
    fn body(chunk_len: usize, count: usize) -> Body {
        Body::from_stream(stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Late>(Bytes::from(vec![b' '; chunk_len]))
        }))
    }

    async fn outcome(body: impl Stream<Item = Result<Bytes, axum::Error>>) -> Result<usize, String> {
        let mut body = pin!(body);
        let mut len = 0;
        while let Some(chunk) = body.next().await {
            len += chunk.map_err(|error| error.to_string())?.len();
        }
        Ok(len)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_drops_is_broken_off_and_one_at_its_pace_is_not() {
        let begun = Instant::now();
        let slow = outcome(at_a_pace(body(1, 1000))).await.unwrap_err();
        assert!(slow.contains("too slowly"), "{slow}");
        assert!(begun.elapsed() <= BODY_IDLE_TIMEOUT + Duration::from_secs(1));
        let chunk_len = usize::try_from(JSON_RATE_MIN).unwrap();
        assert_eq!(outcome(at_a_pace(body(chunk_len, 100))).await, Ok(100 * chunk_len));
        assert_eq!(
            outcome(within_time(body(1, 1000))).await,
            Ok(1000),
            "files may come as slowly as they do"
        );
    }
}
