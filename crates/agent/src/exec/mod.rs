//! What runs code: a `bash` for each execution, and the one Python REPL.

pub(crate) mod bash;
pub(crate) mod repl;

mod environment;

use podflare_wire::guest::ExecContext;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, chdir, fchdir, getrlimit, prlimit, setrlimit};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use tokio::process::{Child, Command};

/// The environment of all code, and of the agent itself.
pub(crate) const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
];

/// When memory runs out the kernel ends user code first, and the agent never.
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
const OOM_SCORE_ADJ_AGENT: &str = "-1000";
const OOM_SCORE_ADJ_CODE: &str = "500";

/// Where and within what user code starts. The directory is the agent's own, and so inherited: a
/// command that names one is started with fork(2), whose copied pages cost more than all else here.
#[derive(Debug)]
pub(crate) struct Workplace {
    home: PathBuf,
    /// The same, also when it has another name, or none.
    home_directory: OwnedFd,
    standing: Standing,
}

/// An execution cannot have the directory that it was to have.
#[derive(Debug, thiserror::Error)]
#[error("The directory {cwd} cannot be entered: {error}")]
pub(crate) struct EnterError {
    cwd: String,
    error: Errno,
}

/// What the kernel lets the agent have, and user code not. Processes inherit it, so it is laid down
/// while one is started: taken from a process that runs already, its first children might keep it.
#[derive(Debug)]
struct Standing {
    oom_score_adj: File,
    oom_score_adj_agent: String,
    open_files_code: Rlimit,
    open_files_agent: Rlimit,
}

impl Workplace {
    /// Also makes the agent itself hard to starve: it holds two pipes for each execution that has
    /// left a process in the background, and must survive what user code does to the memory.
    pub(crate) fn new(home: &Path) -> io::Result<Workplace> {
        std::env::set_current_dir(home)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let home_directory = open(".", flags, Mode::empty())?;
        Ok(Workplace { home: home.to_owned(), home_directory, standing: Standing::raised()? })
    }

    /// Does something in the directory of an execution, if it has one of its own. One that starts a process there
    /// is not named in its command, as above.
    pub(crate) fn within<T>(
        &self,
        context: &ExecContext,
        act: impl FnOnce(&Workplace) -> T,
    ) -> Result<T, EnterError> {
        let Some(cwd) = &context.cwd else { return Ok(act(self)) };
        chdir(cwd.as_str()).map_err(|error| EnterError { cwd: cwd.clone(), error })?;
        let result = act(self);
        fchdir(&self.home_directory)
            .map_err(|error| EnterError { cwd: self.home.display().to_string(), error })?;
        Ok(result)
    }

    /// A command with the environment of user code, and no input.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(ENVIRONMENT).envs(environment::of_machine()).env("HOME", &self.home);
        command.stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, Pid)> {
        let child = self.standing.laid_down(|| command.spawn())?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("It has no process id"))?;
        // Fails only for a process that has ended already.
        prlimit(Some(pid), Resource::Nofile, self.standing.open_files_code).ok();
        Ok((child, pid))
    }
}

impl Standing {
    fn raised() -> io::Result<Standing> {
        let oom_score_adj = File::options().read(true).write(true).open(OOM_SCORE_ADJ)?;
        let open_files_code = getrlimit(Resource::Nofile);
        let open_files_agent = Rlimit { current: open_files_code.maximum, maximum: open_files_code.maximum };
        // Refused to an unprivileged development server, which stays as it is.
        oom_score_adj.write_all_at(OOM_SCORE_ADJ_AGENT.as_bytes(), 0).ok();
        let oom_score_adj_agent = std::fs::read_to_string(OOM_SCORE_ADJ)?;
        let standing = Standing { oom_score_adj, oom_score_adj_agent, open_files_code, open_files_agent };
        standing.limit_open_files(open_files_agent);
        Ok(standing)
    }

    fn laid_down<T>(&self, mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.set_oom_score_adj(OOM_SCORE_ADJ_CODE);
        self.limit_open_files(self.open_files_code);
        let mut started = start();
        self.limit_open_files(self.open_files_agent);
        if started.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::MFILE.raw_os_error())) {
            // The agent itself has more files open than that.
            started = start();
        }
        self.set_oom_score_adj(&self.oom_score_adj_agent);
        started
    }

    fn set_oom_score_adj(&self, value: &str) {
        // Fails only where raising it has failed before.
        self.oom_score_adj.write_all_at(value.as_bytes(), 0).ok();
    }

    fn limit_open_files(&self, limit: Rlimit) {
        // The hard limit stays, within which everybody may choose.
        setrlimit(Resource::Nofile, limit).ok();
    }
}

/// Signals a process group. One that has ended meanwhile needs no signal.
pub(crate) fn signal_group(leader: Pid, signal: Signal) {
    rustix::process::kill_process_group(leader, signal).ok();
}

/// The exit code as shells say it: the status, or 128 and the signal.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
