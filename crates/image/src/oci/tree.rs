//! The files of all layers so far, as a tree in memory. Links are resolved in it, and so never leave it.

use super::OciError;
use super::budget::{Budget, check_depth};
use super::layer::{self, Entry, Kind, PATH_LEN_MAX, plain_path};
use std::collections::BTreeMap;
use std::fs::File;

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
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: vec![directory()] }
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
    pub(crate) fn apply(
        &mut self,
        unpacked: &File,
        layer: usize,
        budget: &mut Budget,
    ) -> Result<(), OciError> {
        let what = format!("layer {layer}");
        // First what it hides, which is never its own. Its headers are charged once.
        layer::each(unpacked, &what, &mut budget.clone(), &mut |entry, budget| self.hide(&entry, budget))?;
        layer::each(unpacked, &what, budget, &mut |entry, budget| self.add(entry, layer, budget))
    }

    fn hide(&mut self, Entry { path, .. }: &Entry, budget: &mut Budget) -> Result<(), OciError> {
        let names = plain_path(path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(()) };
        let Some(directory) = self.find(parents, budget)? else { return Ok(()) };
        let Contents::Directory(names) = &mut self.nodes[directory].contents else { return Ok(()) };
        if *name == OPAQUE {
            names.clear();
        } else if !name.starts_with(AUFS) {
            names.remove(hidden);
        }
        Ok(())
    }

    fn add(
        &mut self,
        Entry { path, kind, meta }: Entry,
        layer: usize,
        budget: &mut Budget,
    ) -> Result<(), OciError> {
        let names = plain_path(&path)?;
        budget.attributes(&meta.attributes)?;
        let Some((name, parents)) = names.split_last() else {
            self.nodes[ROOT].meta = meta;
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return Ok(());
        }
        let parent = self.find_or_make(parents, budget)?;
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
            Kind::Symlink(target) => {
                budget.bytes(target.len())?;
                Contents::Symlink(checked_target(target)?)
            }
            Kind::Fifo => Contents::Fifo,
            Kind::HardLink(target) => {
                let id = self.linked(&target, budget)?;
                return self.put(parent, name, id, budget);
            }
            // The guest's kernel makes its own.
            Kind::Device => {
                self.names_mut(parent).remove(*name);
                return Ok(());
            }
        };
        let id = self.make(Node { meta, contents, is_shared: false });
        self.put(parent, name, id, budget)
    }

    /// What a hard link leads to, which is not followed if it is a link itself.
    fn linked(&mut self, target: &[u8], budget: &mut Budget) -> Result<NodeId, OciError> {
        let refuse = |reason: &str| {
            let target = String::from_utf8_lossy(target).into_owned();
            OciError::malformed("layer", format!("a hard link leads to {target:?}, {reason}"))
        };
        let names = plain_path(target)?;
        let (name, parents) = names.split_last().ok_or_else(|| refuse("the root"))?;
        let parent = self.find(parents, budget)?.ok_or_else(|| refuse("which is not there"))?;
        let id = self.names(parent).get(*name).copied().ok_or_else(|| refuse("which is not there"))?;
        if matches!(self.nodes[id].contents, Contents::Directory(_)) {
            return Err(refuse("a directory"));
        }
        self.nodes[id].is_shared = true;
        Ok(id)
    }

    /// The directory of these names; none if it is not there.
    fn find(&mut self, names: &[&[u8]], budget: &mut Budget) -> Result<Option<NodeId>, OciError> {
        self.walk(names, false, budget)
    }

    fn find_or_make(&mut self, names: &[&[u8]], budget: &mut Budget) -> Result<NodeId, OciError> {
        let found = self.walk(names, true, budget)?;
        found.ok_or_else(|| {
            let path = String::from_utf8_lossy(&names.join(&b'/')).into_owned();
            OciError::malformed("layer", format!("{path:?} is a file, and something is to lie below it"))
        })
    }

    /// Follows links on the way as the guest's kernel would, with the root above everything.
    fn walk(&mut self, names: &[&[u8]], make: bool, budget: &mut Budget) -> Result<Option<NodeId>, OciError> {
        // The next name last.
        let mut names: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut way = vec![ROOT];
        let mut followed = 0;
        while let Some(name) = names.pop() {
            budget.step()?;
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
                    let id = self.make(directory());
                    self.put(at, &name, id, budget)?;
                    id
                }
                None => return Ok(None),
            };
            match &self.nodes[id].contents {
                Contents::Directory(_) => {
                    check_depth(way.len())?;
                    way.push(id);
                }
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

    fn make(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn put(
        &mut self,
        directory: NodeId,
        name: &[u8],
        id: NodeId,
        budget: &mut Budget,
    ) -> Result<(), OciError> {
        budget.name(name)?;
        self.names_mut(directory).insert(name.to_vec(), id);
        Ok(())
    }

    /// None of a node that is no directory.
    pub(crate) fn names(&self, id: NodeId) -> &Names {
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
