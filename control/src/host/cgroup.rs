//! Where this host's cgroups are: programs for sockets stand at one of them.
//!
//! Not for making or changing cgroups.

use std::fs;
use std::path::PathBuf;

use super::Error;

/// The root of the unified hierarchy (cgroups(7)), where one is mounted: `/sys/fs/cgroup` or
/// `/sys/fs/cgroup/unified`.
pub fn root() -> Result<Option<PathBuf>, Error> {
    let path = "/proc/mounts";
    let mounts =
        fs::read_to_string(path).map_err(Error::new(format!("reading the mounts in {path}")))?;
    Ok(root_in(&mounts))
}

/// Finds it in the text of `/proc/mounts` (fstab(5)).
fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_the_old_ones() {
        let mounts = "proc /proc proc rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

        assert_eq!(
            root_in(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(
            root_in("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"),
            None
        );
    }
}
