//! What can go wrong while an image is built.

use crate::tool::ToolError;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("Cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("The definition {name} is not valid")]
    Definition { name: String, source: toml::de::Error },
    #[error("{} is not a kernel that can be unpacked: {reason}", path.display())]
    Kernel { path: PathBuf, reason: &'static str },
    #[error("The packages {packages:?} hold no {wanted}")]
    NotInPackages { packages: Vec<String>, wanted: String },
    #[error("Kernel {release} has no module {module}; correct the definition's list of modules")]
    NoModule { release: String, module: String },
}

impl BuildError {
    /// For `map_err`: names the file and what was being done with it.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
        let path = path.to_owned();
        move |source| BuildError::File { action, path, source }
    }
}
