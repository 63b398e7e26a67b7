//! `podflare run`.

use crate::api::Client;
use crate::args::Run;
use crate::interrupt;
use crate::output::Output;
use anyhow::Context;
use podflare_api::exec::{ExecEventKind, ExecRequest, Language};
use podflare_api::sandbox::CreateSandbox;
use podflare_emulated_host::places::Places;
use std::io;
use std::process::ExitCode;

pub(crate) fn run(args: &Run, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let code = match args.code.as_str() {
        "-" => io::read_to_string(io::stdin()).context("Cannot read the code")?,
        code => code.to_owned(),
    };
    let language = if args.bash { Language::Bash } else { Language::Python };
    let client = Client::of(&args.host, places)?;
    let sandbox = interrupt::closes(&client)?;
    let wanted = CreateSandbox {
        template: args.template.clone(),
        ram_mib: args.ram_mib,
        vcpus: args.vcpus,
        ..CreateSandbox::default()
    };
    let id = sandbox.set(|| client.create(&wanted))?;
    let result = client.exec(
        &id,
        &ExecRequest { code, language, cancel_on_disconnect: true, ..ExecRequest::default() },
        |event| show(event, output),
    );
    let closed = client.close(&id);
    let exit_code = result?;
    closed?;
    Ok(ExitCode::from(u8::try_from(exit_code & 0xff)?))
}

fn show(event: &ExecEventKind, output: &Output) -> anyhow::Result<()> {
    match event {
        ExecEventKind::Stdout(text) => output.line(text)?,
        ExecEventKind::Stderr(text) => output.error_line(text)?,
        ExecEventKind::Exit(_) => {}
    }
    Ok(())
}
