//! Single programs of a distribution, with the shared libraries that they need, for an initramfs.

use crate::Progress;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::cpio::Archive;
use crate::debian;
use crate::definition::ProgramsDefinition;
use crate::error::BuildError;
use crate::tool;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PROGRAM_DIRECTORIES: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];
const LIBRARY_DIRECTORIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Where programs look for libraries, and where the kernel looks for what loads them.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
const LOADER_DIRECTORY: &str = "lib64";

/// Unpacked programs and their libraries, each in a directory of its own.
#[derive(Debug)]
pub(crate) struct Programs {
    directory: PathBuf,
}

pub(crate) fn key(release: &str, mirrors: &[String], definition: &ProgramsDefinition) -> Key {
    KeyBuilder::new()
        .bytes("release", release.as_bytes())
        .list("mirrors", mirrors)
        .list("packages", &definition.packages)
        .list("names", &definition.names)
        .finish()
}

impl Programs {
    pub(crate) fn build(
        cache: &Cache,
        release: &str,
        mirrors: &[String],
        definition: &ProgramsDefinition,
        progress: Progress<'_>,
    ) -> Result<Programs, BuildError> {
        let directory = cache.part("programs", &key(release, mirrors, definition), |part| {
            progress(&format!("fetching {}", definition.names.join(", ")));
            let tar = part.join("packages.tar");
            debian::unpack_packages(release, mirrors, &definition.packages, &tar)?;
            keep_what_is_needed(&tar, part, definition)
        })?;
        Ok(Programs { directory })
    }

    pub(crate) fn add_to(&self, archive: &mut Archive) -> Result<(), BuildError> {
        for (directory, target) in [("programs", "bin"), ("libraries", LIBRARIES)] {
            let directory = self.directory.join(directory);
            for entry in fs::read_dir(&directory).map_err(BuildError::file("list", &directory))? {
                let path = entry.map_err(BuildError::file("list", &directory))?.path();
                let contents = fs::read(&path).map_err(BuildError::file("read", &path))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name == LOADER {
                    archive.file(&format!("{LOADER_DIRECTORY}/{LOADER}"), 0o755, contents.clone());
                }
                archive.file(&format!("{target}/{name}"), 0o755, contents);
            }
        }
        Ok(())
    }
}

fn keep_what_is_needed(tar: &Path, part: &Path, definition: &ProgramsDefinition) -> Result<(), BuildError> {
    let unpacked = part.join("packages");
    let [programs, libraries] = ["programs", "libraries"].map(|name| part.join(name));
    for directory in [&unpacked, &programs, &libraries] {
        fs::create_dir(directory).map_err(BuildError::file("make", directory))?;
    }
    let mut unpack = tool::command("tar")?;
    unpack.args(["--extract", "--no-same-owner", "--exclude=./dev", "--file"]).arg(tar);
    tool::output(unpack.arg("--directory").arg(&unpacked))?;

    let mut files = Vec::new();
    for name in &definition.names {
        let found = find(&unpacked, &PROGRAM_DIRECTORIES, name, definition)?;
        copy(&found, &programs.join(name))?;
        files.push(found);
    }
    let mut seen = BTreeSet::new();
    while let Some(file) = files.pop() {
        for library in needed_libraries(&file)? {
            if seen.insert(library.clone()) {
                let found = find(&unpacked, &LIBRARY_DIRECTORIES, &library, definition)?;
                copy(&found, &libraries.join(&library))?;
                files.push(found);
            }
        }
    }
    fs::remove_dir_all(&unpacked).map_err(BuildError::file("remove", &unpacked))?;
    fs::remove_file(tar).map_err(BuildError::file("remove", tar))
}

fn find(
    unpacked: &Path,
    directories: &[&str],
    name: &str,
    definition: &ProgramsDefinition,
) -> Result<PathBuf, BuildError> {
    let paths = directories.iter().map(|directory| unpacked.join(directory).join(name));
    paths.into_iter().find(|path| path.is_file()).ok_or_else(|| BuildError::NotInPackages {
        packages: definition.packages.clone(),
        wanted: name.to_owned(),
    })
}

/// Follows symbolic links: a library is asked for by the name of one.
fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::copy(from, to).map(drop).map_err(BuildError::file("copy", from))
}

fn needed_libraries(file: &Path) -> Result<Vec<String>, BuildError> {
    let headers = tool::output(tool::command("objdump")?.arg("--private-headers").arg(file))?;
    Ok(libraries_in(&String::from_utf8_lossy(&headers)))
}

fn libraries_in(headers: &str) -> Vec<String> {
    let needed = headers.lines().filter_map(|line| line.trim_start().strip_prefix("NEEDED"));
    needed.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_the_headers_name() {
        let headers = "Dynamic Section:\n  NEEDED               libnftables.so.1\n  NEEDED               \
            libc.so.6\n  INIT                 0x0000000000001000\n";
        assert_eq!(libraries_in(headers), ["libnftables.so.1", "libc.so.6"]);
    }
}
