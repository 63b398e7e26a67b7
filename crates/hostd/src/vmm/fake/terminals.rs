//! The terminals of a fake guest: the real protocol over programs that echo what is typed.
//!
//! Typing `exit CODE` ends a program, and `size` shows the terminal's; one that is called `exit CODE` ends at once, and
//! `broken` does not start. One that is called `deaf` reads nothing, and `stall` brings its guest to a stand.

use super::{Core, stand_still_if_so};
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::guest::excerpt;
use podflare_wire::limits::TERMINAL_REQUEST_LEN_MAX;
use podflare_wire::terminal::{Cause, Chunk, Command, Event, Request, Size, Terminal};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Duration, Instant, timeout_at};

/// A terminal, with all of its output.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    listed: Terminal,
    size: Size,
    output: Vec<u8>,
}

/// Serves one connection until it ends.
pub(super) async fn serve(mut stream: DuplexStream, core: &Arc<Core>) {
    let Some(request) = receive(&mut stream).await else { return };
    stand_still_if_so(core).await;
    let event = match request {
        Request::Create { terminal, program } => {
            let label = match &program.command {
                Command::Shell(line) => line.clone(),
                Command::Argv(arguments) => arguments.join(" "),
            };
            if label == "broken" {
                Event::Failed { cause: Cause::Unable, message: "it is broken".to_owned() }
            } else {
                let label = excerpt(&label).to_owned();
                let exit_code = exit(&label);
                let listed = Terminal { terminal: terminal.clone(), label, created_at_ms: 1, exit_code };
                let mut output = Vec::new();
                for (name, value) in &program.env {
                    output.extend(format!("{name}={value}\r\n").bytes());
                }
                core.guest().stands_still |= listed.label == "stall";
                core.guest().terminals.push(Fake { listed, size: program.size, output });
                return follow(&mut stream, core, &terminal).await;
            }
        }
        Request::Attach { terminal } => return follow(&mut stream, core, &terminal).await,
        Request::Read { terminal, since_seq, len_max, timeout_ms } => {
            read(core, &terminal, since_seq, len_max, timeout_ms).await
        }
        Request::Input { terminal, .. } if is_deaf(core, &terminal) => {
            Event::Failed { cause: Cause::Unread, message: "it reads nothing".to_owned() }
        }
        Request::Input { terminal, data } => change(core, &terminal, |fake| fake.take(&data)),
        Request::Resize { terminal, size } => change(core, &terminal, |fake| fake.size = size),
        Request::Kill { terminal } => change(core, &terminal, |fake| {
            fake.listed.exit_code.get_or_insert(137);
        }),
        Request::List => {
            Event::Terminals(core.guest().terminals.iter().map(|fake| fake.listed.clone()).collect())
        }
    };
    say(&mut stream, &event).await;
}

impl Fake {
    fn take(&mut self, data: &[u8]) {
        self.output.extend(data);
        if let Some(code) = exit(std::str::from_utf8(data).unwrap_or_default()) {
            self.listed.exit_code = Some(code);
        } else if data == b"size" {
            self.output.extend(format!(" {}x{}", self.size.cols, self.size.rows).bytes());
        }
    }
}

fn is_deaf(core: &Core, name: &str) -> bool {
    core.guest().terminals.iter().any(|fake| fake.listed.terminal == name && fake.listed.label == "deaf")
}

fn exit(text: &str) -> Option<i32> {
    text.trim().strip_prefix("exit ")?.parse().ok()
}

fn change(core: &Core, name: &str, change: impl FnOnce(&mut Fake)) -> Event {
    let event = match core.guest().terminals.iter_mut().find(|fake| fake.listed.terminal == name) {
        Some(fake) => {
            change(fake);
            Event::Done
        }
        None => not_found(),
    };
    core.typed.send_replace(());
    event
}

async fn follow(stream: &mut DuplexStream, core: &Core, name: &str) {
    let mut changes = core.typed.subscribe();
    let mut place = 0;
    let mut is_ready = false;
    loop {
        changes.borrow_and_update();
        let Some((output, exit_code)) = output(core, name) else {
            say(stream, &not_found()).await;
            return;
        };
        if !is_ready {
            say(stream, &Event::Ready).await;
            is_ready = true;
        }
        if output.len() > place {
            say(stream, &Event::Output { seq: place as u64, data: output[place..].to_vec() }).await;
            place = output.len();
        }
        if let Some(exit_code) = exit_code {
            say(stream, &Event::Exited { exit_code }).await;
            return;
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = stream.read_u8() => return,
        }
    }
}

async fn read(core: &Core, name: &str, since_seq: u64, len_max: u32, timeout_ms: u32) -> Event {
    let deadline = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    let mut changes = core.typed.subscribe();
    loop {
        changes.borrow_and_update();
        let Some((output, exit_code)) = output(core, name) else { return not_found() };
        let since = usize::try_from(since_seq).unwrap_or(usize::MAX);
        let Some(rest) = output.get(since..) else {
            return Event::Failed { cause: Cause::Invalid, message: "beyond the end".to_owned() };
        };
        let waits = rest.is_empty() && exit_code.is_none();
        if !waits || timeout_at(deadline, changes.changed()).await.is_err() {
            let data = rest[..rest.len().min(len_max as usize)].to_vec();
            let exit_code = exit_code.filter(|_| data.len() == rest.len());
            let next_seq = since_seq + data.len() as u64;
            return Event::Chunk(Chunk { data, next_seq, exit_code, truncated: false });
        }
    }
}

fn output(core: &Core, name: &str) -> Option<(Vec<u8>, Option<i32>)> {
    let guest = core.guest();
    let fake = guest.terminals.iter().find(|fake| fake.listed.terminal == name)?;
    Some((fake.output.clone(), fake.listed.exit_code))
}

fn not_found() -> Event {
    Event::Failed { cause: Cause::NotFound, message: "terminal not found".to_owned() }
}

async fn receive(stream: &mut DuplexStream) -> Option<Request> {
    let mut frames = FrameReader::new(TERMINAL_REQUEST_LEN_MAX);
    let mut bytes = vec![0; 16 * 1024];
    loop {
        if let Some(request) = frames.next_message().ok()? {
            return Some(request);
        }
        let len = stream.read(&mut bytes).await.ok().filter(|len| *len > 0)?;
        frames.push(&bytes[..len]);
    }
}

async fn say(stream: &mut DuplexStream, event: &Event) {
    // hostd may have gone; the next read notices.
    stream.write_all(&encode_frame(event)).await.ok();
}
