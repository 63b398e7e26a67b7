//! Builds templates on an image of containers that is made of this machine's own programs. The kernel comes from the
//! images in PODFLARE_HOME, which has it after the first build of any.

#![expect(clippy::unwrap_used, reason = "a step that fails in a test's set-up is the test's failure")]

use flate2::Compression;
use flate2::write::GzEncoder;
use podflare_image::cache::Cache;
use podflare_image::error::BuildError;
use podflare_image::machine_settings::MachineSettings;
use podflare_image::template::build::{Builder, Built};
use podflare_image::template::declaration::Declaration;
use podflare_image::template::store::{Store, Taken};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{EntryType, Header};

/// What a build runs, and what every root must have.
const PROGRAMS: [&str; 12] = [
    "/bin/bash",
    "/bin/cat",
    "/bin/chmod",
    "/bin/cp",
    "/bin/mkdir",
    "/bin/rm",
    "/bin/true",
    "/usr/bin/dirname",
    "/usr/bin/env",
    "/usr/bin/find",
    "/usr/bin/python3",
    "/usr/bin/setpriv",
];
const VARIABLE: &str = "HTTPS_PROXY_OF_THIS_TEST";

struct Workshop {
    directory: tempfile::TempDir,
    cache: Cache,
    store: Store,
    settings: MachineSettings,
}

impl Workshop {
    fn new() -> Workshop {
        let directory = tempfile::tempdir().unwrap();
        let home = std::env::var_os("PODFLARE_HOME").map(PathBuf::from);
        let images = home.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()).join("images");
        let cache = Cache::open(&images).unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut settings = MachineSettings::of_this_machine();
        settings.variables.insert(VARIABLE.into(), "secret-of-this-machine".into());
        Workshop { directory, cache, store, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn build(&self, declaration: &str) -> Result<Built, BuildError> {
        let path = self.path("declaration.toml");
        fs::write(&path, declaration).unwrap();
        let builder = Builder {
            cache: &self.cache,
            store: &self.store,
            settings: &self.settings,
            progress: &|_| {},
            taken: &|_| Taken::Nothing,
        };
        builder.build(&Declaration::read(&path)?)
    }

    /// A file on the template's root disk.
    fn read(&self, template: &str, path: &str) -> String {
        self.look(template, &format!("cat {path}"))
    }

    /// The names in a directory on the template's root disk.
    fn list(&self, template: &str, path: &str) -> String {
        self.look(template, &format!("ls {path}"))
    }

    fn look(&self, template: &str, request: &str) -> String {
        let disk = self.store.templates().join(template).join("rootfs.ext4");
        let output = Command::new("/usr/sbin/debugfs").args(["-R", request]).arg(disk).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// Writes `image.tar`.
    fn make_image(&self) {
        let layers = [self.programs(), additions()];
        let digests: Vec<String> = layers.iter().map(|layer| hex(layer)).collect();
        let diff_ids: Vec<String> = digests.iter().map(|digest| format!("sha256:{digest}")).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids},
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "OF_IMAGE=yes"]},
        });
        let names: Vec<String> = digests.iter().map(|digest| format!("blobs/sha256/{digest}")).collect();
        let manifest = serde_json::json!([{"Config": "config.json", "Layers": names}]);
        let mut archive = tar::Builder::new(File::create(self.path("image.tar")).unwrap());
        append(&mut archive, "manifest.json", manifest.to_string().as_bytes());
        append(&mut archive, "config.json", config.to_string().as_bytes());
        for (name, layer) in names.iter().zip(&layers) {
            append(&mut archive, name, layer);
        }
        archive.finish().unwrap();
    }

    fn programs(&self) -> Vec<u8> {
        let text = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
        let mut files: BTreeSet<String> = PROGRAMS.iter().map(|&program| program.to_owned()).collect();
        for program in PROGRAMS {
            let libraries = text(Command::new("ldd").arg(program));
            let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
            files.extend(paths.map(str::to_owned));
        }
        let mut layer = tar::Builder::new(Vec::new());
        for path in &files {
            layer.append_path_with_name(path, path.trim_start_matches('/')).unwrap();
        }
        let code = "import sysconfig; print(sysconfig.get_path('stdlib'))";
        let library = text(Command::new("/usr/bin/python3").args(["-c", code]));
        let library = library.trim();
        let copy = self.path("library");
        let tar = "mkdir $1; tar -C $0 --exclude=test --exclude=__pycache__ -c . | tar -C $1 -x";
        assert!(Command::new("sh").args(["-c", tar, library]).arg(&copy).status().unwrap().success());
        layer.follow_symlinks(false);
        layer.append_dir_all(library.trim_start_matches('/'), &copy).unwrap();
        layer.into_inner().unwrap()
    }
}

/// Takes something away, and adds what must not be followed on this machine.
fn additions() -> Vec<u8> {
    let mut layer = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut directory = Header::new_gnu();
    directory.set_entry_type(EntryType::Directory);
    directory.set_size(0);
    directory.set_mode(0o755);
    layer.append_data(&mut directory, "var/lib/served", &[][..]).unwrap();
    let mut link = |name: &str, target: &str| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, name, target).unwrap();
    };
    link("srv", "/var/lib/served");
    link("etc/hostname", "/etc/the-name");
    let mut whiteout = Header::new_gnu();
    whiteout.set_size(0);
    whiteout.set_mode(0o644);
    layer.append_data(&mut whiteout, "bin/.wh.true", &[][..]).unwrap();
    let plain = layer.into_inner().unwrap().finish().unwrap();
    // As a layer that is not compressed: the digest in its name is that of what it is when unpacked.
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&plain[..]), &mut unpacked).unwrap();
    unpacked
}

fn append(archive: &mut tar::Builder<File>, name: &str, contents: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, contents).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

const DECLARATION: &str = r#"
    name = "mine"
    commands = [
        "test ! -e /bin/true",
        "echo \"$OF_IMAGE $OWN $HTTPS_PROXY_OF_THIS_TEST\" > /srv/seen",
        "cat /proc/self/status | while read -r key value; do [ $key != NoNewPrivs: ] || echo $value > /privileges; done",
        "for path in /proc/[0-9]*; do echo; done > /processes",
    ]
    base = { oci = "image.tar" }
    env = { OWN = "mine" }
    startup = { python = "x = 1" }
    size = { disk_gib = 1 }
    [[files]]
    source = "tree"
    destination = "/srv/tree"
    mode = "0600"
"#;

#[test]
fn a_template_is_built_on_an_image_and_nothing_of_this_machine_stays_in_it() {
    let workshop = Workshop::new();
    workshop.make_image();
    fs::create_dir_all(workshop.path("tree/deep")).unwrap();
    fs::write(workshop.path("tree/deep/file"), "contents").unwrap();

    let Built::New(manifest) = workshop.build(DECLARATION).unwrap() else { panic!("it was not there") };
    assert_eq!((manifest.rootfs_gb, manifest.startup.unwrap().python.as_str()), (1, "x = 1"));
    // The link of the image was followed in the image.
    assert_eq!(workshop.read("mine", "/var/lib/served/seen"), "yes mine secret-of-this-machine\n");
    assert_eq!(workshop.read("mine", "/var/lib/served/tree/deep/file"), "contents");
    let environment = workshop.read("mine", "/etc/environment");
    assert_eq!(environment, "OF_IMAGE=yes\nOWN=mine\nPATH=/usr/local/bin:/usr/bin:/bin\n");
    assert_eq!(workshop.read("mine", "/etc/the-name"), "sandbox\n");
    assert_eq!(workshop.read("mine", "/privileges"), "1\n");
    // Its own, and no process of this machine.
    assert!(workshop.read("mine", "/processes").lines().count() < 5);
    assert!(!workshop.list("mine", "/run").contains("podflare"));
    assert!(workshop.list("mine", "/lib/modules").contains("amd64"));

    assert!(matches!(workshop.build(DECLARATION).unwrap(), Built::Unchanged(_)));
    let changed = DECLARATION.replace("x = 1", "x = 2");
    assert!(matches!(workshop.build(&changed).unwrap(), Built::New(_)));

    // What fails points at its key, and leaves the former one and nothing else.
    let failing = DECLARATION.replace("test ! -e /bin/true", "echo it was me; false");
    let error = workshop.build(&failing).unwrap_err();
    assert!(
        matches!(&error, BuildError::Step { key: Some(key), source, .. }
        if key == "commands[0]" && source.to_string().contains("it was me")),
        "{error}"
    );
    let wrong_python =
        DECLARATION.replace("x = 1", "x =").replace("mine\"\n    commands", "other\"\n    commands");
    assert!(matches!(workshop.build(&wrong_python), Err(BuildError::Step { key: Some(key), .. })
        if key == "startup.python"));
    let without_packages = format!("packages = [\"git\"]\n{DECLARATION}");
    assert!(matches!(workshop.build(&without_packages), Err(BuildError::Step { key: Some(key), .. })
        if key == "packages"));
    assert_eq!(workshop.read("mine", "/etc/the-name"), "sandbox\n");
    let left = fs::read_dir(workshop.store.roots()).unwrap().count();
    // The lock, and the one root disk that both of its manifests had.
    assert_eq!(left, 2);
}
