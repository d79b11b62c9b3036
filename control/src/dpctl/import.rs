//! `dpctl import`: what another system's objects say, in the objects that Fairlead reads.
//!
//! Asks nobody: a file in, documents out. What has no counterpart is said, never left out in silence.

mod metallb;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Outcome;
use super::args::Import;

/// Prints the documents that come of a file.
pub fn run(import: &Import) -> Result<Outcome> {
    let Import::Metallb { file } = import;
    let text = read(file)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let converted = metallb::convert(&documents);
    if converted.documents.is_empty() && converted.notes.is_empty() {
        bail!(
            "{}: holds no object of MetalLB; `kubectl get -A -o yaml ipaddresspools,bgppeers,bgpadvertisements,bfdprofiles,communities.metallb.io` writes such a file",
            file.display()
        );
    }
    let mut out = String::new();
    for note in &converted.notes {
        writeln!(out, "# {note}")?;
    }
    for document in &converted.documents {
        writeln!(
            out,
            "---\n{}",
            serde_saphyr::to_string(document)?.trim_end()
        )?;
    }
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(Outcome::Yes)
}

fn read(file: &Path) -> Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading from standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
