//! Real routers as peers: each runs in a namespace, with its files in a folder of its own.

mod bird;
mod exabgp;
mod gobgp;
mod openbgpd;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::{Netns, run, wait_for};
use crate::process::Process;

pub use bird::Bird;
pub use exabgp::ExaBgp;
pub use gobgp::GoBgp;
pub use openbgpd::OpenBgpd;

/// FRR: zebra and bgpd, with `vtysh`.
#[derive(Debug)]
pub struct Frr {
    netns: String,
    dir: PathBuf,
    processes: Vec<Process>,
}

impl Frr {
    /// Starts zebra and bgpd with this configuration and waits until both answer.
    ///
    /// `dir` is made; it holds the configuration, the sockets and the logs.
    pub fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        Self::start_daemons(netns, dir, config, &["zebra", "bgpd"])
    }

    /// Starts zebra, bfdd and bgpd, as [`Self::start`] does.
    pub fn start_with_bfd(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        Self::start_daemons(netns, dir, config, &["zebra", "bfdd", "bgpd"])
    }

    fn start_daemons(netns: &Netns, dir: &Path, config: &str, daemons: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("frr.conf");
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        // The daemons drop to this user; the sockets they make in their own folder need no pathspace.
        run(Command::new("chown").args(["-R", "frr:frr"]).arg(dir))
            .context("FRR is not installed (cargo xtask setup installs it)")?;
        let mut frr = Self {
            netns: netns.name().to_owned(),
            dir: dir.to_owned(),
            processes: Vec::new(),
        };
        for daemon in daemons {
            let mut command = netns.command(Path::new("/usr/lib/frr").join(daemon));
            command
                .arg("--config_file")
                .arg(&file)
                .arg("--pid_file")
                .arg(dir.join(format!("{daemon}.pid")))
                .arg("--vty_socket")
                .arg(dir)
                .arg("--vty_port")
                .arg("0")
                .arg("--socket")
                .arg(dir.join("zserv.api"))
                .args(["--log", "stdout"]);
            if *daemon == "bfdd" {
                command.arg("--bfdctl").arg(dir.join("bfdd.sock"));
            }
            let log = dir.join(format!("{daemon}.log"));
            frr.processes.push(
                Process::start(&mut command, &log)
                    .with_context(|| format!("{daemon} of FRR (cargo xtask setup installs it)"))?,
            );
            let socket = dir.join(format!("{daemon}.vty"));
            wait_for(
                &format!("{daemon} to answer (see {})", log.display()),
                10,
                || Ok(std::os::unix::net::UnixStream::connect(&socket).ok()),
            )?;
        }
        Ok(frr)
    }

    /// What `vtysh -c COMMAND` prints.
    pub fn vtysh(&self, command: &str) -> Result<String> {
        run(&mut self.vtysh_command(&[command]))
    }

    /// What a command that prints JSON says.
    pub fn json(&self, command: &str) -> Result<serde_json::Value> {
        let text = self.vtysh(&format!("{command} json"))?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
    }

    /// Changes the configuration.
    pub fn configure(&self, lines: &[&str]) -> Result<()> {
        let mut commands = vec!["configure terminal"];
        commands.extend(lines);
        run(&mut self.vtysh_command(&commands)).map(drop)
    }

    /// The next hops that this router's BGP uses for a prefix, best path and multipath, sorted.
    pub fn next_hops(&self, prefix: &str) -> Result<Vec<String>> {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let table = self.json(&format!("show bgp {family} unicast {prefix}"))?;
        let paths = table["paths"].as_array().map_or(&[][..], Vec::as_slice);
        let mut next_hops: Vec<String> = paths
            .iter()
            .filter(|path| path["multipath"] == true || path["bestpath"]["overall"] == true)
            .flat_map(|path| path["nexthops"].as_array().cloned().unwrap_or_default())
            // An IPv6 next hop comes with its link-local twin.
            .filter(|hop| hop["scope"] != "link-local")
            .filter_map(|hop| hop["ip"].as_str().map(str::to_owned))
            .collect();
        next_hops.sort();
        next_hops.dedup();
        Ok(next_hops)
    }

    /// Leaves it running when dropped.
    pub fn keep(&mut self) {
        for process in &mut self.processes {
            process.keep();
        }
    }

    /// The words of a shell command that opens `vtysh`.
    pub fn shell(&self) -> String {
        format!(
            "ip netns exec {} vtysh --vty_socket {}",
            self.netns,
            self.dir.display()
        )
    }

    /// The ids of its processes.
    pub fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    fn vtysh_command(&self, commands: &[&str]) -> Command {
        let mut vtysh = Netns::existing(&self.netns).command("vtysh");
        vtysh.arg("--vty_socket").arg(&self.dir);
        for command in commands {
            vtysh.args(["-c", command]);
        }
        vtysh
    }
}
