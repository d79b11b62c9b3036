//! A cgroup of a test's own: programs for sockets that stand there see the sockets of its thread only.
//!
//! ```text
//!   ROOT/fairlead-test-PID          this process, while a test needs it
//!   ROOT/fairlead-test-PID/THREAD   one test's thread, and the threads that it starts
//! ```
//! Threads may be in different cgroups below the one of their process when these are of the type `threaded`
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use anyhow::{Context, Result};
use fairlead_control::host::cgroup;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{getpid, gettid};

use crate::netns::wait_for;

/// The process's own cgroup, if a test needs one.
#[expect(
    clippy::disallowed_types,
    reason = "tests of one process run beside each other, and the process is in one place"
)]
static HOME: std::sync::Mutex<Option<Home>> = std::sync::Mutex::new(None);

struct Home {
    path: PathBuf,
    /// How many tests need it.
    tests: usize,
    /// Where the process was before.
    before: PathBuf,
}

/// A cgroup that this thread is in; when dropped the thread is where it was and the cgroup is gone.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one and moves this thread into it.
    ///
    /// # Errors
    /// No unified hierarchy is mounted, or this process may not change it.
    pub fn enter() -> Result<Self> {
        let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
        let home = match &mut *home {
            Some(home) => home,
            none => none.insert(Home::make()?),
        };
        home.tests += 1;
        let thread = gettid();
        let cgroup = Self {
            path: home.path.join(thread.to_string()),
        };
        fs::create_dir(&cgroup.path).with_context(|| cgroup.path.display().to_string())?;
        write(&cgroup.path.join("cgroup.type"), "threaded")?;
        write(&cgroup.path.join("cgroup.threads"), &thread.to_string())?;
        Ok(cgroup)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The unified hierarchy at a place of its own: `ip netns exec` hides `/sys/fs/cgroup`. Gone when dropped.
#[derive(Debug)]
pub struct Hierarchy {
    folder: PathBuf,
}

impl Hierarchy {
    /// Mounts it.
    ///
    /// # Errors
    /// This process may not.
    pub fn mount() -> Result<Self> {
        let folder = PathBuf::from(format!("/run/fairlead-cgroups-{}", gettid()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let hierarchy = Self { folder };
        let [kind, options] = [Some("cgroup2"), None];
        mount(kind, &hierarchy.folder, kind, MsFlags::empty(), options)
            .with_context(|| format!("mounting cgroups at {}", hierarchy.folder.display()))?;
        Ok(hierarchy)
    }

    /// Where a cgroup is seen here.
    ///
    /// # Errors
    /// No unified hierarchy is mounted elsewhere.
    pub fn path(&self, cgroup: &Cgroup) -> Result<PathBuf> {
        let root = cgroup::root()?.context("no cgroup2 is mounted")?;
        Ok(self.folder.join(cgroup.path.strip_prefix(root)?))
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
        // Never what is in it: that would be everybody's cgroups.
        let _ = fs::remove_dir(&self.folder);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(process) = &mut *home else {
            return;
        };
        // What cannot be done here is no reason to fail: an empty cgroup costs nothing.
        let _ = write(&process.path.join("cgroup.threads"), &gettid().to_string());
        remove(&self.path);
        process.tests -= 1;
        if process.tests == 0 {
            let _ = write(&process.before.join("cgroup.procs"), &getpid().to_string());
            remove(&process.path);
            *home = None;
        }
    }
}

impl Home {
    fn make() -> Result<Self> {
        let root = cgroup::root()?.context("no cgroup2 is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("this process is in no cgroup of the unified hierarchy")?;
        let home = Self {
            path: root.join(format!("fairlead-test-{}", getpid())),
            tests: 0,
            before: root.join(own),
        };
        fs::create_dir(&home.path).with_context(|| home.path.display().to_string())?;
        write(&home.path.join("cgroup.procs"), &getpid().to_string())?;
        Ok(home)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {text} to {}", path.display()))
}

/// Threads that have ended leave their cgroup a moment later.
fn remove(path: &Path) {
    let _ = wait_for("the cgroup to be empty", 2, || {
        Ok(fs::remove_dir(path).map(Some)?)
    });
}
