//! Whether a finished root has what the agent and every sandbox need.

use super::chamber::Chamber;
use super::root::Root;
use crate::error::BuildError;
use crate::tool::ToolError;
use std::path::Path;

/// Programs, and the Debian packages that have them: what runs code, and what `bash` code cannot do without.
const PROGRAMS: [(&str, &str); 5] = [
    ("bash", "bash"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
    ("cat", "coreutils"),
    ("env", "coreutils"),
];

/// As the agent has it, unless the template says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The agent starts this one, wherever else there may be others.
const BASH: &str = "bin/bash";

/// What the REPL is written for and with (crates/agent/src/repl/repl.py).
const PYTHON: &str = "import ast, collections, contextlib, fcntl, linecache, os, select, signal, struct, sys, \
    traceback, types, typing; sys.exit(sys.version_info < (3, 10) and 'Python is older than 3.10')";

/// In the chamber, where a syntax error is found in a second and not when a guest has booted.
const COMPILE: &str = "import sys; compile(sys.argv[1], 'startup.python', 'exec')";

/// Names all programs that are missing.
pub(crate) fn programs(name: &str, root: &Path, path: Option<&str>) -> Result<(), BuildError> {
    let root = Root::open(root).map_err(BuildError::file("open", root))?;
    let is_there = |program: &str| {
        let mut places = path.unwrap_or(PATH).split(':').filter(|place| place.starts_with('/'));
        match program {
            "bash" => root.has_program(BASH),
            _ => places.any(|place| root.has_program(&format!("{place}/{program}"))),
        }
    };
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !is_there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ");
    let mut packages: Vec<String> = missing.iter().map(|(_, package)| format!("{package:?}")).collect();
    packages.dedup();
    let remedy = match root.has_program("usr/bin/apt-get") {
        true => format!("packages = [{}] adds it", packages.join(", ")),
        false => "it has no apt to add it by, so install it in the image that the archive is made of".into(),
    };
    Err(BuildError::Lacking { name: name.to_owned(), what, remedy })
}

/// Starts the image's Python.
pub(crate) fn python(name: &str, chamber: &Chamber<'_>, startup: &str) -> Result<(), BuildError> {
    let run = |code: &str, argument: &str| {
        chamber.run(r#"python3 -c "$1" "$2""#, &[code.to_owned(), argument.to_owned()], None)
    };
    run(PYTHON, "").map_err(|error| BuildError::Lacking {
        name: name.to_owned(),
        what: format!("a Python for the REPL ({})", last_line(&error)),
        remedy: "packages = [\"python3\"] adds Debian's".into(),
    })?;
    run(COMPILE, startup).map_err(|source| BuildError::Step {
        step: "compile the start-up code".into(),
        key: Some("startup.python".into()),
        source,
    })
}

fn last_line(error: &ToolError) -> String {
    error.to_string().lines().last().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn put(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        symlink("usr/bin", root.path().join("bin")).unwrap();
        for program in ["bash", "cat", "env", "apt-get"] {
            put(root.path(), &format!("usr/bin/{program}"));
        }
        let text = programs("mine", root.path(), None).unwrap_err().to_string();
        assert!(text.contains("mine lacks python3, setpriv,"), "{text}");
        assert!(text.ends_with("packages = [\"python3\", \"util-linux\"] adds it"), "{text}");
    }

    #[test]
    fn links_are_followed_as_in_the_guest_and_never_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        for program in ["bash", "cat", "env", "setpriv", "python3.13"] {
            put(root.path(), &format!("usr/bin/{program}"));
        }
        let python = root.path().join("usr/bin/python3");
        symlink("/usr/bin/python3.13", &python).unwrap();
        programs("mine", root.path(), None).unwrap();
        fs::remove_file(&python).unwrap();
        // This machine has one.
        symlink("../../../../../../../../bin/sh", &python).unwrap();
        assert!(programs("mine", root.path(), None).is_err());
    }

    #[test]
    fn a_path_of_its_own_is_searched() {
        let root = tempfile::tempdir().unwrap();
        for program in ["bin/bash", "opt/bin/python3", "bin/setpriv", "bin/cat", "bin/env"] {
            put(root.path(), program);
        }
        assert!(programs("mine", root.path(), None).is_err());
        programs("mine", root.path(), Some("/opt/bin:/bin")).unwrap();
    }
}
