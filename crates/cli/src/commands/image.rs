//! `podflare image build`.

use crate::args::ImageBuild;
use crate::output::Output;
use anyhow::Context;
use podflare_emulated_host::places::Places;
use podflare_image::cache::Cache;
use podflare_image::definition::GuestDefinition;
use podflare_image::guest::GuestImage;
use std::fs;
use std::process::ExitCode;

pub(crate) fn build(args: &ImageBuild, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let definition = match &args.definition {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
            GuestDefinition::parse(&path.display().to_string(), &text)?
        }
        None => GuestDefinition::built_in(),
    };
    let cache = Cache::open(&places.images())?;
    let image =
        GuestImage::build(&cache, &definition, &places.program("podflare-agent"), &|text| output.step(text))?;
    output.line(&image.directory.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
