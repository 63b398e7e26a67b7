//! Templates that a host has booted before: the next start takes them up from the disk.

use crate::host::{Host, until};
use serde_json::json;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A folder with a kernel and an initramfs.
fn image() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vmlinux", "initramfs.cpio"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    folder
}

async fn start(image: &TempDir) -> Host {
    Host::start(&["--pool-size", "0", "--image-dir", image.path().to_str().unwrap()]).await
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |entries| {
        entries
            .filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'))
            .count()
    })
}

async fn is_kept(host: &Host) {
    until("the template is kept", async || count(&host.bases_folder()) > 0).await;
}

#[tokio::test]
async fn a_host_that_starts_again_boots_no_template_that_it_has_booted_before() {
    let image = image();
    let host = start(&image).await;
    is_kept(&host).await;
    let host = host.start_again().await.start_again().await;
    assert_eq!(host.vmm.boots().len(), 1);
    let sandbox = host.create().await;
    assert_eq!(host.text(&sandbox, "print made").await, "made");
    assert_eq!(count(&host.bases_folder()), 1);
}

#[tokio::test]
async fn a_template_of_anything_else_boots_and_takes_the_place_of_the_former() {
    let image = image();
    let mut host = start(&image).await;
    is_kept(&host).await;
    let changed = [image.path().join("vmlinux"), image.path().join("initramfs.cpio"), host.rootfs()];
    for (boots, changed) in (2..).zip(changed) {
        let former = fs::read_dir(host.bases_folder()).unwrap().next().unwrap().unwrap().path();
        fs::write(&changed, "another").unwrap();
        host = host.start_again().await;
        assert_eq!(host.vmm.boots().len(), boots, "{changed:?}");
        until("the former is removed", async || !former.exists() && count(&host.bases_folder()) == 1).await;
    }
}

#[tokio::test]
async fn a_kept_template_that_cannot_be_taken_up_boots() {
    let image = image();
    let host = start(&image).await;
    is_kept(&host).await;
    let base = fs::read_dir(host.bases_folder()).unwrap().next().unwrap().unwrap().path();
    fs::write(base.join("memory"), [0xff; 8]).unwrap();
    let host = host.start_again().await;
    assert_eq!(host.vmm.boots().len(), 2);
    until("it is kept instead", async || !base.exists() && count(&host.bases_folder()) == 1).await;
}

#[tokio::test]
async fn spaces_of_before_and_after_a_start_have_one_base() {
    let image = image();
    let host = start(&image).await;
    is_kept(&host).await;
    let sandbox = host.create().await;
    host.post(&format!("/v1/sandboxes/{sandbox}/freeze"), &json!({})).await;
    let host = host.start_again().await;
    let sandbox = host.create().await;
    host.post(&format!("/v1/sandboxes/{sandbox}/freeze"), &json!({})).await;
    assert_eq!((count(&host.spaces_folder()), count(&host.bases_folder())), (2, 1));
}
