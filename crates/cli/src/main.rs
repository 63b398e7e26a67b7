//! The `podflare` command: starts and stops the host on this machine, and talks to a host's API.
//!
//! It knows of a running host only what its record says, and of sandboxes only what the API says.

mod admin_key;
mod api;
mod args;
mod commands;
mod guest_settings;
mod interrupt;
mod output;
mod queries;
mod record;
mod start;
mod table;
mod terminal;

use args::{Args, Command, ImageCommand, KeyCommand, SpaceCommand, TemplateCommand};
use clap::Parser;
use output::Output;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;

fn main() -> ExitCode {
    let output = Output::new();
    run(Args::parse(), &output).unwrap_or_else(|error| {
        output.error(&error);
        ExitCode::FAILURE
    })
}

fn run(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let places = Places::resolve(args.home, args.programs)?;
    match args.command {
        Command::Up(up) => commands::up::run(&up, &places, output),
        Command::Down => commands::down::run(&places, output),
        Command::Status => commands::status::run(&places, output),
        Command::Doctor(doctor) => commands::doctor::run(&doctor, &places, output),
        Command::Image { command: ImageCommand::Build(build) } => {
            commands::image::build(&build, &places, output)
        }
        Command::Template { command: TemplateCommand::Build(build) } => {
            commands::template::build(&build, &places, output)
        }
        Command::Template { command: TemplateCommand::Ls } => commands::template::ls(&places, output),
        Command::Template { command: TemplateCommand::Rm(rm) } => {
            commands::template::rm(&rm, &places, output)
        }
        Command::Events(events) => commands::events::run(&events, &places, output),
        Command::Keys { command: KeyCommand::Create(create) } => {
            commands::keys::create(&create, &places, output)
        }
        Command::Keys { command: KeyCommand::Ls(host) } => commands::keys::ls(&host, &places, output),
        Command::Keys { command: KeyCommand::Revoke(key) } => commands::keys::revoke(&key, &places, output),
        Command::Keys { command: KeyCommand::Rotate(key) } => commands::keys::rotate(&key, &places, output),
        Command::Ls(host) => commands::ls::run(&host, &places, output),
        Command::Freeze(freeze) => commands::spaces::freeze(&freeze, &places, output),
        Command::Resume(resume) => commands::spaces::resume(&resume, &places, output),
        Command::Spaces { command: SpaceCommand::Ls(host) } => commands::spaces::ls(&host, &places, output),
        Command::Spaces { command: SpaceCommand::Rm(rm) } => commands::spaces::rm(&rm, &places, output),
        Command::Spaces { command: SpaceCommand::Export(export) } => {
            commands::spaces::export(&export, &places, output)
        }
        Command::Spaces { command: SpaceCommand::Import(import) } => {
            commands::spaces::import(&import, &places, output)
        }
        Command::Top(top) => commands::top::run(&top, &places, output),
        Command::Run(run) => commands::run::run(&run, &places, output),
        Command::Shell(shell) => commands::shell::run(&shell, &places, output),
    }
}
