//! Whole files, in and out.

use super::draft::Draft;
use super::entry;
use super::path::{ends_in_slash, follow_links, shown};
use super::peer::{Outgoing, Peer};
use super::{Context, Outcome, Stop};
use podflare_wire::files::{Answer, Content, DATA_LEN_MAX, Entry, Range};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, stat};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MODE_NEW: u32 = 0o644;

/// Replaces a file by what hostd sends, or makes it.
pub(super) fn write(peer: &mut Peer, path: &Path, mode: Option<u32>) -> Outcome<Entry> {
    let target = follow_links(path)?;
    if ends_in_slash(&target) {
        return Err(Stop::new(Errno::ISDIR, shown(path)));
    }
    let folder = target.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).context(|| shown(folder))?;
    let before = entry::stat_if_any(&target)?;
    if let Some(before) = &before {
        must_be_file(&target, before)?;
    }
    let mut draft = Draft::create(folder)?;
    let mut buffer = vec![0; DATA_LEN_MAX];
    while let Some(chunk) = peer.next_chunk(&mut buffer)? {
        draft.write(chunk, &target)?;
    }
    let kept = before.as_ref().map(|before| before.st_mode & entry::MODE_MASK);
    if let Some(before) = &before {
        draft.set_owner(before.st_uid, before.st_gid).context(|| shown(&target))?;
    }
    // After the owner, whose change takes the set-id bits away.
    let mode = mode.map_or(kept.unwrap_or(MODE_NEW), |mode| mode & entry::MODE_MASK);
    draft.set_mode(mode).context(|| shown(&target))?;
    let stat = draft.publish(&target)?;
    Ok(entry::from_stat(&target, &stat))
}

/// Sends a file, or a part of it.
pub(super) fn read(peer: &mut Peer, path: &Path, range: Option<Range>) -> Outcome<()> {
    let (file, stat) = open(path)?;
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    // A size of 0 says nothing: so are those of /proc.
    let part = range.filter(|_| size > 0).map(|range| select(range, size, path)).transpose()?;
    let (entry, first) = (entry::from_stat(path, &stat), part.map_or(0, |(first, _)| first));
    send(peer, entry, part, |buffer, at| file.read_at(buffer, first + at).context(|| shown(path)))
}

/// Sends what `read` gives, which gets a buffer and where in the part its bytes are.
fn send(
    peer: &mut Peer,
    entry: Entry,
    part: Option<(u64, u64)>,
    read: impl Fn(&mut [u8], u64) -> Outcome<usize>,
) -> Outcome<()> {
    let mut sent = 0;
    let mut outgoing = Outgoing::new();
    let fill = |outgoing: &mut Outgoing, sent: u64, left: u64| {
        let len_max = usize::try_from(left).unwrap_or(usize::MAX);
        outgoing.fill(len_max, |buffer, at| read(buffer, sent + at as u64))
    };
    // Read before anything is told: of a file that ends within the first chunk, what was read is the length.
    let begun = fill(&mut outgoing, 0, part.map_or(u64::MAX, |(_, len)| len))? as u64;
    let len = match part {
        Some((_, len)) => Some(len),
        None if begun < DATA_LEN_MAX as u64 => Some(begun),
        None if entry.size >= begun => Some(entry.size),
        None => None,
    };
    let offset = part.map(|(first, _)| first);
    outgoing.begin_with(&Answer::Content(Content { entry, offset, len }));
    let end = len.unwrap_or(u64::MAX);
    let mut more = begun;
    while more > 0 && sent + more < end {
        sent += more;
        outgoing.send(peer)?;
        // A reason would be read as content. Without its end hostd knows that this is not the file.
        more = fill(&mut outgoing, sent, end - sent).map_err(|_| Stop::Gone)? as u64;
    }
    if len.is_some_and(|len| sent + more < len) {
        // It has become shorter, which is told in the same way.
        return Err(Stop::Gone);
    }
    outgoing.end();
    outgoing.send(peer)
}

fn open(path: &Path) -> Outcome<(File, Stat)> {
    // To open a pipe would wait, and to open a device might do something.
    must_be_file(path, &stat(path).context(|| shown(path))?)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty()).context(|| shown(path))?;
    let stat = fstat(&file).context(|| shown(path))?;
    must_be_file(path, &stat)?;
    Ok((file.into(), stat))
}

fn must_be_file(path: &Path, stat: &Stat) -> Outcome<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Stop::new(Errno::ISDIR, shown(path))),
        _ => Err(Stop::new(Errno::OPNOTSUPP, format!("{} is a pipe, a socket or a device", path.display()))),
    }
}

/// First byte and length of the part; the size is not 0.
fn select(range: Range, size: u64, path: &Path) -> Outcome<(u64, u64)> {
    let (first, last) = match range {
        Range::From { first } => (first, u64::MAX),
        Range::Between { first, last } => (first, last),
        Range::Suffix { len } => (size.saturating_sub(len), if len == 0 { 0 } else { u64::MAX }),
    };
    let nothing = matches!(range, Range::Suffix { len: 0 });
    let last = last.min(size - 1);
    if nothing || first > last {
        return Err(Stop::new(Errno::RANGE, format!("{} has {size} bytes", path.display())));
    }
    Ok((first, last - first + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_wire::codec::encode_frame;
    use podflare_wire::files::{CHUNK_PREFIX_LEN, Kind};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_file_that_cannot_be_read_on_has_no_end_and_no_reason_among_its_bytes() {
        let size = 3 * DATA_LEN_MAX as u64;
        let entry = Entry {
            path: b"/x".to_vec(),
            kind: Kind::File,
            size,
            mode: 0,
            uid: 0,
            gid: 0,
            inode: 1,
            modified_ns: 0,
            target: None,
        };
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let taken = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            ours.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut peer = Peer::new(theirs.into()).unwrap();
        let stopped = send(&mut peer, entry.clone(), None, |buffer, at| {
            if at < DATA_LEN_MAX as u64 { Ok(buffer.len()) } else { Err(Stop::new(Errno::IO, "/x")) }
        });
        assert!(matches!(stopped, Err(Stop::Gone)), "{stopped:?}");
        drop(peer);
        let head = encode_frame(&Answer::Content(Content { entry, offset: None, len: Some(size) }));
        assert_eq!(taken.join().unwrap().len(), head.len() + CHUNK_PREFIX_LEN + DATA_LEN_MAX);
    }

    #[test]
    fn a_range_is_cut_to_the_file() {
        let select = |range| select(range, 10, Path::new("/x")).ok();
        assert_eq!(select(Range::From { first: 3 }), Some((3, 7)));
        assert_eq!(select(Range::Between { first: 3, last: 3 }), Some((3, 1)));
        assert_eq!(select(Range::Between { first: 0, last: u64::MAX }), Some((0, 10)));
        assert_eq!(select(Range::Suffix { len: 4 }), Some((6, 4)));
        assert_eq!(select(Range::Suffix { len: 40 }), Some((0, 10)));
    }

    #[test]
    fn a_range_beyond_the_file_is_refused() {
        for range in [
            Range::From { first: 10 },
            Range::Between { first: 10, last: 20 },
            Range::Between { first: 3, last: 2 },
            Range::Suffix { len: 0 },
        ] {
            let stop = select(range, 10, Path::new("/x")).unwrap_err();
            assert!(matches!(stop, Stop::Failed(failure) if failure.errno == Errno::RANGE.raw_os_error()));
        }
    }
}
