//! What an image holds, for people and for `podflare doctor`.

use crate::error::BuildError;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    pub(crate) distribution_release: String,
    pub(crate) kernel_release: String,
    /// Version by name of each package of the root disk.
    pub(crate) packages: BTreeMap<String, String>,
    /// SHA-256 by file name.
    pub(crate) digests: BTreeMap<String, String>,
}

impl Manifest {
    pub(crate) fn write(&self, path: &Path) -> Result<(), BuildError> {
        let mut text = serde_json::to_string_pretty(self).expect("plain strings always have a JSON form");
        text.push('\n');
        fs::write(path, text).map_err(BuildError::file("write", path))
    }
}

/// Reads dpkg's account: a paragraph of fields for each package.
pub(crate) fn package_versions(status: &str) -> BTreeMap<String, String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let package = |paragraph| Some((field(paragraph, "Package:")?, field(paragraph, "Version:")?));
    status.split("\n\n").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_versions_by_name() {
        let status = "Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n\
            Package: libc6\nVersion: 2.41\nDescription: x\n Package: no\n";
        let versions = package_versions(status);
        assert_eq!((versions.len(), &*versions["libc6"]), (2, "2.41"));
    }
}
