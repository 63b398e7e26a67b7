//! `podflare-vmm`: `serve` one microVM for hostd, `probe` this machine's KVM, or `hold` one VM open.

use clap::{Parser, Subcommand};
use podflare_channel::Channel;
use podflare_vmm::{control, probe};
use std::process::ExitCode;

/// One microVM in one process.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve one microVM; the control channel is standard input.
    Serve,
    /// Run a tiny guest and print, as JSON, whether this machine's KVM can run Linux.
    Probe,
    /// Keep one idle VM open, for hosts whose own processor is emulated.
    Hold,
}

fn main() -> ExitCode {
    // A thread that panics must not leave a half-dead microVM behind.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let result = match Arguments::parse().role {
        Role::Serve => serve(),
        Role::Probe => print_probe(),
        Role::Hold => hold(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&*error);
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn serve() -> Outcome {
    // Standard input is given away at once: whatever a copy inherits must not include this channel.
    let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(control::serve(Channel::from_fd(channel))?)
}

#[expect(clippy::print_stdout, reason = "the verdict is this role's output")]
fn print_probe() -> Outcome {
    println!("{}", serde_json::to_string(&probe::probe())?);
    Ok(())
}

fn hold() -> Outcome {
    let _held = podflare_vmm::hold()?;
    loop {
        std::thread::park();
    }
}

#[expect(clippy::print_stderr, reason = "hostd reads a VMM's last words from standard error")]
fn report_error(error: &dyn std::error::Error) {
    eprintln!("podflare-vmm: {}", podflare_vmm::chain(error));
}
