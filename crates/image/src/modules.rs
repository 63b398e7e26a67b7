//! Which kernel module files are to be loaded, in which order, and their plain contents.

use crate::error::BuildError;
use crate::tool;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of one kernel, as depmod describes them.
#[derive(Debug)]
pub(crate) struct Modules {
    directory: PathBuf,
    /// By name with underscores: the file and the files that it needs, all relative to the directory.
    files: HashMap<String, (String, Vec<String>)>,
    built_in: Vec<String>,
}

impl Modules {
    /// Reads the directory that holds `modules.dep`.
    pub(crate) fn read(directory: &Path) -> Result<Modules, BuildError> {
        let text = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(BuildError::file("read", &path))
        };
        let files = text("modules.dep")?.lines().filter_map(dependency_line).collect();
        let built_in = text("modules.builtin")?.lines().map(module_name).collect();
        Ok(Modules { directory: directory.to_owned(), files, built_in })
    }

    /// The files of the modules named and of all that they need, each after what it needs. What is part of
    /// the kernel itself is left out.
    pub(crate) fn load_order(&self, wanted: &[String]) -> Result<Vec<&str>, BuildError> {
        let mut order = Vec::new();
        for name in wanted.iter().map(|name| module_name(name)) {
            match self.files.get(&name) {
                Some((file, _)) => self.visit(file, &mut order),
                None if self.built_in.contains(&name) => {}
                None => return Err(self.no_module(name)),
            }
        }
        Ok(order)
    }

    /// Dependencies of kernel modules have no cycles: the build of the kernel would have failed.
    fn visit<'a>(&'a self, file: &'a str, order: &mut Vec<&'a str>) {
        if order.contains(&file) {
            return;
        }
        if let Some((_, needed)) = self.files.get(&module_name(file)) {
            // depmod lists what is needed last first.
            needed.iter().rev().for_each(|file| self.visit(file, order));
        }
        order.push(file);
    }

    /// The contents as a plain `init_module` takes them: unpacked and without the appended signature.
    pub(crate) fn contents(&self, file: &str) -> Result<Vec<u8>, BuildError> {
        let path = self.directory.join(file);
        let unpacker = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => return fs::read(&path).map(without_signature).map_err(BuildError::file("read", &path)),
        };
        let unpacked = tool::output(tool::command(unpacker)?.args(["-d", "-c"]).arg(&path))?;
        Ok(without_signature(unpacked))
    }

    fn no_module(&self, module: String) -> BuildError {
        let release = self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        BuildError::NoModule { release, module }
    }
}

/// `virtio-rng.ko.xz` and `kernel/drivers/char/hw_random/virtio-rng.ko` are both `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The name under which a module's file stands in the initramfs.
pub(crate) fn plain_file_name(path: &str) -> String {
    format!("{}.ko", module_name(path))
}

fn dependency_line(line: &str) -> Option<(String, (String, Vec<String>))> {
    let (file, needed) = line.split_once(':')?;
    let needed = needed.split_whitespace().map(str::to_owned).collect();
    Some((module_name(file), (file.to_owned(), needed)))
}

/// Verifying a signature costs a slow processor more than the rest of loading, and says nothing about an
/// initramfs that is itself not signed.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    /// `struct module_signature`, whose last four bytes are the length of the signature, big-endian.
    const TRAILER_BYTES: usize = 12;
    let Some(signed) = module.strip_suffix(MAGIC) else { return module };
    let Some((rest, length)) = signed.split_last_chunk() else { return module };
    let signature_bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let trailer_rest = TRAILER_BYTES - length.len();
    let Some(plain) = rest.len().checked_sub(trailer_rest).and_then(|end| end.checked_sub(signature_bytes))
    else {
        return module;
    };
    module.truncate(plain);
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let dependencies = "kernel/a/kvm-amd.ko.xz: kernel/a/kvm.ko.xz kernel/b/irqbypass.ko.xz kernel/c/ccp.ko.xz\n\
            kernel/a/kvm.ko.xz: kernel/b/irqbypass.ko.xz\n\
            kernel/b/irqbypass.ko.xz:\n\
            kernel/c/ccp.ko.xz:\n";
        Modules {
            directory: PathBuf::from("/lib/modules/6.1"),
            files: dependencies.lines().filter_map(dependency_line).collect(),
            built_in: vec!["virtio".into()],
        }
    }

    fn order(wanted: &[&str]) -> Result<Vec<String>, BuildError> {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let modules = modules();
        Ok(modules.load_order(&wanted)?.into_iter().map(plain_file_name).collect())
    }

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        assert_eq!(order(&["kvm_amd", "kvm"]).unwrap(), ["ccp.ko", "irqbypass.ko", "kvm.ko", "kvm_amd.ko"]);
    }

    #[test]
    fn dashes_and_underscores_are_the_same_and_what_is_built_in_is_left_out() {
        assert_eq!(order(&["virtio", "irqbypass", "kvm-amd"]).unwrap().len(), 4);
    }

    #[test]
    fn an_unknown_module_is_named() {
        let text = order(&["no_such"]).unwrap_err().to_string();
        assert!(text.contains("no_such") && text.contains("6.1"), "{text}");
    }

    #[test]
    fn a_signature_is_cut_off_and_a_plain_module_is_left_alone() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"signature");
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        signed.extend_from_slice(b"~Module signature appended~\n");
        assert_eq!(without_signature(signed), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        let lying = [&[0xff; 12][..], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(lying.clone()), lying);
    }
}
