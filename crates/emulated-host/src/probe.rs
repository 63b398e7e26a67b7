//! Asks the VMM whether this machine's KVM can run a microVM.

use serde::Deserialize;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// What `podflare-vmm probe` answers: it has run a tiny guest, or says why it could not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Probe {
    pub usable: bool,
    /// One sentence.
    pub reason: String,
}

impl Probe {
    /// A VMM that does not answer has found no usable KVM.
    pub fn run(vmm: &Path) -> Probe {
        let unusable = |reason: String| Probe { usable: false, reason };
        let output = match Command::new(vmm).arg("probe").stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) => return unusable(format!("{} does not run: {error}", vmm.display())),
        };
        match serde_json::from_slice(&output.stdout) {
            Ok(Probe { usable: false, .. }) if may_not_open(Path::new(KVM)) => unusable(NO_PERMISSION.into()),
            Ok(probe) => probe,
            Err(_) => unusable(format!("The probe ended without an answer ({})", output.status)),
        }
    }
}

const KVM: &str = "/dev/kvm";
/// KVM may well work here, and then run sandboxes many times faster: the user is to know.
const NO_PERMISSION: &str = "This user may not open /dev/kvm; join the group kvm (sudo usermod -aG kvm \"$USER\", \
    then log in again)";

fn may_not_open(path: &Path) -> bool {
    let opened = File::options().read(true).write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn answer(script: &str) -> Probe {
        let dir = tempfile::tempdir().unwrap();
        let vmm = dir.path().join("vmm");
        fs::write(&vmm, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        Probe::run(&vmm)
    }

    #[test]
    fn the_answer_is_taken_as_it_is() {
        let probe = answer(r#"echo '{"usable": true, "reason": "A guest ran."}'"#);
        assert_eq!(probe, Probe { usable: true, reason: "A guest ran.".into() });
    }

    #[test]
    fn no_answer_means_not_usable() {
        assert!(!answer("exit 3").usable);
        assert!(!Probe::run(Path::new("/no/such/vmm")).usable);
    }
}
