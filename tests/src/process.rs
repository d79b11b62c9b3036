//! Processes that end with their owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running process, killed when dropped; what it prints is kept in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    keep: bool,
}

impl Process {
    /// Starts a command with its output in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
            keep: false,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Leaves it running when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("sending a signal")
    }

    /// Whether it still runs; its exit status when it does not.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.child.try_wait().context("asking for a process's end")
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait().context("waiting for a process's end")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.keep {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
