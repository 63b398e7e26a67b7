//! QEMU's command line for the emulated host. Every option here was measured or has its reason beside it.

use crate::job::{Access, Share, tag};
use crate::machine::Machine;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// The port of the emulated host that is reached from this machine.
pub const FORWARDED_PORT: u16 = 7070;

/// Files in the run directory, which is QEMU's working directory: a socket's path has room for 107 bytes only.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// A named pipe: to the port behind a socket, the emulated host would find nobody connected and not wait.
pub(crate) const CONTROL_PIPE: &str = "control";
pub(crate) const MONITOR_SOCKET: &str = "monitor.sock";
pub(crate) const JOB_DIRECTORY: &str = "job";

/// Everything that differs from one start to the next.
#[derive(Debug)]
pub(crate) struct CommandLine<'a> {
    pub(crate) machine: Machine,
    pub(crate) vmlinux: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) shares: &'a [Share],
    pub(crate) disks: Vec<Disk>,
    pub(crate) forwarded: Option<SocketAddr>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    /// By which `init` finds it.
    pub(crate) serial: &'static str,
    pub(crate) kind: DiskKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskKind {
    ReadOnly,
    /// Flushes reach this machine's disk.
    Durable,
    /// Thrown away afterwards.
    Scratch,
}

/// Where a stream of the job goes.
#[derive(Debug)]
pub(crate) enum Output {
    /// A file in the run directory, appended to.
    File(&'static str),
    /// The write end of a pipe that QEMU inherits.
    Pipe(RawFd),
}

impl CommandLine<'_> {
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        self.processor_and_memory(&mut arguments);
        self.kernel(&mut arguments);
        self.disks(&mut arguments);
        self.network(&mut arguments);
        self.shares(&mut arguments);
        self.streams(&mut arguments);
        Self::pulse(&mut arguments);
        arguments.0
    }

    fn processor_and_memory(&self, arguments: &mut Arguments) {
        arguments.words("-nodefaults -no-user-config -nographic -no-reboot -M pc");
        arguments.words("-accel tcg,thread=multi");
        // A quarter faster than `max`: fewer features for kernel and KVM to handle.
        arguments.words("-cpu EPYC,+svm,+npt");
        arguments.words(&format!("-m {} -smp {}", self.machine.memory_mib, self.machine.processors));
    }

    fn kernel(&self, arguments: &mut Arguments) {
        arguments.option("-kernel", "", self.vmlinux);
        arguments.option("-initrd", "", self.initramfs);
        arguments.words("-append");
        arguments.0.push("console=ttyS0 reboot=t panic=-1 quiet mitigations=off".into());
        arguments.words(&format!("-serial file:{CONSOLE_LOG}"));
        arguments.words(&format!("-monitor unix:{MONITOR_SOCKET},server=on,wait=off"));
    }

    fn disks(&self, arguments: &mut Arguments) {
        for Disk { path, serial, kind } in &self.disks {
            let options = match kind {
                DiskKind::ReadOnly => "readonly=on,cache=writeback",
                DiskKind::Durable => "discard=unmap,cache=writeback",
                DiskKind::Scratch => "discard=unmap,cache=unsafe",
            };
            arguments.option("-drive", &format!("id={serial},if=none,format=raw,{options},file="), path);
            arguments.words(&format!("-device virtio-blk-pci,drive={serial},serial={serial}"));
        }
    }

    fn network(&self, arguments: &mut Arguments) {
        let forward = self.forwarded.map_or(String::new(), |outer| {
            format!(",hostfwd=tcp:{}:{}-:{FORWARDED_PORT}", outer.ip(), outer.port())
        });
        arguments.words(&format!("-netdev user,id=net{forward}"));
        // Without a boot ROM, which would announce itself on the console.
        arguments.words("-device virtio-net-pci,netdev=net,romfile=");
    }

    fn shares(&self, arguments: &mut Arguments) {
        let mut share = |tag: &str, directory: &Path, writable: bool| {
            let readonly = if writable { "off" } else { "on" };
            let options = format!(
                "local,mount_tag={tag},security_model=none,multidevs=remap,readonly={readonly},path="
            );
            arguments.option("-virtfs", &options, directory);
        };
        share("job", Path::new(JOB_DIRECTORY), true);
        for (index, Share { directory, access }) in self.shares.iter().enumerate() {
            share(&tag(index), directory, *access == Access::Writable);
        }
    }

    fn streams(&self, arguments: &mut Arguments) {
        arguments.words("-device virtio-serial-pci");
        for (name, output) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let path = match output {
                Output::File(name) => (*name).to_owned(),
                Output::Pipe(descriptor) => format!("/dev/fd/{descriptor}"),
            };
            arguments.words(&format!("-chardev file,id={name},append=on,path={path}"));
        }
        arguments.words(&format!("-chardev pipe,id=control,path={CONTROL_PIPE}"));
        for name in ["stdout", "stderr", "control"] {
            arguments.words(&format!("-device virtserialport,chardev={name},name={name}"));
        }
    }

    /// An interrupt each second, by a question that nobody reads the answer to. QEMU before 10.2 changes the word of
    /// what a processor is to do from two threads without a lock, and so forgets an interrupt now and then, mostly
    /// where a nested guest runs. When it forgets the timer's, there is no next one: the emulated host stood still for
    /// minutes, until something else interrupted it.
    fn pulse(arguments: &mut Arguments) {
        arguments.words("-device virtio-balloon-pci,guest-stats-polling-interval=1");
    }
}

#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }

    /// An option whose value ends with a path. In a list of properties, QEMU wants a path's commas doubled.
    fn option(&mut self, name: &str, properties: &str, path: &Path) {
        let mut value = properties.as_bytes().to_vec();
        for &byte in path.as_os_str().as_bytes() {
            value.push(byte);
            if byte == b',' && !properties.is_empty() {
                value.push(byte);
            }
        }
        self.0.push(name.into());
        self.0.push(OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(shares: &[Share], forwarded: Option<SocketAddr>) -> Vec<String> {
        let command_line = CommandLine {
            machine: Machine { memory_mib: 4096, processors: 1 },
            vmlinux: Path::new("/images/a,b/vmlinux"),
            initramfs: Path::new("/images/a,b/initramfs.cpio"),
            shares,
            disks: vec![Disk { path: "/d".into(), serial: "state", kind: DiskKind::Durable }],
            forwarded,
            stdout: Output::File("stdout.log"),
            stderr: Output::Pipe(7),
        };
        command_line.arguments().into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn a_comma_in_a_path_is_doubled_only_among_properties() {
        let words = arguments(&[Share::lasting(Path::new("/x,y"))], None);
        assert!(words.contains(&"/images/a,b/vmlinux".to_owned()));
        let shared = words.iter().find(|word| word.contains("share0")).unwrap();
        assert!(shared.ends_with("readonly=on,path=/x,,y"), "{shared}");
    }

    #[test]
    fn nothing_listens_unless_a_port_is_forwarded() {
        assert!(!arguments(&[], None).iter().any(|word| word.contains("hostfwd")));
        let words = arguments(&[], Some("127.0.0.1:7171".parse().unwrap()));
        assert!(words.contains(&"user,id=net,hostfwd=tcp:127.0.0.1:7171-:7070".to_owned()));
    }

    #[test]
    fn the_streams_of_the_job_go_where_they_are_sent() {
        let words = arguments(&[], None);
        assert!(words.contains(&"file,id=stdout,append=on,path=stdout.log".to_owned()));
        assert!(words.contains(&"file,id=stderr,append=on,path=/dev/fd/7".to_owned()));
    }
}
