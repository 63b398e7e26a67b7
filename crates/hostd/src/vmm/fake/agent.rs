//! The agent of a fake guest: the real guest protocol over a toy language, one statement a line.
//!
//! `print TEXT` · `error TEXT` · `partial TEXT` (no newline) · `set NAME TEXT` · `get NAME` · `hostname` ·
//! `entropy` · `sleep MS` · `flood BYTES` · `exit CODE` · `kill SIGNAL` · `panic` · `disk` (its file system's bytes) · `size` (its
//! memory and processors) · `attempt N` (succeeds the Nth time)
//! `env NAME` · `cwd` · `stdin` · `crash` (of the agent) ·
//! `stall` (of the guest) · `forge` (output of an execution that does not run) · `pass`, and what hostd runs in
//! a template: `print(1)` and `true`.

use super::{Core, World, stand_still_if_so, take_time};
use crate::vmm::Ending;
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::control::EndReason;
use podflare_wire::guest::{
    Event, ExecContext, ExecEnd, ExecId, Inherited, Language, OutputStream, PROTOCOL, ReplRenewal, Request,
    excerpt,
};
use podflare_wire::limits::{OUTPUT_CHUNK_LEN_MAX, OUTPUT_WINDOW_LEN, REQUEST_FRAME_LEN_MAX};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

type Writer = Arc<Mutex<WriteHalf<DuplexStream>>>;

/// An execution, as its requests can still reach it.
#[derive(Clone)]
struct Job {
    exec: ExecId,
    language: Language,
    code: String,
    context: ExecContext,
    announce: bool,
    window: Arc<Semaphore>,
    cancelled: Arc<Notify>,
}

impl Job {
    /// What a copy of the machine would say of it. A bash goes on unnoticed.
    fn as_inherited(&self) -> Option<Inherited> {
        (self.language == Language::Python).then(|| Inherited {
            language: self.language,
            excerpt: excerpt(&self.code).to_owned(),
            ran_ms: 0,
            timeout_ms: self.context.timeout_ms,
        })
    }

    async fn out_of_time(&self) {
        match self.context.timeout_ms {
            Some(timeout_ms) => tokio::time::sleep(Duration::from_millis(timeout_ms)).await,
            None => std::future::pending().await,
        }
    }
}

/// What code came to.
enum Outcome {
    Exited(i32, ExecEnd),
    /// The agent is to go away.
    Crash,
    /// The guest is to stand still, with its streams open.
    Stall,
    /// The whole guest is.
    Panic,
}

/// Serves one connection until it ends.
pub(super) async fn serve(stream: DuplexStream, core: &Arc<Core>) {
    stand_still_if_so(core).await;
    let (mut read, write) = tokio::io::split(stream);
    let writer = Arc::new(Mutex::new(write));
    let mut frames = FrameReader::new(REQUEST_FRAME_LEN_MAX);
    let first = next_request(&mut read, &mut frames).await;
    take_time(&core.world.renewal_time_ms).await;
    send(&writer, &Event::Hello { protocol: PROTOCOL }).await;
    match first {
        Some(Request::Renew(renewal)) if !core.refuses_renewal() => {
            let mut guest = core.guest();
            guest.hostname = renewal.hostname;
            guest.entropy = renewal.entropy;
        }
        _ => {
            send(&writer, &Event::Failed { message: "the renewal was refused".to_owned() }).await;
            return;
        }
    }
    let is_busy = World::takes(&core.world.renewals_to_leave_pending);
    let repl = if is_busy { ReplRenewal::Pending } else { ReplRenewal::Done };
    // What ran when the machine was copied runs until it is cancelled.
    let inherited = core.guest().running.clone();
    send(&writer, &Event::Renewed { repl, inherited }).await;
    core.guest().stands_still = World::takes(&core.world.renewals_to_stall_after);
    stand_still_if_so(core).await;

    let (jobs, queue) = mpsc::unbounded_channel();
    let requests = async {
        let mut open: HashMap<ExecId, Job> = HashMap::new();
        while let Some(request) = next_request(&mut read, &mut frames).await {
            stand_still_if_so(core).await;
            take(request, &mut open, &jobs, &writer, core).await;
        }
    };
    tokio::select! {
        () = requests => {}
        () = run_all(queue, &writer, core) => {}
    }
    stand_still_if_so(core).await;
}

async fn take(
    request: Request,
    open: &mut HashMap<ExecId, Job>,
    jobs: &mpsc::UnboundedSender<Job>,
    writer: &Writer,
    core: &Core,
) {
    match request {
        Request::Exec { exec, language, code, context, announce } => {
            let window = Arc::new(Semaphore::new(OUTPUT_WINDOW_LEN as usize));
            let job = Job { exec, language, code, context, announce, window, cancelled: Arc::default() };
            open.insert(exec, job.clone());
            jobs.send(job).ok();
        }
        Request::Grant { exec, bytes } => {
            if let Some(job) = open.get(&exec) {
                job.window.add_permits(bytes as usize);
            }
        }
        Request::Cancel { exec: ExecId::INHERITED } => {
            if core.guest().running.take().is_some() {
                let end = ExecEnd::Cancelled;
                send(writer, &Event::Exited { exec: ExecId::INHERITED, exit_code: 130, end }).await;
            }
        }
        Request::Cancel { exec } => {
            if let Some(job) = open.get(&exec) {
                job.cancelled.notify_one();
            }
        }
        Request::Ping { token } => send(writer, &Event::Pong { token }).await,
        Request::SetClock { .. } => {
            core.world.clocks_set.fetch_add(1, Ordering::SeqCst);
            send(writer, &Event::ClockSet).await;
        }
        Request::Renew(_) => {}
    }
}

async fn next_request(read: &mut ReadHalf<DuplexStream>, frames: &mut FrameReader) -> Option<Request> {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        if let Some(request) = frames.next_message().ok()? {
            return Some(request);
        }
        let len = read.read(&mut bytes).await.ok().filter(|len| *len > 0)?;
        frames.push(&bytes[..len]);
    }
}

async fn send(writer: &Writer, event: &Event) {
    // hostd may have gone; the reader notices.
    writer.lock().await.write_all(&encode_frame(event)).await.ok();
}

/// Runs executions one after the other; returns when the agent is to crash. An execution that only waits
/// for its reader delays no other.
async fn run_all(mut queue: mpsc::UnboundedReceiver<Job>, writer: &Writer, core: &Arc<Core>) {
    let mut deliveries = JoinSet::new();
    while let Some(job) = queue.recv().await {
        let (events, undelivered) = mpsc::unbounded_channel();
        deliveries.spawn(deliver(undelivered, job.window.clone(), writer.clone()));
        if job.announce {
            events.send(Event::Started { exec: job.exec }).ok();
        }
        core.guest().running = job.as_inherited();
        let outcome = tokio::select! {
            outcome = run(&job, &events, core) => outcome,
            () = job.cancelled.notified() => Outcome::Exited(130, ExecEnd::Cancelled),
            () = job.out_of_time() => Outcome::Exited(130, ExecEnd::TimedOut),
        };
        core.guest().running = None;
        if let Outcome::Exited(exit_code, end) = outcome {
            events.send(Event::Exited { exec: job.exec, exit_code, end }).ok();
            continue;
        }
        // What was said before leaves the guest.
        drop(events);
        while deliveries.join_next().await.is_some() {}
        match outcome {
            Outcome::Panic => {
                let console_tail = b"Kernel panic - not syncing: asked for".to_vec();
                core.end(Ending::Told { reason: EndReason::Reset, console_tail });
            }
            Outcome::Stall => core.guest().stands_still = true,
            Outcome::Crash | Outcome::Exited(..) => {}
        }
        return;
    }
}

/// Sends an execution's events as its reader makes room.
async fn deliver(mut events: mpsc::UnboundedReceiver<Event>, window: Arc<Semaphore>, writer: Writer) {
    while let Some(event) = events.recv().await {
        if let Event::Output { data, .. } = &event {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            if let Ok(permits) = window.acquire_many(len).await {
                permits.forget();
            }
        }
        send(&writer, &event).await;
    }
}

async fn run(job: &Job, events: &mpsc::UnboundedSender<Event>, core: &Arc<Core>) -> Outcome {
    let output = |stream, text: &str| {
        for data in text.as_bytes().chunks(OUTPUT_CHUNK_LEN_MAX) {
            events.send(Event::Output { exec: job.exec, stream, data: data.to_vec() }).ok();
        }
    };
    for statement in job.code.lines() {
        let (verb, rest) = statement.split_once(' ').unwrap_or((statement, ""));
        if let Some(text) = told(verb, rest, job, core) {
            output(OutputStream::Stdout, &text);
            continue;
        }
        match verb {
            "" | "pass" | "print(1)" | "true" => {}
            "get" => {
                let value = core.guest().variables.get(rest).cloned();
                let Some(value) = value else {
                    output(OutputStream::Stderr, &format!("no variable {rest}\n"));
                    return Outcome::Exited(1, ExecEnd::Finished);
                };
                output(OutputStream::Stdout, &format!("{value}\n"));
            }
            "attempt" => {
                let attempts = core.guest().attempt();
                if attempts < rest.parse().unwrap_or(0) {
                    output(OutputStream::Stdout, &format!("attempt {attempts} failed\n"));
                    return Outcome::Exited(1, ExecEnd::Finished);
                }
            }
            "set" => {
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                core.guest().variables.insert(name.to_owned(), value.to_owned());
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(rest.parse().unwrap_or(0))).await;
            }
            "exit" => return Outcome::Exited(rest.parse().unwrap_or(1), ExecEnd::Finished),
            "kill" => return Outcome::Exited(-1, ExecEnd::Killed { signal: rest.parse().unwrap_or(9) }),
            "forge" => {
                let data = b"of nobody\n".to_vec();
                events
                    .send(Event::Output { exec: ExecId(u32::MAX), stream: OutputStream::Stdout, data })
                    .ok();
            }
            "crash" => return Outcome::Crash,
            "panic" => return Outcome::Panic,
            "stall" => return Outcome::Stall,
            "error" => output(OutputStream::Stderr, &format!("{rest}\n")),
            unknown => {
                let text = format!("unknown statement {unknown:?}\n");
                output(OutputStream::Stderr, &text);
                return Outcome::Exited(1, ExecEnd::Finished);
            }
        }
    }
    Outcome::Exited(0, ExecEnd::Finished)
}

/// What a statement prints that does nothing else.
fn told(verb: &str, rest: &str, job: &Job, core: &Core) -> Option<String> {
    Some(match verb {
        "print" => format!("{rest}\n"),
        "partial" => rest.to_owned(),
        "hostname" => format!("{}\n", core.guest().hostname),
        "size" => core.guest().size(),
        "disk" => format!("{}\n", core.guest().file_system_bytes),
        "env" => {
            let entry = job.context.env.iter().find(|(name, _)| name == rest);
            format!("{}\n", entry.map_or("", |(_, value)| value))
        }
        "cwd" => format!("{}\n", job.context.cwd.as_deref().unwrap_or("/root")),
        "stdin" => format!("{}\n", String::from_utf8_lossy(&job.context.stdin)),
        "entropy" => format!("{:?}\n", core.guest().entropy),
        "flood" => flood_text(rest.parse().unwrap_or(0)),
        _ => return None,
    })
}

fn flood_text(len: usize) -> String {
    "0123456789abcde\n".chars().cycle().take(len).collect()
}
