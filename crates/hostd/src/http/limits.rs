//! Every bound on what clients may do to the HTTP server itself, in one place.

use podflare_wire::limits::CODE_LEN_MAX;
use std::time::Duration;

/// Connections at once; more wait to be accepted.
pub(super) const CONNECTIONS_MAX: usize = 4096;

/// How long a client may take for the head of a request, and how long a connection may lie idle.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long nothing may come of a request's body.
pub(super) const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes a second that a body of JSON comes with at least, after `BODY_IDLE_TIMEOUT`. It is held in memory meanwhile, and
/// a long one in a place that others wait for.
pub(super) const JSON_RATE_MIN: u64 = 64 * 1024;

/// How long what a client still sends is thrown away after it has been refused, and how long nothing of it may come. A
/// connection that were closed at once would be reset, and the reason lost.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may say nothing at all before it is asked whether it is there, and the time between two
/// questions. After `KEEPALIVE_PROBES` without an answer its connection is cut.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
pub(super) const KEEPALIVE_PROBES: u32 = 4;

/// The longest body of most requests, in bytes.
pub(super) const BODY_LEN_MAX: usize = 64 * 1024;

/// The longest body of an execution: its code, with room for what JSON must escape.
pub(super) const EXEC_BODY_LEN_MAX: usize = 2 * CODE_LEN_MAX;

/// The longest body about a terminal: its program, variables and directory, with room for what JSON must escape.
pub(super) const PTY_BODY_LEN_MAX: usize = 1024 * 1024;

/// Clients that are attached to terminals of this host's sandboxes, or wait for their output, at once: a part of
/// `CONNECTIONS_MAX`, so that others are always served. What is typed needs none of these places.
pub(crate) const TERMINAL_CLIENTS_MAX: usize = 1024;

/// Clients that follow the host's events at once.
pub(crate) const FOLLOWERS_MAX: usize = 64;

/// Bodies over `BODY_LEN_MAX`, or of unknown length, that are in memory at once, and how long one more waits.
pub(crate) const LONG_BODIES_MAX: usize = 8;
pub(super) const LONG_BODY_TURN_TIMEOUT: Duration = Duration::from_secs(8);
