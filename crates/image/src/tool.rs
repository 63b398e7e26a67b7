//! The distribution's programs that the builds call, and how to get one that is missing.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

/// What everyone needs who builds images.
const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "tar", package: "tar" },
    Tool { program: "gzip", package: "gzip" },
    // With it mmdebstrap finds out which keys a mirror's packages are signed with.
    Tool { program: "gpg", package: "gpg" },
    Tool { program: "strip", package: "binutils" },
    // Runs a new root's own programs, shut in.
    Tool { program: "bwrap", package: "bubblewrap" },
    Tool { program: "lz4", package: "lz4" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "zstd", package: "zstd" },
];

/// What an ordinary user needs besides, to set the owners of files.
const USER_MAPPER: Tool = Tool { program: "newuidmap", package: "uidmap" };
const NAMESPACE_MAKER: Tool = Tool { program: "unshare of util-linux 2.38", package: "util-linux" };

/// The tools that building images needs and this machine lacks.
pub fn missing() -> Vec<Tool> {
    let is_missing = |tool: &&Tool| find(tool.program).is_none();
    let mut missing: Vec<Tool> = TOOLS.iter().filter(is_missing).copied().collect();
    if !rustix::process::geteuid().is_root() {
        missing.extend(Some(USER_MAPPER).filter(|tool| is_missing(&tool)));
        missing.extend((!unshare_maps_ranges()).then_some(NAMESPACE_MAKER));
    }
    missing
}

/// Older ones map a single user, to whom all files of a root directory cannot belong.
fn unshare_maps_ranges() -> bool {
    let help = Command::new("unshare").arg("--help").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--map-auto"))
}

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("The program {program} is missing; install it (Debian and Ubuntu: apt-get install {package})")]
    Missing { program: String, package: &'static str },
    #[error("Cannot run {program}")]
    Spawn { program: String, source: io::Error },
    #[error("{program} failed ({status}): {complaint}")]
    Failed { program: String, status: String, complaint: String },
    #[error("Cannot lay on {what} for the programs of the image")]
    LayOn { what: String, source: io::Error },
}

/// In both cases of their letters.
const NETWORK_VARIABLES: [&str; 6] =
    ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "apt_config"];

/// How much of a failed program's complaint is worth repeating.
const COMPLAINT_LINES: usize = 12;
const TAIL_BYTES: usize = 64 * 1024;

/// Where administrators' programs are, which are not on every user's `PATH`.
const ADMINISTRATION: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The path of a program, if this machine has it.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(ADMINISTRATION.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Where one of the tools is.
pub(crate) fn path(program: &str) -> Result<PathBuf, ToolError> {
    find(program).ok_or_else(|| {
        let package = TOOLS.iter().find(|tool| tool.program == program).map_or("it", |tool| tool.package);
        ToolError::Missing { program: program.to_owned(), package }
    })
}

/// A command for one of the tools.
pub(crate) fn command(program: &str) -> Result<Command, ToolError> {
    let mut command = Command::new(path(program)?);
    with_own_environment(&mut command).stdin(Stdio::null());
    Ok(command)
}

/// What a program of this machine has of the environment while images are built: where programs and temporary
/// files are, and nothing that an image says.
pub(crate) fn with_own_environment(command: &mut Command) -> &mut Command {
    let kept = ["HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
    command.env_clear().envs(kept).env("PATH", search_path()).env("LANG", "C.UTF-8")
}

/// Lets it reach the network as programs of this machine do.
pub(crate) fn with_network(command: &mut Command) -> &mut Command {
    let names = NETWORK_VARIABLES.iter().flat_map(|name| [(*name).to_owned(), name.to_ascii_uppercase()]);
    command
        .envs(names.filter_map(|name| Some((env::var_os(&name)?, name))).map(|(value, name)| (name, value)))
}

/// Runs to the end and keeps what was written to standard output.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    let program = name(command);
    let output = command.output().map_err(|source| ToolError::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = last_lines(&String::from_utf8_lossy(&output.stderr), COMPLAINT_LINES);
    Err(ToolError::Failed { program, status: output.status.to_string(), complaint })
}

/// Runs to the end. Of whatever it writes, on standard output or error, only the end is kept, for a complaint.
pub(crate) fn run(command: &mut Command) -> Result<(), ToolError> {
    let program = name(command);
    let failed = |source| ToolError::Spawn { program: program.clone(), source };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let stderr = writer.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer).stderr(stderr);
    let mut child = command.spawn().map_err(failed)?;
    // Only the child has the pipe's other end from now on.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = Tail::default();
    let read = io::copy(&mut reader, &mut tail);
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let complaint = last_lines(&String::from_utf8_lossy(&tail.0), COMPLAINT_LINES);
    Err(ToolError::Failed { program, status: status.to_string(), complaint })
}

/// The end of what is written to it.
#[derive(Default)]
struct Tail(Vec<u8>);

impl io::Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * TAIL_BYTES {
            self.0.drain(..self.0.len() - TAIL_BYTES);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The directories in which a tool finds the tools that it calls itself.
pub(crate) fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(ADMINISTRATION.map(PathBuf::from));
    env::join_paths(directories).unwrap_or(path)
}

fn name(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        assert_eq!(find("no-such-program"), None);
        let text = command("no-such-program").unwrap_err().to_string();
        assert!(text.contains("no-such-program is missing"), "{text}");
    }

    #[test]
    fn of_endless_output_only_the_end_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "yes | head -c 10000000; echo the last words >&2; exit 3"]);
        let text = run(&mut command).unwrap_err().to_string();
        assert!(text.ends_with("y\nthe last words") && text.len() < 1000, "{text}");
        run(Command::new("sh").args(["-c", "echo fine"])).unwrap();
    }

    #[test]
    fn a_failure_repeats_the_end_of_the_complaint() {
        let mut command = Command::new("sh");
        command.args(["-c", "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo line $n >&2; done; exit 3"]);
        let text = output(&mut command).unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("line 14"), "{text}");
        assert!(!text.contains("line 2\n"), "{text}");
    }
}
