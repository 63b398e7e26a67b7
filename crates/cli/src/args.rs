//! The command line, as it is given. Defaults that depend on the machine are resolved elsewhere.

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Parser, Subcommand};
use podflare_api::id::{KeyId, PtyId, SandboxId, SpaceId};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Sandboxes for AI agents: real virtual machines that run code, fork and merge.
#[derive(Debug, Parser)]
#[command(name = "podflare", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Where images and state are kept [default: podflare in the user's data directory]
    #[arg(long, global = true, env = "PODFLARE_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Where podflare-vmm, podflare-hostd and podflare-agent are [default: beside this program]
    #[arg(long = "bin-dir", global = true, env = "PODFLARE_BIN_DIR", value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the host on this machine and wait until it is ready
    Up(Up),
    /// Stop the host on this machine, and its sandboxes
    Down,
    /// Tell whether the host on this machine runs
    Status,
    /// Tell what this machine lacks, and how to get it
    Doctor(Doctor),
    /// Images of the sandboxes' virtual machines
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Templates: what sandboxes are made of, beside the one that is always there
    Template {
        #[command(subcommand)]
        command: TemplateCommand,
    },
    /// Tell what has happened to sandboxes, and with -f what happens next
    Events(Events),
    /// Keys, with which others use a host
    Keys {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// List the sandboxes of a host
    Ls(Host),
    /// Freeze a sandbox, and print the id of the Space that it goes on as
    Freeze(Freeze),
    /// Go on with a Space, and print the id of the sandbox
    Resume(Resume),
    /// Spaces: sandboxes that are frozen
    Spaces {
        #[command(subcommand)]
        command: SpaceCommand,
    },
    /// Show what a host has and does, again and again
    Top(Top),
    /// Run code in a new sandbox, which is closed afterwards; the exit code is the code's
    Run(Run),
    /// Open a terminal in a sandbox, and leave with its exit code
    Shell(Shell),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Run sandboxes in an emulated host, even if KVM works
    #[arg(long, conflicts_with = "native")]
    pub(crate) emulated: bool,
    /// Run sandboxes on this machine's KVM without trying it first
    #[arg(long)]
    pub(crate) native: bool,
    /// Address of the API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Sandboxes kept ready [default: the host's]
    #[arg(long, value_name = "N", env = "PODFLARE_POOL_SIZE")]
    pub(crate) pool_size: Option<u32>,
    /// Keys that clients must show, separated by commas, besides those of `podflare keys`. Without any every client of
    /// this machine is let in
    #[arg(long, value_name = "KEYS", env = "PODFLARE_API_KEYS", hide_env_values = true)]
    pub(crate) api_keys: Option<String>,
    /// hostd's own setting, which would make the keys worthless
    #[arg(long, env = "PODFLARE_AUTH_DISABLED", hide = true, action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new())]
    pub(crate) auth_disabled: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// hostd's own setting, with which sandboxes need nothing of this machine's network
    #[arg(long, env = "PODFLARE_NO_NETWORK", hide = true, action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new())]
    pub(crate) no_network: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the image, as far as it is not built yet, and print its directory
    Build(ImageBuild),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImageBuild {
    /// What goes in, instead of the definition that comes with this program
    #[arg(long, value_name = "FILE")]
    pub(crate) definition: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Build a template, if anything that goes in has changed, and have the host that runs here take it
    Build(TemplateBuild),
    /// List the templates that were built here, and those that come with this program
    Ls,
    /// Remove a template, also from the host that runs here
    Rm(TemplateRm),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TemplateBuild {
    #[command(flatten)]
    pub(crate) host: Host,
    /// A file with a declaration, or the name of one that comes with this program
    #[arg(value_name = "FILE|NAME")]
    pub(crate) declaration: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TemplateRm {
    #[command(flatten)]
    pub(crate) host: Host,
    pub(crate) name: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Show it once
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Go on with what happens next
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events with a number above this
    #[arg(long, value_name = "SEQ")]
    pub(crate) since: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it, this once. With the first one, the host asks everybody for one
    Create(KeyCreate),
    /// List the keys, revoked ones included
    Ls(Host),
    /// Let nobody in with a key any more
    Revoke(KeyOf),
    /// Give a key another secret and print it, this once; the former lets nobody in any more
    Rotate(KeyOf),
}

#[derive(Debug, clap::Args)]
pub(crate) struct KeyCreate {
    #[command(flatten)]
    pub(crate) host: Host,
    /// What sandboxes with this key may have: free, pro, scale or enterprise, or what the host's own tiers are
    #[arg(long)]
    pub(crate) tier: String,
    /// A note on whose it is
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct KeyOf {
    #[command(flatten)]
    pub(crate) host: Host,
    /// The key's id, as `keys ls` shows it
    #[arg(value_name = "KEY_ID")]
    pub(crate) key: KeyId,
}

/// Which host is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Host {
    /// The host's URL [default: the host that was started here]
    #[arg(long, env = "PODFLARE_HOSTD_URL")]
    pub(crate) url: Option<String>,
    /// The key to show it [default: the operator's, for the host that was started here]
    #[arg(long, env = "PODFLARE_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) host: Host,
    /// The code is a bash script, not Python
    #[arg(long)]
    pub(crate) bash: bool,
    /// What the sandbox is made of [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) template: Option<String>,
    /// The sandbox's memory, in MiB [default: the template's]
    #[arg(long, value_name = "MIB")]
    pub(crate) ram_mib: Option<u32>,
    /// The sandbox's processors [default: the template's]
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<u32>,
    /// The code; `-` reads it from standard input
    pub(crate) code: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Freeze {
    #[command(flatten)]
    pub(crate) host: Host,
    /// The sandbox; `podflare ls` lists them
    #[arg(value_name = "ID")]
    pub(crate) sandbox: SandboxId,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Leave the Space as it is, so that it can be resumed again
    #[arg(long)]
    pub(crate) keep: bool,
    /// Freeze the sandbox again, into another Space, when its time is over
    #[arg(long)]
    pub(crate) persistent: bool,
    /// The Space; `podflare spaces ls` lists them
    #[arg(value_name = "SPACE")]
    pub(crate) space: SpaceId,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpaceCommand {
    /// List the Spaces of a host
    Ls(Host),
    /// Remove a Space
    Rm(SpaceRm),
    /// Write a Space into a file, which another host can take
    Export(SpaceExport),
    /// Take a Space from a file, and print its id here
    Import(SpaceImport),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SpaceExport {
    #[command(flatten)]
    pub(crate) host: Host,
    #[arg(value_name = "SPACE")]
    pub(crate) space: SpaceId,
    /// A file that is not there yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SpaceImport {
    #[command(flatten)]
    pub(crate) host: Host,
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SpaceRm {
    #[command(flatten)]
    pub(crate) host: Host,
    #[arg(value_name = "SPACE")]
    pub(crate) space: SpaceId,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Return to a terminal that is open, and see its latest output first
    #[arg(long, value_name = "PTY", conflicts_with = "program")]
    pub(crate) attach: Option<PtyId>,
    /// What kind of terminal the program is told that it has [default: the sandbox's]
    #[arg(long, env = "TERM", value_name = "NAME")]
    pub(crate) term: Option<String>,
    /// The sandbox; `podflare ls` lists them
    #[arg(value_name = "ID")]
    pub(crate) sandbox: SandboxId,
    /// A program and its arguments, instead of a login shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_the_sandbox_is_the_program_of_its_terminal() {
        let id = SandboxId::random();
        let args = Args::try_parse_from(["podflare", "shell", id.as_str(), "top", "-d", "--url"]).unwrap();
        let Command::Shell(shell) = args.command else { panic!("{args:?}") };
        assert_eq!((shell.sandbox, shell.program), (id, vec!["top".into(), "-d".into(), "--url".into()]));
        assert!(Args::try_parse_from(["podflare", "shell", "nonsense"]).is_err());
    }

    #[test]
    fn a_host_is_native_or_emulated_but_not_both() {
        assert!(Args::try_parse_from(["podflare", "up", "--native", "--emulated"]).is_err());
    }
}
