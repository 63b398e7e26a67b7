//! Rounds of create, fork, merge and close, and a count of all that a host could leave behind after them.

use crate::cost::{HostMemory, ProcessMemory};
use crate::host::Host;
use crate::processes::{descriptor_count, frozen, of_program, thread_count};
use crate::wait::until;
use podflare_api::id::SandboxId;
use std::fmt;

const VMM: &str = "podflare-vmm";

/// A hostd with a pool of one, and the VMM processes that were there before it.
#[derive(Debug)]
pub struct Rounds {
    pub host: Host,
    others: Vec<u32>,
    template: u32,
}

/// What there is when nothing is under way.
#[derive(Debug, Clone, Copy)]
pub struct Census {
    pub vmms: usize,
    pub descriptors: usize,
    pub threads: usize,
    pub state_files: usize,
    pub sandboxes: usize,
    pub hostd_resident_kib: u64,
    pub template_resident_kib: u64,
    /// The whole kernel's, other programs' part included.
    pub slab_kib: i64,
}

impl Rounds {
    /// Starts a host and lets it do everything once, so that what is made only once is there.
    ///
    /// # Panics
    /// When something goes wrong; so do the others.
    pub fn start() -> Rounds {
        let others = of_program(VMM);
        let host = Host::start(1);
        host.rest();
        let template = until("the template's process", || {
            (host.pool_ready() == 1).then(|| frozen(&new_vmms(&others)))?.first().copied()
        });
        let rounds = Rounds { host, others, template };
        rounds.run(2, |_| {});
        rounds
    }

    /// Rounds of all kinds in turn: with and without a merge, and with a fork while the source is deleted.
    pub fn run(&self, count: u32, mut done: impl FnMut(u32)) {
        for number in 0..count {
            self.round(number % 2 == 0, number % 4 < 2);
            done(number + 1);
        }
    }

    fn round(&self, merge: bool, race: bool) {
        let host = &self.host;
        let parent = host.create();
        host.start_python(&parent, "import time\nwhile True: print(time.time()); time.sleep(0.01)");
        let (mut children, _) = host.fork(&parent, 2);
        if merge {
            host.merge(&parent, &children[0]).expect("a merge");
        }
        if race {
            children.extend(self.fork_while_it_is_deleted(&parent));
        }
        for id in children.iter().chain([&parent]) {
            host.delete(id);
        }
    }

    /// The children, if the fork came first.
    fn fork_while_it_is_deleted(&self, id: &SandboxId) -> Vec<SandboxId> {
        let host = &self.host;
        std::thread::scope(|scope| {
            scope.spawn(|| host.delete(id));
            match host.try_fork(id, 2) {
                Ok((children, _)) => children,
                Err(refusal) => {
                    assert_eq!(refusal.status, 404, "{refusal:?}");
                    Vec::new()
                }
            }
        })
    }

    /// Counts as soon as the host is at rest: the template and one pool member are left. Descriptors are waited for
    /// until there are no more than before.
    pub fn census(&self, before: Option<&Census>) -> Census {
        until("the pool to be at its target", || {
            (self.host.pool_ready() == 1 && new_vmms(&self.others).len() == 2).then_some(())
        });
        let hostd = self.host.process.id();
        until("hostd's descriptors to be closed", || {
            before.is_none_or(|before| descriptor_count(hostd) <= before.descriptors).then_some(())
        });
        Census {
            vmms: new_vmms(&self.others).len(),
            descriptors: descriptor_count(hostd),
            threads: thread_count(hostd),
            state_files: self.host.state_files(),
            sandboxes: self.host.list().len(),
            hostd_resident_kib: ProcessMemory::of(hostd).resident,
            template_resident_kib: ProcessMemory::of(self.template).resident,
            slab_kib: HostMemory::now().kib("Slab"),
        }
    }
}

impl Census {
    /// Whether nothing that can be counted one by one has become more.
    pub fn has_no_more_than(&self, before: &Census) -> bool {
        self.vmms <= before.vmms
            && self.descriptors <= before.descriptors
            && self.state_files <= before.state_files
            && self.sandboxes == 0
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} VMM processes, {} sandboxes, {} state files; hostd: {} descriptors, {} threads, {} KiB resident; \
             template: {} KiB resident; kernel slab: {} KiB",
            self.vmms,
            self.sandboxes,
            self.state_files,
            self.descriptors,
            self.threads,
            self.hostd_resident_kib,
            self.template_resident_kib,
            self.slab_kib
        )
    }
}

fn new_vmms(others: &[u32]) -> Vec<u32> {
    of_program(VMM).into_iter().filter(|pid| !others.contains(pid)).collect()
}
