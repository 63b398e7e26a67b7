//! Archives that these tests make, sound ones and hostile ones.

use super::archive::Slice;
use super::manifest::Digest;
use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{Read, Write};
use tar::{Builder, EntryType, Header};

const MIB: u64 = 1 << 20;

/// An entry of a layer. Names are put there as they are, whatever they are.
fn entry(kind: EntryType, path: &[u8], link: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    let fields = header.as_ustar_mut().unwrap();
    fields.name[..path.len()].copy_from_slice(path);
    fields.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), contents].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str, contents: &str) -> Vec<u8> {
    entry(EntryType::Regular, path.as_bytes(), b"", contents.as_bytes())
}

fn directory(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path.as_bytes(), b"", b"")
}

fn symlink(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path.as_bytes(), target.as_bytes(), b"")
}

fn hard_link(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Link, path.as_bytes(), target.as_bytes(), b"")
}

/// An entry whose extended header has these records.
fn extended(records: &[(&str, &[u8])], entry: Vec<u8>) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    // Without the end of a tar file, which would stand between.
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    [bytes, entry].concat()
}

fn layer(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(Sha256::new().chain_update(bytes)).to_string().replace("sha256:", "")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &contents[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn configuration(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    json!({
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/opt/bin:/bin", "MODE=a=b", "broken", "BAD\n=x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// An OCI image layout whose blobs are packed by `pack`, and may be changed by `spoil` after they were digested.
fn layout(
    layers: &[Vec<u8>],
    pack: impl Fn(&[u8]) -> Vec<u8>,
    spoil: impl Fn(&str, Vec<u8>) -> Vec<u8>,
) -> Vec<u8> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec())];
    let mut blob = |kind: &str, contents: Vec<u8>| {
        let digest = hex(&contents);
        files.push((format!("blobs/sha256/{digest}"), spoil(kind, contents)));
        json!({"digest": format!("sha256:{digest}"), "size": 1, "mediaType": kind})
    };
    let packed: Vec<_> = layers.iter().map(|layer| blob("layer", pack(layer))).collect();
    let config = blob("config", configuration(layers));
    let manifest = blob("manifest", json!({"config": config, "layers": packed}).to_string().into_bytes());
    let mut named = manifest.clone();
    named["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = manifest.clone();
    other["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut attestation = manifest;
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = json!({"manifests": [other, attestation, named]}).to_string().into_bytes();
    let index = json!({"manifests": [blob("index", inner)]}).to_string().into_bytes();
    files.push(("index.json".to_owned(), index));
    archive_of(&files)
}

fn whole(_: &str, contents: Vec<u8>) -> Vec<u8> {
    contents
}

/// As older versions of `docker save` write it, with a layer that is a link to another.
fn saved(layers: &[Vec<u8>]) -> Vec<u8> {
    let config = configuration(layers);
    let config_name = format!("{}.json", hex(&config));
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": null, "Layers": names}]);
    let mut files =
        vec![("manifest.json".to_owned(), manifest.to_string().into_bytes()), (config_name, config)];
    files.extend(names.into_iter().zip(layers.iter().cloned()));
    archive_of(&files)
}

fn merged(archive: &[u8]) -> Result<(tempfile::TempDir, BTreeMap<String, String>), OciError> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("archive");
    fs::write(&path, archive).unwrap();
    let environment = merge(&path, home.path(), &home.path().join("merged.tar"), 16 * MIB)?;
    Ok((home, environment))
}

/// Path, kind, and contents or target, of all that comes of these layers.
fn contents(layers: &[Vec<u8>]) -> Result<Vec<(String, EntryType, String)>, OciError> {
    let (home, _) = merged(&layout(layers, <[u8]>::to_vec, whole))?;
    Ok(list(&home))
}

fn list(home: &tempfile::TempDir) -> Vec<(String, EntryType, String)> {
    let mut tar = tar::Archive::new(File::open(home.path().join("merged.tar")).unwrap());
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        match entry.link_name().unwrap() {
            Some(target) => text = target.display().to_string(),
            None => drop(entry.read_to_string(&mut text).unwrap()),
        }
        (path, entry.header().entry_type(), text)
    });
    entries.collect()
}

fn files_of(layers: &[Vec<u8>]) -> Vec<(String, String)> {
    let all = contents(layers).unwrap();
    all.into_iter().filter(|(_, kind, _)| !kind.is_dir()).map(|(path, _, text)| (path, text)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect()
}

fn refusal(layers: &[Vec<u8>]) -> String {
    contents(layers).unwrap_err().to_string()
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[
            directory("etc/"),
            file("etc/name", "lower"),
            file("./etc/kept", "kept"),
            directory("gone/"),
        ]),
        layer(&[file("etc/name", "upper"), file(".wh.gone", "")]),
    ]
}

const TWO_LAYERS: [(&str, &str); 2] = [("etc/kept", "kept"), ("etc/name", "upper")];

#[test]
fn all_forms_of_an_archive_give_the_same_root() {
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let layers = two_layers();
    let plain = layout(&layers, <[u8]>::to_vec, whole);
    let archives = [
        plain.clone(),
        layout(&layers, gzip, whole),
        layout(&layers, zstd, whole),
        saved(&layers),
        gzip(&plain),
    ];
    for archive in archives {
        let (home, environment) = merged(&archive).unwrap();
        let files: Vec<_> = list(&home).into_iter().filter(|(_, kind, _)| !kind.is_dir()).collect();
        let files: Vec<_> = files.into_iter().map(|(path, _, text)| (path, text)).collect();
        assert_eq!(files, pairs(&TWO_LAYERS));
        let variables = [("MODE", "a=b"), ("PATH", "/opt/bin:/bin")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(environment, BTreeMap::from(variables));
    }
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    for damaged in ["layer", "config", "manifest", "index"] {
        let spoil = |kind: &str, mut contents: Vec<u8>| {
            if kind == damaged {
                // Of a layer the end of the tar, of a document a blank: the meaning stays.
                contents.push(if kind == "layer" { 0 } else { b' ' });
            }
            contents
        };
        let error = merged(&layout(&two_layers(), <[u8]>::to_vec, spoil)).map(drop).unwrap_err();
        assert!(matches!(error, OciError::Digest { .. }), "{damaged}: {error}");
    }
    // What follows a compressed layer, and is not unpacked, is digested too.
    let spoil = |kind: &str, mut contents: Vec<u8>| {
        if kind == "layer" {
            contents.extend(gzip(b""));
        }
        contents
    };
    let error = merged(&layout(&two_layers(), gzip, spoil)).map(drop).unwrap_err();
    assert!(matches!(error, OciError::Digest { .. }), "{error}");
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for archive in [Vec::new(), b"no tar file".to_vec(), archive_of(&[("a".into(), Vec::new())])] {
        assert!(merged(&archive).is_err());
    }
    let twice = archive_of(&[("index.json".into(), b"{}".to_vec()), ("./index.json".into(), b"{}".to_vec())]);
    assert!(merged(&twice).unwrap_err().to_string().contains("twice"));
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": []}}).to_string();
    let manifest = json!([{"Config": "config", "Layers": []}]).to_string();
    let archive = archive_of(&[
        ("manifest.json".into(), manifest.into_bytes()),
        ("config".into(), config.into_bytes()),
    ]);
    assert!(matches!(merged(&archive), Err(OciError::Platform(platform)) if platform == "linux/arm64"));
}

#[test]
fn an_archive_with_several_images_is_refused() {
    let manifest = json!([{"Config": "a", "Layers": []}, {"Config": "b", "Layers": []}]).to_string();
    let archive = archive_of(&[("manifest.json".into(), manifest.into_bytes())]);
    assert!(matches!(merged(&archive), Err(OciError::Several(2))));
}

#[test]
fn a_whiteout_hides_lower_layers_and_nothing_of_its_own() {
    let lower = layer(&[file("a/one", "1"), file("a/two", "2"), file("b/one", "1"), file("b/deep/two", "2")]);
    let upper = layer(&[
        // Its own file comes before the whiteout that hides the lower one.
        file("a/one", "new"),
        file("a/.wh.one", ""),
        file("b/deep/own", "own"),
        file("b/.wh..wh..opq", ""),
        file("a/.wh..wh.plnk", ""),
    ]);
    let expected = [("a/one", "new"), ("a/two", "2"), ("b/deep/own", "own")];
    assert_eq!(files_of(&[lower, upper]), pairs(&expected));
}

#[test]
fn a_hard_link_outlives_the_name_that_it_was_made_from() {
    let lower = layer(&[file("one", "contents"), hard_link("two", "one"), hard_link("three", "./one")]);
    let upper = layer(&[file(".wh.one", "")]);
    let all = contents(&[lower, upper]).unwrap();
    let link = |path: &str, target: &str| (path.to_owned(), EntryType::Link, target.to_owned());
    let first = ("three".to_owned(), EntryType::Regular, "contents".to_owned());
    assert_eq!(all, [first, link("two", "three")]);
}

#[test]
fn a_layer_that_names_a_file_by_a_link_of_a_lower_one_means_the_same_file() {
    let lower = layer(&[file("usr/lib/a", "a"), symlink("lib", "usr/lib"), symlink("up", "../../../usr")]);
    let upper = layer(&[file("lib/b", "b"), file("up/lib/c", "c"), file("lib/.wh.a", "")]);
    let expected = [("lib", "usr/lib"), ("up", "../../../usr"), ("usr/lib/b", "b"), ("usr/lib/c", "c")];
    assert_eq!(files_of(&[lower, upper]), pairs(&expected));
}

#[test]
fn another_kind_of_file_takes_the_place_of_the_former_one() {
    let lower = layer(&[file("a/deep/file", "x"), symlink("b", "a"), file("c", "c")]);
    let upper = layer(&[file("a", "now a file"), directory("b"), directory("c"), file("c/in", "in")]);
    assert_eq!(files_of(&[lower, upper]), pairs(&[("a", "now a file"), ("c/in", "in")]));
}

#[test]
fn permissions_owners_and_attributes_stay() {
    let mut tool = entry(EntryType::Regular, b"tool", b"", b"tool");
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(&tool[..512]);
    header.set_mode(0o104_755);
    header.set_cksum();
    tool[..512].copy_from_slice(header.as_bytes());
    let capability = b"\x01\x00\x00\x02\n\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let records: [(&str, &[u8]); 5] = [
        ("uid", b"70000"),
        ("gid", b"7"),
        ("mtime", b"1234567890.5"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    let (home, _) = merged(&layout(&[layer(&[extended(&records, tool)])], <[u8]>::to_vec, whole)).unwrap();
    let merged = File::open(home.path().join("merged.tar")).unwrap();
    let mut found = Vec::new();
    layer::each(&merged, "merged", &mut Budget::default(), &mut |entry, _| {
        found.push(entry);
        Ok(())
    })
    .unwrap();
    let [layer::Entry { meta, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((meta.mode, meta.uid, meta.gid, meta.mtime_s), (0o4755, 70_000, 7, 1_234_567_890));
    assert_eq!(meta.attributes, [("security.capability".to_owned(), capability.to_vec())]);
}

#[test]
fn device_nodes_are_left_out() {
    let layers = [layer(&[
        entry(EntryType::Char, b"dev/null", b"", b""),
        entry(EntryType::Block, b"disk", b"", b""),
        entry(EntryType::Fifo, b"pipe", b"", b""),
    ])];
    assert_eq!(files_of(&layers), pairs(&[("pipe", "")]));
}

#[test]
fn names_that_lead_out_of_the_root_are_refused() {
    for path in ["../out", "a/../../out", "a/.."] {
        assert!(refusal(&[layer(&[file(path, "x")])]).contains("leads out"), "{path}");
    }
    assert!(refusal(&[layer(&[file("a", ""), hard_link("b", "../etc/passwd")])]).contains("leads out"));
    assert!(refusal(&[layer(&[hard_link("b", "/etc/passwd")])]).contains("not there"));
    assert_eq!(files_of(&[layer(&[file("/etc/absolute", "x")])]), pairs(&[("etc/absolute", "x")]));
}

#[test]
fn links_that_lead_out_of_the_root_end_in_it() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().display().to_string();
    let relative = format!("../../../../../../../../../..{target}");
    let layers = [
        layer(&[symlink("absolute", &target), symlink("relative", &relative)]),
        layer(&[file("absolute/one", "1"), file("relative/two", "2")]),
    ];
    let (home, _) = merged(&layout(&layers, <[u8]>::to_vec, whole)).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let inside = target.trim_start_matches('/');
    let paths: Vec<_> = list(&home).into_iter().map(|(path, _, _)| path).collect();
    assert!(
        paths.contains(&format!("{inside}/one")) && paths.contains(&format!("{inside}/two")),
        "{paths:?}"
    );
}

#[test]
fn links_in_circles_end() {
    let circle = [symlink("a", "b"), symlink("b", "a")];
    let refused = refusal(&[layer(&circle), layer(&[file("a/x", "")])]);
    assert!(refused.contains("circles"), "{refused}");
}

#[test]
fn a_file_below_a_file_is_refused() {
    assert!(refusal(&[layer(&[file("a", ""), file("a/b", "")])]).contains("below"));
}

#[test]
fn sizes_are_not_believed() {
    let claims = |size: &'static [u8]| refusal(&[layer(&[extended(&[("size", size)], file("a", "x"))])]);
    assert!(claims(b"18446744073709551615").contains("more than it has"));
    assert!(claims(b"99999999999999999999").contains("no number"));
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(2 * MIB);
    header.set_cksum();
    let bomb = [header.as_bytes().to_vec(), vec![b'a'; 2 << 20], file("a", "")].concat();
    assert!(refusal(&[bomb]).contains("bytes in a header"));
}

#[test]
fn a_layer_that_unpacks_to_too_much_is_refused_before_it_fills_the_disk() {
    let bomb = vec![0; 80 << 20];
    let error = merged(&layout(&[bomb], gzip, whole)).map(drop).unwrap_err();
    assert!(matches!(error, OciError::TooMuch { .. }), "{error}");
    let big = "x".repeat(9 << 20);
    let error = refusal(&[layer(&[file("a", &big), file("b", &big)])]);
    assert!(error.contains("more bytes than"), "{error}");
}

/// What is said of layers that use up a small budget, in all forms of an archive that matter.
fn refusal_within(mut budget: Budget, layers: &[Vec<u8>]) -> String {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("archive");
    fs::write(&path, layout(layers, <[u8]>::to_vec, whole)).unwrap();
    let merged = merge_within(&mut budget, &path, home.path(), &home.path().join("merged.tar"), 16 * MIB);
    merged.err().map_or_else(|| "nothing".to_owned(), |error| error.to_string())
}

const PLENTY: u64 = 1_000_000;

#[test]
fn what_costs_memory_or_time_is_charged_wherever_it_stands() {
    let value = vec![b'x'; 60_000];
    let attribute: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.note", &value)];
    let headers = || Budget::small(100, PLENTY, PLENTY, PLENTY);
    let names = || Budget::small(PLENTY, 100, PLENTY, PLENTY);
    let bytes = || Budget::small(PLENTY, PLENTY, 400_000, PLENTY);
    let steps = || Budget::small(PLENTY, PLENTY, PLENTY, 1000);
    let many = |each: &dyn Fn(usize) -> Vec<u8>| vec![layer(&(0..200).map(each).collect::<Vec<_>>())];
    let target = "t".repeat(4000);
    let linkpath: [(&str, &[u8]); 1] = [("linkpath", target.as_bytes())];
    let dots: [(&str, &[u8]); 1] = [("linkpath", &b"./".repeat(1000))];
    for (budget, layers, what) in [
        (headers(), many(&|_| file("same", "")), "tar headers"),
        (headers(), many(&|_| entry(EntryType::XGlobalHeader, b"g", b"", b"")), "tar headers"),
        (names(), many(&|n| file(&format!("f{n}"), "")), "files"),
        (names(), many(&|n| if n == 0 { file("f", "") } else { hard_link(&format!("h{n}"), "f") }), "files"),
        (names(), many(&|n| directory(&format!("a{n}/b"))), "files"),
        // Directories that are there already, and the root itself.
        (bytes(), many(&|_| extended(&attribute, directory("there"))), "bytes of names"),
        (bytes(), many(&|_| extended(&attribute, directory("./"))), "bytes of names"),
        (bytes(), many(&|n| extended(&linkpath, symlink(&format!("l{n}"), ""))), "bytes of names"),
        (steps(), vec![layer(&[extended(&dots, symlink("l", "")), file("l/a", "")])], "names on the ways"),
    ] {
        let refused = refusal_within(budget, &layers);
        assert!(refused.contains(&format!("more {what}")), "{what}: {refused}");
    }
    assert_eq!(refusal_within(Budget::default(), &two_layers()), "nothing");
}

#[test]
fn links_of_the_archive_itself_are_charged() {
    let target = vec![b't'; 300_000];
    let links = (0..4).map(|n| extended(&[("linkpath", &target)], symlink(&format!("l{n}"), "")));
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("archive");
    fs::write(&path, layer(&links.collect::<Vec<_>>())).unwrap();
    let mut budget = Budget::small(PLENTY, PLENTY, PLENTY, PLENTY);
    let error = Archive::open(&path, home.path(), MIB, &mut budget).unwrap_err();
    assert!(error.to_string().contains("bytes of names"), "{error}");
}

#[test]
fn what_stands_before_one_entry_is_bounded_together() {
    let value = vec![b'x'; 60_000];
    let attribute: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.note", &value)];
    let entries = (0..20).fold(file("a", ""), |entry, _| extended(&attribute, entry));
    assert!(refusal(&[layer(&[entries])]).contains("bytes in a header"));
    let long: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.note", &[b'x'; 70_000])];
    assert!(refusal(&[layer(&[extended(&long, file("a", ""))])]).contains("attribute is too long"));
}

#[test]
fn headers_count_as_what_is_written() {
    // No contents at all, and 16 MiB of names of their own.
    let entries: Vec<Vec<u8>> = (0..9000)
        .map(|n| extended(&[("path", format!("{}/{n}", "d".repeat(250)).as_bytes())], file("a", "")))
        .collect();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("archive");
    fs::write(&path, layout(&[layer(&entries)], <[u8]>::to_vec, whole)).unwrap();
    let merged = merge(&path, home.path(), &home.path().join("merged.tar"), 8 * MIB);
    assert!(merged.unwrap_err().to_string().contains("more bytes than"));
    assert!(fs::metadata(home.path().join("merged.tar")).unwrap().len() <= 8 * MIB);
}

#[test]
fn directories_within_each_other_have_an_end() {
    let below = vec!["d"; 300].join("/");
    let refused = refusal(&[layer(&[extended(&[("path", below.as_bytes())], directory("x"))])]);
    assert!(refused.contains("directories within each other"), "{refused}");
}

#[test]
fn a_path_that_grows_by_links_is_refused() {
    // Each link begins where the one before it leads: the paths are short, what they mean is not.
    let deep = ["d".repeat(200).as_str(); 10].join("/");
    let mut entries = vec![symlink("l0", "d")];
    for number in 0..15 {
        let below = format!("l{number}/{deep}");
        entries.push(extended(&[("path", below.as_bytes())], directory("x")));
        let next = format!("l{}", number + 1);
        entries.push(extended(&[("linkpath", below.as_bytes())], symlink(&next, "")));
    }
    assert!(refusal(&[layer(&entries)]).contains("bytes in a path"));
    let long = format!("{}/x", "n".repeat(256));
    assert!(refusal(&[layer(&[extended(&[("path", long.as_bytes())], file("a", ""))])]).contains("too long"));
}

#[test]
fn entries_of_unknown_types_are_refused() {
    let sparse = entry(EntryType::GNUSparse, b"a", b"", b"");
    assert!(refusal(&[layer(&[sparse])]).contains("unknown type"));
    let pax = extended(&[("GNU.sparse.major", b"1")], file("a", ""));
    assert!(refusal(&[layer(&[pax])]).contains("sparse"));
}

/// The tool that unpacks the merged tar in a build.
#[test]
fn gnu_tar_unpacks_what_was_merged() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let second = format!("{long}2");
    let first: [(&str, &[u8]); 2] = [("path", long.as_bytes()), ("SCHILY.xattr.user.note", b"two\nlines")];
    let link: [(&str, &[u8]); 2] = [("path", second.as_bytes()), ("linkpath", long.as_bytes())];
    let entries = [extended(&first, file("a", "long")), extended(&link, hard_link("b", ""))];
    let (home, _) = merged(&layout(&[layer(&entries)], gzip, whole)).unwrap();
    let root = home.path().join("root");
    crate::disk::unpack(&home.path().join("merged.tar"), &root).unwrap();
    for path in [&long, &second] {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), "long");
    }
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(root.join(path)).unwrap());
    assert_eq!(inode(&long), inode(&second));
}

#[test]
fn a_slice_ends_where_it_should() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    let slice = Slice { file: &file, offset: 2, len: 3 };
    assert_eq!(slice.clone().digest().to_string(), format!("sha256:{}", hex(b"234")));
    let mut beyond = Slice { offset: 9, ..slice };
    assert!(beyond.read_to_end(&mut Vec::new()).is_err());
}

/// Names that are likely to meet.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just(".wh.a"), Just(".wh..wh..opq"), Just("..")];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn any_entry() -> impl Strategy<Value = Vec<u8>> {
    let target = prop_oneof![path(), path().prop_map(|path| format!("/{path}")), Just("../..".to_owned())];
    let kind = prop_oneof![
        Just(EntryType::Regular),
        Just(EntryType::Directory),
        Just(EntryType::Symlink),
        Just(EntryType::Link),
        Just(EntryType::Fifo),
        Just(EntryType::Char),
    ];
    (kind, path(), target).prop_map(|(kind, path, target)| {
        let link = if matches!(kind, EntryType::Symlink | EntryType::Link) { target } else { String::new() };
        entry(kind, path.as_bytes(), link.as_bytes(), b"")
    })
}

proptest! {
    /// Whatever the layers are: what is merged has each name once, relative, and below directories only.
    #[test]
    fn what_is_merged_can_be_unpacked_nowhere_else(
        layers in proptest::collection::vec(proptest::collection::vec(any_entry(), 0..12), 1..4)
    ) {
        let layers: Vec<Vec<u8>> = layers.iter().map(|entries| layer(entries)).collect();
        if let Ok(all) = contents(&layers) {
            let mut directories = vec![String::new()];
            let mut seen = Vec::new();
            for (path, kind, _) in all {
                let path = path.trim_end_matches('/').to_owned();
                prop_assert!(!path.starts_with('/') && path.split('/').all(|name| name != ".."), "{path}");
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
                prop_assert!(directories.contains(&parent), "{path} is not below a directory");
                prop_assert!(!seen.contains(&path), "{path} is there twice");
                if kind.is_dir() {
                    directories.push(path.clone());
                }
                seen.push(path);
            }
        }
    }

    /// No bytes make the reader do otherwise than refuse, or give entries within the file.
    #[test]
    fn no_bytes_are_too_much_for_the_reader(
        entries in proptest::collection::vec(any_entry(), 0..4),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = layer(&entries);
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        // With checksums that hold, so that what was changed is looked at.
        for block in bytes.chunks_exact_mut(512) {
            if block.iter().any(|byte| *byte != 0) {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let len = bytes.len() as u64;
        drop(layer::each(&file, "test", &mut Budget::default(), &mut |entry, _| {
            if let layer::Kind::File { offset, size } = entry.kind {
                assert!(offset + size <= len);
            }
            Ok(())
        }));
    }
}
