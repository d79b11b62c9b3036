//! Programs that go on running when `up` has ended: started in the cluster's control group, found again by pid.
//!
//! A pid counts only with the moment at which its process began: numbers are used again.
//!
//! Not for ending them: the control group knows more than what was started here (`teardown`).

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{groups::Groups, place::Cluster};

/// A part that runs.
pub struct Daemon {
    pub name: String,
    pub pid: u32,
    began: u64,
    log: PathBuf,
}

impl Daemon {
    pub fn is_running(&self) -> bool {
        began(self.pid) == Some(self.began)
    }

    /// Says why it does not run, if it does not.
    ///
    /// # Errors
    /// It has ended; with the end of what it printed.
    pub fn check(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let printed = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = printed.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        bail!("{} has ended:\n{}", self.name, last.join("\n"))
    }

    /// Whether it has become this program: until then it is the shell that makes its surroundings.
    pub fn is_program(&self, program: &str) -> bool {
        fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok_and(|exe| exe.ends_with(program))
    }

    /// A path as this part sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid)).join(path.trim_start_matches('/'))
    }

    /// A command in the network, mount, host name and cgroup namespaces of this part, and in these control groups:
    /// a namespace alone does not make it one of the cluster's processes.
    pub fn enter(&self, groups: &Groups) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-euc",
                "pid=$0; while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\"; shift; done; shift\n\
                 exec nsenter --net --mount --uts --cgroup --target \"$pid\" \"$@\"",
            ])
            .arg(self.pid.to_string())
            .args(groups.folders())
            .arg("--");
        command
    }
}

/// Starts a part in the background. `command` may be a shell's: what counts is what it becomes by `exec`.
pub fn start(cluster: &Cluster, name: &str, command: &mut Command) -> Result<Daemon> {
    let log = cluster.log(name);
    let output = File::create(&log).with_context(|| log.display().to_string())?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}: {command:?}"))?;
    let pid = child.id();
    let daemon = Daemon {
        name: name.to_owned(),
        pid,
        began: began(pid).with_context(|| format!("{name} ended at once"))?,
        log,
    };
    let file = cluster.folder().join("pid").join(name);
    fs::write(&file, format!("{pid} {}", daemon.began))
        .with_context(|| file.display().to_string())?;
    Ok(daemon)
}

/// Starts a part in a network namespace and the cluster's control group.
pub fn start_in(
    cluster: &Cluster,
    host: &str,
    name: &str,
    program: &Path,
    arguments: &[String],
) -> Result<Daemon> {
    let mut command = in_netns(&cluster.netns(host), "sh");
    command
        .args(["-euc", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
        .arg(Groups::recorded(&cluster.name)?.make(host)?.unified)
        .arg(program)
        .args(arguments);
    start(cluster, name, &mut command)
}

/// All parts that were started.
pub fn all(cluster: &Cluster) -> Result<Vec<Daemon>> {
    let folder = cluster.folder().join("pid");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.iter().map(|name| find(cluster, name)).collect()
}

/// A part that was started.
pub fn find(cluster: &Cluster, name: &str) -> Result<Daemon> {
    let file = cluster.folder().join("pid").join(name);
    let text = fs::read_to_string(&file).with_context(|| format!("{name} was not started"))?;
    let (pid, began) = text
        .split_once(' ')
        .and_then(|(pid, began)| Some((pid.parse().ok()?, began.parse().ok()?)))
        .with_context(|| format!("{}: not a pid and a time", file.display()))?;
    Ok(Daemon {
        name: name.to_owned(),
        pid,
        began,
        log: cluster.log(name),
    })
}

/// A command in a network namespace. Not `ip netns exec`: that would make a mount namespace around it.
pub fn in_netns(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter
        .arg(format!("--net=/run/netns/{netns}"))
        .arg(program);
    nsenter
}

/// When a process began, in ticks since the machine did (proc(5), `starttime`); none for one that is gone or
/// waits to be collected.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name that may hold spaces and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_counts_with_its_beginning() {
        assert!(began(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(began(u32::MAX), None);
    }
}
