//! BIRD 2, with `birdc`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::netns::{Netns, run, wait_for};
use crate::process::Process;

/// A running BIRD.
#[derive(Debug)]
pub struct Bird {
    control: PathBuf,
    _process: Process,
}

impl Bird {
    /// Starts BIRD with this configuration and waits until it answers.
    pub fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("bird.conf");
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        let control = dir.join("bird.ctl");
        let mut command = netns.command("bird");
        command
            .arg("-f")
            .arg("-c")
            .arg(&file)
            .arg("-s")
            .arg(&control)
            .arg("-P")
            .arg(dir.join("bird.pid"));
        let log = dir.join("bird.log");
        let bird = Self {
            _process: Process::start(&mut command, &log)
                .context("BIRD (cargo xtask setup installs it)")?,
            control,
        };
        wait_for(
            &format!("BIRD to answer (see {})", log.display()),
            10,
            || bird.ask("show status").map(Some),
        )?;
        Ok(bird)
    }

    /// What `birdc COMMAND` prints; a command that changes nothing.
    pub fn ask(&self, command: &str) -> Result<String> {
        self.birdc(&["-r"], command)
    }

    /// Gives `birdc` a command that does something; what it prints.
    pub fn order(&self, command: &str) -> Result<String> {
        self.birdc(&[], command)
    }

    fn birdc(&self, flags: &[&str], command: &str) -> Result<String> {
        let mut birdc = std::process::Command::new("birdc");
        birdc.args(flags).arg("-s").arg(&self.control);
        run(birdc.args(command.split_whitespace()))
    }
}
