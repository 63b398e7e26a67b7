//! Where the platform keeps its files on this machine, and where its programs are.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Images, state, and what is known of the running host.
    pub home: PathBuf,
    /// Holds `podflare-vmm`, `podflare-hostd` and `podflare-agent`.
    pub programs: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    #[error("Cannot tell where to keep files; set PODFLARE_HOME")]
    NoHome,
    #[error("Cannot find the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
}

impl Places {
    /// What is not given is the user's data directory, and the directory of the running program.
    pub fn resolve(home: Option<PathBuf>, programs: Option<PathBuf>) -> Result<Places, PlacesError> {
        let home = match home {
            Some(home) => home,
            None => {
                default_home(env::var_os("XDG_DATA_HOME"), env::var_os("HOME")).ok_or(PlacesError::NoHome)?
            }
        };
        let programs = match programs {
            Some(programs) => programs,
            None => directory_of_this_program()?,
        };
        Ok(Places { home: absolute(home)?, programs: absolute(programs)? })
    }

    pub fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

fn default_home(data: Option<OsString>, user: Option<OsString>) -> Option<PathBuf> {
    let filled = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = filled(data).or_else(|| Some(filled(user)?.join(".local/share")))?;
    Some(data.join("podflare"))
}

fn directory_of_this_program() -> Result<PathBuf, PlacesError> {
    let failed = |source| PlacesError::Directory { path: "of this program".into(), source };
    let program = env::current_exe().map_err(failed)?;
    Ok(program.parent().unwrap_or(Path::new("/")).to_owned())
}

fn absolute(path: PathBuf) -> Result<PathBuf, PlacesError> {
    std::path::absolute(&path).map_err(|source| PlacesError::Directory { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_in_the_users_data_directory() {
        let home =
            |data: Option<&str>, user: Option<&str>| default_home(data.map(Into::into), user.map(Into::into));
        assert_eq!(home(Some("/data"), Some("/me")), Some("/data/podflare".into()));
        assert_eq!(home(Some(""), Some("/me")), Some("/me/.local/share/podflare".into()));
        assert_eq!(home(None, None), None);
    }

    #[test]
    fn a_given_place_is_made_absolute() {
        let places = Places::resolve(Some("state".into()), Some("/bin".into())).unwrap();
        assert!(places.home.is_absolute() && places.home.ends_with("state"));
        assert_eq!(places.program("x"), Path::new("/bin/x"));
    }
}
