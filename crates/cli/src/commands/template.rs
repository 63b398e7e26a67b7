//! `podflare template build`, `ls` and `rm`.

use crate::api::Client;
use crate::args::{TemplateBuild, TemplateRm};
use crate::output::Output;
use crate::table::{age, table};
use anyhow::bail;
use podflare_api::template::{DEFAULT, TemplateManifest};
use podflare_emulated_host::places::Places;
use podflare_image::cache::Cache;
use podflare_image::machine_settings::MachineSettings;
use podflare_image::template::build::{Builder, Built};
use podflare_image::template::declaration::Declaration;
use podflare_image::template::recipe::shipped;
use podflare_image::template::store::{Store, Taken};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 6] = ["TEMPLATE", "BUILT", "DISK", "RAM", "VCPUS", "DESCRIPTION"];

pub(crate) fn build(args: &TemplateBuild, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let declaration = find(&args.declaration)?;
    let (cache, store) = (Cache::open(&places.images())?, Store::open(&places.home)?);
    let settings = MachineSettings::of_this_machine();
    let progress = |text: &str| output.step(text);
    let taken = |name: &str| match Client::of_running(&args.host, places) {
        Ok(None) => Taken::Nothing,
        Ok(Some(host)) => host.taken_build(name).unwrap_or(Taken::Unknown),
        Err(_) => Taken::Unknown,
    };
    let builder =
        Builder { cache: &cache, store: &store, settings: &settings, progress: &progress, taken: &taken };
    let manifest = match builder.build(&declaration)? {
        Built::New(manifest) => manifest,
        Built::Unchanged(manifest) => {
            output
                .note(&format!("The template {} is built already, and nothing has changed.", manifest.name));
            manifest
        }
    };
    match Client::of_running(&args.host, places)? {
        Some(host) => host.take_template(&manifest.name, |state| {
            output.step(&format!("template {} on the host: {state}", manifest.name));
        })?,
        None => output.note("No host runs here; the template is there when one is started."),
    }
    output.line(&store.templates().join(&manifest.name).display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ls(places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let listing = Store::open(&places.home)?.list()?;
    for error in listing.damaged {
        output.note(&format!("Left out: {:#}", anyhow::Error::from(error)));
    }
    let built = listing.templates;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(built.iter().map(|manifest| row(manifest, now_ms)));
    let shipped = shipped();
    let not_built = shipped.iter().filter(|known| !built.iter().any(|built| built.name == known.name));
    rows.extend(not_built.map(|declaration| {
        let unknown = || "-".to_owned();
        let (name, description) = (declaration.name.clone(), declaration.description.clone());
        [name, "not yet".to_owned(), unknown(), unknown(), unknown(), description]
    }));
    for line in table(rows) {
        output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn rm(args: &TemplateRm, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let name = &args.name;
    if name == DEFAULT {
        bail!("The template {DEFAULT} is always there and cannot be removed");
    }
    let store = Store::open(&places.home)?;
    if !store.has(name) {
        bail!("There is no template {name}; `podflare template ls` lists them");
    }
    // The host first: it must not find the folder again.
    if let Some(host) = Client::of_running(&args.host, places)? {
        host.remove_template(name)?;
    }
    store.remove(name)?;
    output.note(&format!("The template {name} is removed."));
    Ok(ExitCode::SUCCESS)
}

/// A file, or a name of what comes with this program where there is no such file.
fn find(file_or_name: &Path) -> anyhow::Result<Declaration> {
    let by_name = |declaration: &Declaration| Path::new(&declaration.name) == file_or_name;
    if !file_or_name.exists()
        && let Some(declaration) = shipped().into_iter().find(by_name)
    {
        return Ok(declaration);
    }
    Ok(Declaration::read(file_or_name)?)
}

fn row(manifest: &TemplateManifest, now_ms: u128) -> [String; 6] {
    let built_s = now_ms.saturating_sub(u128::from(manifest.built_at_ms)) / 1000;
    [
        manifest.name.clone(),
        age(built_s),
        format!("{}G", manifest.rootfs_gb),
        format!("{}M", manifest.ram_mib),
        manifest.vcpus.to_string(),
        manifest.description.clone(),
    ]
}
