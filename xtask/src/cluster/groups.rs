//! The cluster's control groups: one in each hierarchy, below the group that `up` runs in, so that what is started
//! stays within what limits us. They are noted: `down` may run in another group.
//!
//! Not for what runs in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::place;

/// A control group in all hierarchies.
#[derive(Debug, Serialize, Deserialize)]
pub struct Groups {
    pub unified: PathBuf,
    /// The name that mounts a hierarchy of version 1, and the group's folder in it.
    pub controllers: Vec<(String, PathBuf)>,
}

impl Groups {
    /// Makes a cluster's group and notes where.
    ///
    /// # Errors
    /// Control groups are not mounted as the nodes' containerd and kubelet need them.
    pub fn create(cluster: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
        let groups = Self::parse(&mounts, &own)?.within(&format!("fairlead-cluster-{cluster}"));
        let file = note(cluster);
        fs::write(&file, serde_json::to_string(&groups)?)
            .with_context(|| file.display().to_string())?;
        groups.create_folders()?;
        Ok(groups)
    }

    /// A cluster's group.
    ///
    /// # Errors
    /// None is noted.
    pub fn recorded(cluster: &str) -> Result<Self> {
        let file = note(cluster);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    /// Makes a group within this one.
    pub fn make(&self, name: &str) -> Result<Self> {
        let groups = self.within(name);
        groups.create_folders()?;
        Ok(groups)
    }

    pub fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(self.controllers.iter().map(|(_, folder)| folder))
    }

    fn parse(mounts: &str, own: &str) -> Result<Self> {
        let mut unified = None;
        let mut controllers = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(name), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let fits = |kind: &str, options: &str| match name {
                "" => kind == "cgroup2",
                name => kind == "cgroup" && options.ends_with(name),
            };
            let point = mounts.lines().find_map(|mount| {
                let mut fields = mount.split(' ').skip(1);
                let (point, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
                fits(kind, options).then_some(point)
            });
            let Some(point) = point else { continue };
            let folder = Path::new(point).join(path.trim_start_matches('/'));
            if name.is_empty() {
                unified = Some(folder);
            } else {
                controllers.push((name.to_owned(), folder));
            }
        }
        let unified = unified
            .context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")?;
        if controllers.is_empty() {
            bail!(
                "this machine has control groups of version 2 only; the cluster's nodes need those of version 1 \
                 beside it (kernel option systemd.unified_cgroup_hierarchy=0)"
            );
        }
        Ok(Self {
            unified,
            controllers,
        })
    }

    fn within(&self, name: &str) -> Self {
        Self {
            unified: self.unified.join(name),
            controllers: self
                .controllers
                .iter()
                .map(|(controller, folder)| (controller.clone(), folder.join(name)))
                .collect(),
        }
    }

    fn create_folders(&self) -> Result<()> {
        for folder in self.folders() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        for (_, folder) in self.controllers.iter().filter(|(name, _)| name == "cpuset") {
            // A new group of `cpuset` may use nothing until it is told what.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = folder.parent().unwrap_or(folder).join(file);
                let all = fs::read(&above).with_context(|| above.display().to_string())?;
                fs::write(folder.join(file), all)
                    .with_context(|| format!("{}/{file}", folder.display()))?;
            }
        }
        Ok(())
    }
}

fn note(cluster: &str) -> PathBuf {
    place::folder(cluster).join("groups.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_below_the_one_that_we_run_in() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let own = "9:name=systemd:/\n4:memory:/job/1\n2:hugetlb:/\n0::/\n";

        let groups = Groups::parse(mounts, own).unwrap().within("x");

        assert_eq!(groups.unified, Path::new("/sys/fs/cgroup/unified/x"));
        assert_eq!(
            groups.controllers,
            [
                ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd/x".into()),
                ("memory".to_owned(), "/sys/fs/cgroup/memory/job/1/x".into()),
            ]
        );
    }

    #[test]
    fn a_machine_without_the_first_version_is_refused_with_a_reason() {
        let error = Groups::parse("none /sys/fs/cgroup cgroup2 rw 0 0\n", "0::/\n").unwrap_err();
        assert!(error.to_string().contains("version 2 only"), "{error}");
    }
}
