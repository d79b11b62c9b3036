//! Takes a cluster away, whole or half made.
//!
//! The control group is ended as one (`cgroup.kill`): that finds also what a container started and nobody waits for,
//! and nothing else. With the last process its mounts go; then the namespaces, the groups and the folder.
//!
//! Not for stopping a single part.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{fabric, groups::Groups, place};
use crate::workspace::{self, now};

const PATIENCE: Duration = Duration::from_secs(20);

/// Takes away a cluster; says whether there was something of one.
///
/// # Errors
/// Something could not be removed; what is left, a second call finds.
pub fn down(name: &str) -> Result<bool> {
    place::check_name(name)?;
    let folder = place::folder(name);
    let mut found = folder.exists();
    let groups = Groups::recorded(name).ok();
    if let Some(groups) = &groups {
        end_processes(&groups.unified)?;
    }
    for host in fabric::hosts() {
        let netns = format!("{name}-{host}");
        if Path::new("/run/netns").join(&netns).exists() {
            found = true;
            workspace::run_quietly(
                Command::new("ip").args(["netns", "del", &netns]),
                "removing a network namespace",
            )?;
        }
    }
    for group in groups.iter().flat_map(Groups::folders) {
        remove_group(group)?;
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => {
            // Other clusters may have their folders beside it.
            let _ = folder.parent().map(fs::remove_dir);
            Ok(found)
        }
    }
}

fn end_processes(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    let kill = group.join("cgroup.kill");
    fs::write(&kill, "1").with_context(|| kill.display().to_string())?;
    let began = now();
    let events = group.join("cgroup.events");
    while fs::read_to_string(&events)
        .with_context(|| events.display().to_string())?
        .contains("populated 1")
    {
        if began.elapsed() > PATIENCE {
            bail!("processes in {} do not end", group.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes a group and those within it: the innermost first.
fn remove_group(group: &Path) -> Result<()> {
    let Ok(listing) = fs::read_dir(group) else {
        return Ok(());
    };
    let within: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    for inner in within {
        remove_group(&inner)?;
    }
    let began = now();
    loop {
        match fs::remove_dir(group) {
            // The last process is gone, its accounting is not yet.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && began.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", group.display()));
            }
            _ => return Ok(()),
        }
    }
}
