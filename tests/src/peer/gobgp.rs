//! GoBGP, with its command line client.

use std::path::Path;

use anyhow::{Context, Result};

use crate::netns::{Netns, run, wait_for};
use crate::process::Process;

/// A running gobgpd.
#[derive(Debug)]
pub struct GoBgp {
    netns: String,
    _process: Process,
}

impl GoBgp {
    /// Starts gobgpd with this configuration (TOML) and waits until it answers.
    pub fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("gobgp.toml");
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        let mut command = netns.command("gobgpd");
        command
            .arg("-f")
            .arg(&file)
            .args(["--api-hosts", "127.0.0.1:50051"]);
        let log = dir.join("gobgp.log");
        let gobgp = Self {
            netns: netns.name().to_owned(),
            _process: Process::start(&mut command, &log)
                .context("GoBGP (cargo xtask setup installs it)")?,
        };
        let what = format!("GoBGP to answer (see {})", log.display());
        wait_for(&what, 10, || gobgp.ask("global").map(Some))?;
        Ok(gobgp)
    }

    /// What `gobgp COMMAND` prints.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut gobgp = Netns::existing(&self.netns).command("gobgp");
        run(gobgp.args(command.split_whitespace()))
    }
}
