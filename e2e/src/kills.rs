//! A host that is killed again and again, at random moments of everything that it does to Spaces, and what must be
//! there each time that it is started again.

use crate::host::{Host, Refusal};
use crate::processes::of_program;
use crate::wait::until;
use podflare_api::id::{SandboxId, SpaceId};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const VMM: &str = "podflare-vmm";

/// A host lives for at most so long before it is killed.
const LIFE_MS_MAX: u64 = 6000;

/// Spaces beyond which a client removes some.
const SPACES_MAX: usize = 6;

/// The host, and what its client was told.
#[derive(Debug)]
pub struct Kills {
    host: Host,
    random: Random,
    /// VMMs of others.
    others: Vec<u32>,
    known: Known,
}

/// What a client knows of its Spaces.
#[derive(Debug, Default)]
struct Known {
    /// Spaces that are there for certain, each with what its `x` is.
    kept: BTreeMap<SpaceId, u64>,
    /// Spaces that are there or not, because nobody was told how something ended.
    open: BTreeMap<SpaceId, u64>,
    /// What a sandbox's `x` was when it was asked to be frozen, and no answer came.
    unanswered: BTreeMap<SandboxId, u64>,
    next: u64,
}

/// What rounds have come to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub rounds: u32,
    /// Spaces that were resumed after a kill, with the right content.
    pub resumed: u32,
    /// Of these, those whose freeze had not been answered.
    pub unannounced: u32,
}

impl Kills {
    /// # Panics
    /// When something goes wrong; so do the others.
    pub fn start(seed: u64) -> Kills {
        let others = of_program(VMM);
        let host = Host::start(1);
        host.rest();
        Kills { host, random: Random(seed), others, known: Known::default() }
    }

    /// One life of the host, and a look at what is there after it.
    pub fn round(&mut self, tally: &mut Tally) {
        let life = Duration::from_millis(self.random.below(LIFE_MS_MAX));
        let seed = self.random.next();
        let (host, known, is_dying) = (&self.host, &mut self.known, AtomicBool::new(false));
        let pid = rustix::process::Pid::from_raw(host.process.id().cast_signed());
        thread::scope(|scope| {
            let client = scope.spawn(|| use_until_gone(host, known, Random(seed), &is_dying));
            thread::sleep(life);
            is_dying.store(true, Ordering::SeqCst);
            let pid = pid.expect("a process has a number");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is our child");
            client.join().expect("the client");
        });
        self.host.process.wait().expect("it is our child");
        let others = &self.others;
        until("all machines to be gone", || {
            of_program(VMM).iter().all(|pid| others.contains(pid)).then_some(())
        });
        assert_eq!(self.host.state_files(), 0);
        self.host.start_again();
        self.look(tally);
        tally.rounds += 1;
    }

    /// What there is must be what is known, and good.
    fn look(&mut self, tally: &mut Tally) {
        let (host, known) = (&self.host, &mut self.known);
        assert_no_hidden(host.data_dir.path());
        let there = host.spaces();
        for id in known.kept.keys() {
            assert!(there.iter().any(|view| view.id == *id), "{id} is lost");
        }
        for view in there {
            let told = known.kept.get(&view.id).or_else(|| known.open.get(&view.id)).copied();
            let expected = told.or_else(|| known.unanswered.get(&view.sandbox).copied());
            let expected = expected.unwrap_or_else(|| panic!("nobody knows of {view:?}"));
            let sandbox = host.resume(&view.id, &json!({ "keep": true })).expect("a Space can be resumed");
            assert_eq!(value_of(host, &sandbox).expect("it runs"), expected, "{view:?}");
            host.delete(&sandbox);
            known.kept.insert(view.id, expected);
            tally.resumed += 1;
            tally.unannounced += u32::from(told.is_none());
        }
        known.open.clear();
        known.unanswered.clear();
    }
}

/// Does all kinds of things until the host answers no more.
fn use_until_gone(host: &Host, known: &mut Known, mut random: Random, is_dying: &AtomicBool) {
    let mut live = Vec::new();
    loop {
        match step(host, known, &mut live, &mut random) {
            Ok(()) => {}
            Err(refusal) if refusal.status == 0 && is_dying.load(Ordering::SeqCst) => return,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }
}

/// One thing. What is not known to have ended in one way or the other is noted before it is tried.
fn step(
    host: &Host,
    known: &mut Known,
    live: &mut Vec<(SandboxId, u64)>,
    random: &mut Random,
) -> Result<(), Refusal> {
    match random.below(6) {
        0 => {
            known.next += 1;
            let (id, value) = (host.try_create()?, known.next);
            host.python(&id, &format!("x = {value}; ballast = bytearray({value} % 7 << 20)"))?;
            live.push((id, value));
        }
        1 if !live.is_empty() => {
            let (parent, value) = random.pick(live).clone();
            let (children, _) = host.try_fork(&parent, 1)?;
            live.extend(children.into_iter().map(|child| (child, value)));
        }
        2 if live.len() > 1 => {
            let (parent, _) = random.take(live);
            let (winner, value) = random.take(live);
            host.merge(&parent, &winner)?;
            live.push((parent, value));
        }
        3 if !live.is_empty() => {
            let (id, value) = random.take(live);
            known.unanswered.insert(id.clone(), value);
            let space = host.freeze(&id)?;
            known.unanswered.remove(&id);
            known.kept.insert(space.id, value);
        }
        4 if !known.kept.is_empty() => {
            let (id, value) = known.one(random);
            let keep = random.below(2) == 0;
            if !keep {
                // It is there again when its sandbox is lost with the host.
                known.kept.remove(&id);
                known.open.insert(id.clone(), value);
            }
            let sandbox = host.resume(&id, &json!({ "keep": keep }))?;
            assert_eq!(value_of(host, &sandbox)?, value);
            live.push((sandbox, value));
        }
        _ if known.kept.len() > SPACES_MAX => {
            let (id, value) = known.one(random);
            known.kept.remove(&id);
            known.open.insert(id.clone(), value);
            host.delete_space(&id)?;
            known.open.remove(&id);
        }
        _ if live.len() > 3 => host.try_delete(&random.take(live).0)?,
        _ => {}
    }
    Ok(())
}

fn value_of(host: &Host, sandbox: &SandboxId) -> Result<u64, Refusal> {
    let output = host.python(sandbox, "print(x)")?;
    Ok(output.stdout.parse().unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

/// What is half written is removed at the start.
fn assert_no_hidden(data_dir: &Path) {
    for folder in ["spaces", "bases"] {
        let entries = std::fs::read_dir(data_dir.join(folder)).into_iter().flatten().flatten();
        let hidden = entries.map(|entry| entry.file_name()).filter(|name| name.as_encoded_bytes()[0] == b'.');
        // A template that is being kept is written again.
        let hidden: Vec<_> = hidden.filter(|_| folder == "spaces").collect();
        assert!(hidden.is_empty(), "{hidden:?}");
    }
}

impl Known {
    fn one(&self, random: &mut Random) -> (SpaceId, u64) {
        let kept: Vec<_> = self.kept.iter().collect();
        let (id, value) = random.pick(&kept);
        ((*id).clone(), **value)
    }
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap_or(1))).unwrap_or(0)
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.index(all.len())]
    }

    fn take<T>(&mut self, all: &mut Vec<T>) -> T {
        let index = self.index(all.len());
        all.swap_remove(index)
    }
}
