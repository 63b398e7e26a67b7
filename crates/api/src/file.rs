//! Files of a sandbox.
//!
//! Paths travel in queries, where any bytes can be written. In answers they are text: bytes that are not UTF-8 appear as
//! U+FFFD, and then `encoded_path` has the path as a query takes it.

use serde::{Deserialize, Serialize};

/// What is known of a file, a directory or another entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileEntry {
    /// Absolute. Of a file that was written through a symbolic link: the file itself.
    pub path: String,
    /// The path as a query takes it; only where `path` cannot tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
    /// The last part of the path.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FileKind,
    pub size_bytes: u64,
    /// Permissions with the set-id and sticky bits, in octal: `"0644"`.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    /// Milliseconds since 1970-01-01 UTC, by the sandbox's clock.
    pub modified_at_ms: i64,
    /// What a symbolic link points to, as it is written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A pipe, a socket or a device.
    Special,
}

/// `GET /v1/sandboxes/{id}/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileList {
    /// By name, each before what is in it. Symbolic links are not followed.
    pub entries: Vec<FileEntry>,
    /// There are more: an answer has at most 100,000.
    pub truncated: bool,
}

/// One line of a watch's stream. Blank lines between events are heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileEvent {
    #[serde(rename = "type")]
    pub kind: FileEventKind,
    /// Of an overflow: what is watched.
    pub path: String,
    /// The path as a query takes it; only where `path` cannot tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
    pub is_directory: bool,
    /// The same number in `moved_from` and `moved_to` of one move; else 0.
    pub cookie: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileEventKind {
    /// Also of everything in a folder that is new; it may be told twice.
    Create,
    Modify,
    /// A file that was open for writing has been closed.
    CloseWrite,
    /// Permissions, owner or times have changed.
    Attributes,
    Delete,
    MovedFrom,
    MovedTo,
    /// Events were lost, or there are too many folders to watch: list to know what there is.
    Overflow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_no_keys_that_say_nothing() {
        let entry = FileEntry {
            path: "/root/a".into(),
            encoded_path: None,
            name: "a".into(),
            kind: FileKind::File,
            size_bytes: 1,
            mode: "0644".into(),
            uid: 0,
            gid: 0,
            modified_at_ms: 5,
            target: None,
        };
        let json = serde_json::json!({
            "path": "/root/a", "name": "a", "type": "file", "size_bytes": 1, "mode": "0644", "uid": 0, "gid": 0,
            "modified_at_ms": 5,
        });
        assert_eq!(serde_json::to_value(entry).unwrap(), json);
    }
}
