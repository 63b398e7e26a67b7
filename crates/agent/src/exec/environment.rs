//! What a machine's administrator gives to all its code: `/etc/environment`, as login sessions read it.
//!
//! A template's own variables are there, and what the host tells its guests of the network.

use std::fs::File;
use std::io::Read;

const FILE: &str = "/etc/environment";
/// Whatever is beyond is not read.
const BYTES_MAX: u64 = 64 * 1024;

/// The variables as they are now; without the file there are none.
pub(super) fn of_machine() -> Vec<(String, String)> {
    let mut text = Vec::new();
    let read = File::open(FILE).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    String::from_utf8_lossy(&text).lines().filter_map(variable).collect()
}

/// `NAME=VALUE`, where the value may stand in quotes and `export` before it.
fn variable(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let unquoted = ['"', '\''].iter().find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let value = unquoted.unwrap_or(value);
    (is_name && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_set_a_variable_count() {
        let found = |line: &str| variable(line).map(|(name, value)| format!("{name}={value}"));
        assert_eq!(found("A=b=c d").as_deref(), Some("A=b=c d"));
        assert_eq!(found(" export A=\"b c\" ").as_deref(), Some("A=b c"));
        assert_eq!(found("A='\"'").as_deref(), Some("A=\""));
        assert_eq!(found("A=\"").as_deref(), Some("A=\""));
        for line in ["", "# A=b", "A", "=b", "A-B=c", "A=\0"] {
            assert_eq!(found(line), None, "{line:?}");
        }
    }
}
