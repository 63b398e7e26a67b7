//! The key of whoever runs the host on this machine: made once, kept beside the host's state, for nobody else to read.

use anyhow::{Context, ensure};
use podflare_emulated_host::places::Places;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

const PREFIX: &str = "pf_admin_";
const SECRET_BYTES: usize = 24;

/// The key of the host that was started here; none where none ever was.
pub(crate) fn read(places: &Places) -> anyhow::Result<Option<String>> {
    let path = path(places);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let key = text.trim().to_owned();
            ensure!(key.starts_with(PREFIX), "{} holds no key; remove it", path.display());
            Ok(Some(key))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("Cannot read {}", path.display())),
    }
}

/// The same, or a new one.
pub(crate) fn read_or_make(places: &Places) -> anyhow::Result<String> {
    if let Some(key) = read(places)? {
        return Ok(key);
    }
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret)?;
    let key = secret.iter().fold(PREFIX.to_owned(), |key, byte| format!("{key}{byte:02x}"));
    let path = path(places);
    let part = path.with_extension("part");
    // What a killed command has left is written anew.
    fs::remove_file(&part).or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(key.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    write().with_context(|| format!("Cannot make {}", path.display()))?;
    Ok(key)
}

fn path(places: &Places) -> PathBuf {
    places.home.join("admin-key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let places = Places::resolve(Some(home.path().to_owned()), Some("/bin".into())).unwrap();
        assert_eq!(read(&places).unwrap(), None);
        let key = read_or_make(&places).unwrap();
        assert_eq!(read_or_make(&places).unwrap(), key);
        assert_eq!(read(&places).unwrap(), Some(key));
        let mode = fs::metadata(path(&places)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_key_is_not_taken_for_one() {
        let home = tempfile::tempdir().unwrap();
        let places = Places::resolve(Some(home.path().to_owned()), Some("/bin".into())).unwrap();
        fs::write(path(&places), "").unwrap();
        assert!(read(&places).is_err());
    }
}
