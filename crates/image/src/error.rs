//! What can go wrong while an image is built.

use crate::oci::OciError;
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
    Definition { name: String, source: Box<toml::de::Error> },
    #[error("{file}: {key}: {reason}")]
    Declaration { file: String, key: String, reason: String },
    #[error("{} is not a kernel that can be unpacked: {reason}", path.display())]
    Kernel { path: PathBuf, reason: &'static str },
    #[error("The packages {packages:?} hold no {wanted}")]
    NotInPackages { packages: Vec<String>, wanted: String },
    #[error("Kernel {release} has no module {module}; correct the definition's list of modules")]
    NoModule { release: String, module: String },
    #[error("{} cannot be the base of a template", path.display())]
    Oci { path: PathBuf, source: OciError },
    #[error("{} cannot be copied into a template: {reason}", path.display())]
    Source { path: PathBuf, reason: String },
    #[error("There is no template {name}; it was neither built here nor does it come with this program")]
    NoTemplate { name: String },
    #[error("The template {name} cannot be extended: {reason}")]
    Base { name: String, reason: String },
    #[error("Could not {step}{}", key.as_ref().map_or(String::new(), |key| format!(" ({key})")))]
    Step { step: String, key: Option<String>, source: ToolError },
    #[error(
        "The environment of template {name} is too large: at most {variables_max} variables, and {bytes_max} bytes in \
         /etc/environment, with what its base brings"
    )]
    Environment { name: String, variables_max: usize, bytes_max: u64 },
    #[error("The root of template {name} lacks {what}, which every sandbox needs: {remedy}")]
    Lacking { name: String, what: String, remedy: String },
}

impl BuildError {
    /// For `map_err`: names the file and what was being done with it.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
        let path = path.to_owned();
        move |source| BuildError::File { action, path, source }
    }
}
