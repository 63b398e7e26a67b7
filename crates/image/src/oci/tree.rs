//! The files of all layers so far, as a tree in memory. Links are resolved in it, and so never leave it.

use super::OciError;
use super::layer::{self, Entry, Kind, PATH_LEN_MAX, plain_path};
use std::collections::BTreeMap;
use std::fs::File;

/// Files, directories and links, also those that a later layer has taken away.
const NODES_MAX: u64 = 2_000_000;
/// Names, links and attributes in memory.
const NAMES_BYTES_MAX: u64 = 256 << 20;
/// As many as the kernel follows.
const LINKS_FOLLOWED_MAX: usize = 40;

const WHITEOUT: &[u8] = b".wh.";
/// Hides all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Notes of AUFS to itself.
const AUFS: &[u8] = b".wh..wh.";

const ROOT: NodeId = 0;

type NodeId = usize;
/// Names of a directory.
pub(crate) type Names = BTreeMap<Vec<u8>, NodeId>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permissions only.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: u64,
    pub(crate) attributes: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
pub(crate) enum Contents {
    Directory(Names),
    /// In the unpacked layer of this number.
    File {
        layer: usize,
        offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) contents: Contents,
    /// Hard links have been made to it.
    pub(crate) is_shared: bool,
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    names_bytes: u64,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: vec![directory()], names_bytes: 0 }
    }
}

/// One that nothing is said of.
fn directory() -> Node {
    let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, attributes: Vec::new() };
    Node { meta, contents: Contents::Directory(Names::new()), is_shared: false }
}

impl Tree {
    pub(crate) fn root(&self) -> NodeId {
        ROOT
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Puts a layer, an unpacked tar file, on top.
    pub(crate) fn apply(&mut self, unpacked: &File, layer: usize) -> Result<(), OciError> {
        let what = format!("layer {layer}");
        // First what it hides, which is never its own.
        layer::each(unpacked, &what, &mut |entry| self.hide(&entry))?;
        layer::each(unpacked, &what, &mut |entry| self.add(entry, layer))
    }

    fn hide(&mut self, Entry { path, .. }: &Entry) -> Result<(), OciError> {
        let names = plain_path(path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(()) };
        let Some(directory) = self.find(parents)? else { return Ok(()) };
        let Contents::Directory(names) = &mut self.nodes[directory].contents else { return Ok(()) };
        if *name == OPAQUE {
            names.clear();
        } else if !name.starts_with(AUFS) {
            names.remove(hidden);
        }
        Ok(())
    }

    fn add(&mut self, Entry { path, kind, meta }: Entry, layer: usize) -> Result<(), OciError> {
        let names = plain_path(&path)?;
        let Some((name, parents)) = names.split_last() else {
            self.nodes[ROOT].meta = meta;
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return Ok(());
        }
        let parent = self.find_or_make(parents)?;
        let existing = self.names(parent).get(*name).copied();
        let contents = match kind {
            Kind::Directory => {
                if let Some(id) = existing
                    && matches!(self.nodes[id].contents, Contents::Directory(_))
                {
                    self.nodes[id].meta = meta;
                    return Ok(());
                }
                Contents::Directory(Names::new())
            }
            Kind::File { offset, size } => Contents::File { layer, offset, size },
            Kind::Symlink(target) => Contents::Symlink(checked_target(target)?),
            Kind::Fifo => Contents::Fifo,
            Kind::HardLink(target) => {
                let id = self.linked(&target)?;
                return self.put(parent, name, id);
            }
            // The guest's kernel makes its own.
            Kind::Device => {
                self.names_mut(parent).remove(*name);
                return Ok(());
            }
        };
        let id = self.make(Node { meta, contents, is_shared: false })?;
        self.put(parent, name, id)
    }

    /// What a hard link leads to, which is not followed if it is a link itself.
    fn linked(&mut self, target: &[u8]) -> Result<NodeId, OciError> {
        let refuse = |reason: &str| {
            let target = String::from_utf8_lossy(target).into_owned();
            OciError::malformed("layer", format!("a hard link leads to {target:?}, {reason}"))
        };
        let names = plain_path(target)?;
        let (name, parents) = names.split_last().ok_or_else(|| refuse("the root"))?;
        let parent = self.find(parents)?.ok_or_else(|| refuse("which is not there"))?;
        let id = self.names(parent).get(*name).copied().ok_or_else(|| refuse("which is not there"))?;
        if matches!(self.nodes[id].contents, Contents::Directory(_)) {
            return Err(refuse("a directory"));
        }
        self.nodes[id].is_shared = true;
        Ok(id)
    }

    /// The directory of these names; none if it is not there.
    fn find(&mut self, names: &[&[u8]]) -> Result<Option<NodeId>, OciError> {
        self.walk(names, false)
    }

    fn find_or_make(&mut self, names: &[&[u8]]) -> Result<NodeId, OciError> {
        let found = self.walk(names, true)?;
        found.ok_or_else(|| {
            let path = String::from_utf8_lossy(&names.join(&b'/')).into_owned();
            OciError::malformed("layer", format!("{path:?} is a file, and something is to lie below it"))
        })
    }

    /// Follows links on the way as the guest's kernel would, with the root above everything.
    fn walk(&mut self, names: &[&[u8]], make: bool) -> Result<Option<NodeId>, OciError> {
        // The next name last.
        let mut names: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut way = vec![ROOT];
        let mut followed = 0;
        while let Some(name) = names.pop() {
            let at = way[way.len() - 1];
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let id = match self.names(at).get(&name).copied() {
                Some(id) => id,
                None if make => {
                    let id = self.make(directory())?;
                    self.put(at, &name, id)?;
                    id
                }
                None => return Ok(None),
            };
            match &self.nodes[id].contents {
                Contents::Directory(_) => way.push(id),
                Contents::Symlink(target) => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED_MAX {
                        return Err(OciError::malformed("layer", "its links lead in circles"));
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    names.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Contents::File { .. } | Contents::Fifo => return Ok(None),
            }
        }
        Ok(Some(way[way.len() - 1]))
    }

    fn make(&mut self, node: Node) -> Result<NodeId, OciError> {
        if self.nodes.len() as u64 >= NODES_MAX {
            return Err(OciError::TooMuch { what: "files", max: NODES_MAX });
        }
        let attributes = node.meta.attributes.iter().map(|(name, value)| name.len() + value.len());
        let target = if let Contents::Symlink(target) = &node.contents { target.len() } else { 0 };
        self.count_names(attributes.sum::<usize>() + target)?;
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn put(&mut self, directory: NodeId, name: &[u8], id: NodeId) -> Result<(), OciError> {
        self.count_names(name.len())?;
        self.names_mut(directory).insert(name.to_vec(), id);
        Ok(())
    }

    fn count_names(&mut self, bytes: usize) -> Result<(), OciError> {
        self.names_bytes += bytes as u64;
        match self.names_bytes > NAMES_BYTES_MAX {
            true => Err(OciError::TooMuch { what: "bytes of names", max: NAMES_BYTES_MAX }),
            false => Ok(()),
        }
    }

    fn names(&self, id: NodeId) -> &Names {
        const NONE: &Names = &Names::new();
        if let Contents::Directory(names) = &self.nodes[id].contents { names } else { NONE }
    }

    /// Of a node that is a directory.
    fn names_mut(&mut self, id: NodeId) -> &mut Names {
        let contents = &mut self.nodes[id].contents;
        match contents {
            Contents::Directory(names) => names,
            _ => unreachable!("`walk` gives directories only"),
        }
    }
}

fn checked_target(target: Vec<u8>) -> Result<Vec<u8>, OciError> {
    match target.is_empty() || target.len() >= PATH_LEN_MAX || target.contains(&0) {
        true => Err(OciError::malformed("layer", "a link leads to no path")),
        false => Ok(target),
    }
}
