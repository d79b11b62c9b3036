//! ExaBGP, and the process through which it is told what to say and tells what it hears.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::process::Process;

/// A running ExaBGP.
#[derive(Debug)]
pub struct ExaBgp {
    commands: PathBuf,
    heard: PathBuf,
    _process: Process,
}

impl ExaBgp {
    /// Starts ExaBGP with one neighbour, of which these are the lines.
    pub fn start(netns: &Netns, dir: &Path, neighbor: &str, lines: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let (commands, heard) = (dir.join("commands"), dir.join("heard"));
        std::fs::write(&commands, "")?;
        std::fs::write(&heard, "")?;
        let script = dir.join("talk");
        std::fs::write(
            &script,
            format!(
                "#!/bin/sh\nexec 3<&0\ncat <&3 > {} &\nexec tail -n +1 -f {}\n",
                heard.display(),
                commands.display()
            ),
        )?;
        let file = dir.join("exabgp.conf");
        let config = format!(
            "process talk {{\n run /bin/sh {};\n encoder json;\n}}\n\
             neighbor {neighbor} {{\n{lines}\
             \x20api {{ processes [ talk ]; receive {{ parsed; update; }} }}\n}}\n",
            script.display()
        );
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        let mut command = netns.command("exabgp");
        command
            .arg(&file)
            // Its own process would drop to a user that may not read the folder.
            .env("exabgp.daemon.user", "root")
            .env("exabgp.daemon.drop", "false")
            .env("exabgp.api.cli", "false")
            .env("exabgp.log.destination", "stdout");
        let process = Process::start(&mut command, &dir.join("exabgp.log"))
            .context("ExaBGP (cargo xtask setup installs it)")?;
        Ok(Self {
            commands,
            heard,
            _process: process,
        })
    }

    /// Gives it a command of its API.
    pub fn tell(&self, command: &str) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.commands)?;
        writeln!(file, "{command}").context("telling ExaBGP")
    }

    /// What it heard so far, one JSON document a line.
    pub fn heard(&self) -> Result<String> {
        std::fs::read_to_string(&self.heard).context("reading what ExaBGP heard")
    }
}
