//! OpenBGPD, with `bgpctl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::{Netns, run, wait_for};
use crate::process::Process;

/// A running OpenBGPD.
#[derive(Debug)]
pub struct OpenBgpd {
    control: PathBuf,
    _process: Process,
}

impl OpenBgpd {
    /// Starts OpenBGPD with this configuration, less its control socket, and waits until it answers.
    pub fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let control = dir.join("bgpd.sock");
        let file = dir.join("bgpd.conf");
        let config = format!("socket \"{}\"\n{config}", control.display());
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        // It refuses a configuration that others may read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private)?;
        let mut command = Self::command(netns);
        command.arg("-d").arg("-f").arg(&file);
        let log = dir.join("bgpd.log");
        let openbgpd = Self {
            _process: Process::start(&mut command, &log)
                .context("OpenBGPD (cargo xtask setup installs it)")?,
            control,
        };
        let what = format!("OpenBGPD to answer (see {})", log.display());
        wait_for(&what, 10, || openbgpd.ask("show").map(Some))?;
        Ok(openbgpd)
    }

    /// The program in a namespace, with the folder that its processes lock themselves into, which only its
    /// unit makes, in a file system that ends with it.
    pub fn command(netns: &Netns) -> Command {
        let mut command = netns.command("sh");
        command.args([
            "-c",
            "mount -t tmpfs tmpfs /run && mkdir /run/openbgpd && exec bgpd \"$@\"",
            "bgpd",
        ]);
        command
    }

    /// What `bgpctl COMMAND` prints.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut bgpctl = Command::new("bgpctl");
        bgpctl.arg("-s").arg(&self.control);
        run(bgpctl.args(command.split_whitespace()))
    }
}
