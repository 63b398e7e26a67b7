//! What the emulated host runs, and which of this machine's directories it sees: as the files that
//! `images/emulated-host/init` reads.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A program of this machine, run under the same path in the emulated host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// Where it runs, if not in `/`.
    pub directory: Option<PathBuf>,
}

/// A directory that the emulated host sees at the same absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub directory: PathBuf,
    pub access: Access,
}

/// What each side may do with a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No file ever changes under its name: the emulated host keeps what it has read. There may be new ones.
    Lasting,
    /// This machine may change it; the emulated host reads it anew each time.
    Changing,
    /// The emulated host may change it, too.
    Writable,
}

impl Access {
    /// For `images/emulated-host/init`.
    fn word(self) -> &'static str {
        match self {
            Access::Lasting => "lasting",
            Access::Changing => "changing",
            Access::Writable => "writable",
        }
    }
}

impl Share {
    pub fn lasting(directory: &Path) -> Share {
        Share { directory: directory.to_owned(), access: Access::Lasting }
    }

    pub fn changing(directory: &Path) -> Share {
        Share { directory: directory.to_owned(), access: Access::Changing }
    }

    pub fn writable(directory: &Path) -> Share {
        Share { directory: directory.to_owned(), access: Access::Writable }
    }
}

/// The variables of this process that begin so, for a job that is to find them too.
pub fn environment_beginning_with(prefixes: &[&str]) -> Vec<(String, OsString)> {
    let wanted = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    // Others could not be written in a script.
    let has_shell_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| wanted(name) && has_shell_name(name))
        .collect()
}

/// The tag of the share at `index`.
pub(crate) fn tag(index: usize) -> String {
    format!("share{index}")
}

/// Writes the files of the share "job". `holder` is the command that keeps one virtual machine open.
pub(crate) fn write(
    directory: &Path,
    job: &Job,
    shares: &[Share],
    holder: Option<&[OsString]>,
) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("shares"), share_list(shares))?;
    fs::write(directory.join("job"), script(job))?;
    match holder {
        Some(command) => fs::write(directory.join("holder"), [b"exec", &words(command)[..], b"\n"].concat()),
        None => Ok(()),
    }
}

fn share_list(shares: &[Share]) -> Vec<u8> {
    let mut list = Vec::new();
    for (index, share) in shares.iter().enumerate() {
        list.extend_from_slice(format!("{} {} ", tag(index), share.access.word()).as_bytes());
        list.extend_from_slice(share.directory.as_os_str().as_bytes());
        list.push(b'\n');
    }
    list
}

fn script(job: &Job) -> Vec<u8> {
    let mut script = Vec::new();
    if let Some(directory) = &job.directory {
        script.extend_from_slice(b"cd");
        script.extend_from_slice(&words(&[directory.into()]));
        script.extend_from_slice(b" || exit 126\n");
    }
    for (name, value) in &job.environment {
        script.extend_from_slice(format!("export {name}=").as_bytes());
        script.extend_from_slice(&quoted(value));
        script.push(b'\n');
    }
    script.extend_from_slice(b"exec");
    script.extend_from_slice(&words(&[job.program.clone().into()]));
    script.extend_from_slice(&words(&job.arguments));
    script.push(b'\n');
    script
}

fn words(words: &[OsString]) -> Vec<u8> {
    words.iter().flat_map(|word| [b" ", &quoted(word)[..]].concat()).collect()
}

/// A word that the shell takes as it is.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_runs_the_script_with_every_word_unchanged() {
        let job = Job {
            program: "/usr/bin/printf".into(),
            arguments: ["%s|%s|", "it's $HOME", "two\nlines \"`"].map(OsString::from).to_vec(),
            environment: vec![("A".into(), "b 'c'".into())],
            directory: Some("/".into()),
        };
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script(&job))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's $HOME|two\nlines \"`|");
    }

    #[test]
    fn the_environment_reaches_the_program() {
        let job = Job {
            program: "/usr/bin/env".into(),
            environment: vec![("SOME_NAME".into(), "b 'c'".into())],
            ..Job::default()
        };
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script(&job))).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("SOME_NAME=b 'c'\n"));
    }

    #[test]
    fn shares_are_listed_with_their_tags() {
        let of = |path: &'static str| Path::new(path);
        let shares = [Share::lasting(of("/a b")), Share::changing(of("/c")), Share::writable(of("/d"))];
        let list = b"share0 lasting /a b\nshare1 changing /c\nshare2 writable /d\n";
        assert_eq!(share_list(&shares), list);
    }
}
