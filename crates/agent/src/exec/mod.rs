//! What runs code: a `bash` for each execution, and the one Python REPL.

pub(crate) mod bash;
pub(crate) mod repl;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use tokio::process::{Child, Command};

/// The environment of all code, and of the agent itself.
pub(crate) const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
];

/// When memory runs out the kernel ends user code first, and the agent never.
const OOM_SCORE_ADJ_AGENT: &str = "-1000";
const OOM_SCORE_ADJ_CODE: &str = "500";

/// Where and within what user code starts. The directory is the agent's own, and so inherited: a
/// command that names one is started with fork(2), whose copied pages cost more than all else here.
#[derive(Debug)]
pub(crate) struct Workplace<'a> {
    home: &'a Path,
    open_files: Rlimit,
}

impl<'a> Workplace<'a> {
    /// Also makes the agent itself hard to starve: it holds two pipes for each execution that has
    /// left a process in the background, and must survive what user code does to the memory.
    pub(crate) fn new(home: &'a Path) -> io::Result<Workplace<'a>> {
        std::env::set_current_dir(home)?;
        let open_files = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: open_files.maximum, maximum: open_files.maximum };
        // Neither is possible for an unprivileged development server, and it needs neither.
        setrlimit(Resource::Nofile, raised).ok();
        std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ_AGENT).ok();
        Ok(Workplace { home, open_files })
    }

    /// A command with the environment of user code, and no input.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(ENVIRONMENT).env("HOME", self.home);
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Starts the command, then takes from it what it must not inherit from the agent.
    fn spawn(&self, command: &mut Command) -> io::Result<(Child, Pid)> {
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("It has no process id"))?;
        // Both fail only for a process that has ended already.
        std::fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_pid()), OOM_SCORE_ADJ_CODE).ok();
        prlimit(Some(pid), Resource::Nofile, self.open_files).ok();
        Ok((child, pid))
    }
}

/// Signals a process group. One that has ended meanwhile needs no signal.
fn signal_group(leader: Pid, signal: Signal) {
    rustix::process::kill_process_group(leader, signal).ok();
}

/// The exit code as shells say it: the status, or 128 and the signal.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
