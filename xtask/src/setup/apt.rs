//! Debian packages, without the daemons that some of them start.
//!
//! Not for deciding which: that is the list in `setup`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::workspace;

/// A package, and the service that it would run from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub service: Option<&'static str>,
}

/// Says whether this machine has apt.
pub fn is_there() -> bool {
    workspace::find_program("apt-get").is_some()
}

/// Installs those packages that apt knows, with no service started or enabled that was not there before.
///
/// A package that apt does not know is left out: the caller sees that its need is still not met.
pub fn install(packages: &[Package]) -> Result<()> {
    let absent: Vec<Package> = packages
        .iter()
        .filter(|package| !is_installed(package.name))
        .copied()
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    // The lists of a fresh machine or image are empty.
    let updated = absent.iter().any(|package| !is_known(package.name));
    if updated {
        update();
    }
    let known: Vec<Package> = absent
        .into_iter()
        .filter(|package| is_known(package.name))
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    let quiet = ServicesHeld::hold()?;
    // Lists that are too old name files that are gone: one more try with fresh ones.
    if apt_get_install(&known).is_err() && !updated {
        update();
        apt_get_install(&known)?;
    }
    drop(quiet);
    disable_services(&known);
    Ok(())
}

fn is_installed(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let status = query
        .args(["--show", "--showformat=${db:Status-Status}", name])
        .output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

fn is_known(name: &str) -> bool {
    let policy = Command::new("apt-cache")
        .args(["policy", name])
        .env("LC_ALL", "C")
        .output();
    policy.is_ok_and(|output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|version| version != "(none)")
}

fn update() {
    println!("setup: apt-get update, because apt's lists lack a package");
    let mut apt = Command::new("apt-get");
    // A third party's list that cannot be fetched is no reason to stop: what counts is what apt knows afterwards.
    if let Err(error) = workspace::run_quietly(
        apt.args(["--quiet", "--quiet", "update"]),
        "updating apt's lists",
    ) {
        println!("setup: {error:#}");
    }
}

fn apt_get_install(packages: &[Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    println!("setup: apt-get install {}", names.join(" "));
    let mut apt = Command::new("apt-get");
    apt.args([
        "--quiet",
        "--quiet",
        "--yes",
        "--no-install-recommends",
        "-o",
        "Dpkg::Use-Pty=0",
    ]);
    apt.args([
        "-o",
        "Dpkg::Options::=--force-confold",
        "-o",
        "DPkg::Lock::Timeout=300",
        "install",
    ]);
    apt.args(names).env("DEBIAN_FRONTEND", "noninteractive");
    workspace::run_quietly(&mut apt, "installing packages")
}

/// While it lives, packages that are installed do not start their services (Debian policy 9.3.3: `policy-rc.d`).
struct ServicesHeld(Option<PathBuf>);

impl ServicesHeld {
    fn hold() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let policy = Path::new("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        fs::write(policy, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("writing {}", policy.display()))?;
        let held = Self(Some(policy.to_path_buf()));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(policy, mode)
            .with_context(|| format!("making {} executable", policy.display()))?;
        Ok(held)
    }
}

impl Drop for ServicesHeld {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = fs::remove_file(policy)
        {
            println!(
                "setup: {} must be removed by hand: {error}",
                policy.display()
            );
        }
    }
}

/// The packages are new here, so nobody relies on their services: a router that starts with the machine would
/// take port 179 from the agent.
fn disable_services(packages: &[Package]) {
    if workspace::find_program("systemctl").is_none() {
        return;
    }
    for service in packages.iter().filter_map(|package| package.service) {
        let done = Command::new("systemctl")
            .args(["--quiet", "disable", service])
            .output();
        if done.is_ok_and(|output| output.status.success()) {
            println!(
                "setup: the service {service} came with the package and stays off (systemctl enable {service})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_known() {
        assert!(has_candidate(
            "frr:\n  Installed: (none)\n  Candidate: 8.4.4-1.1\n"
        ));
        assert!(!has_candidate(
            "frr:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!has_candidate(""));
    }
}
