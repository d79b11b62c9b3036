//! A BPF file system of a test's own: pins that nobody else sees, gone when dropped.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A mounted BPF file system, unmounted when dropped, and with it everything pinned there.
#[derive(Debug)]
pub struct BpfFs {
    folder: TempDir,
}

impl BpfFs {
    /// Mounts one; each mount is an instance of its own.
    pub fn mount() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        mount(
            Some("bpf"),
            folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting a BPF file system at {}", folder.path().display()))?;
        Ok(Self { folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Lazily: a process that a test forgot may still hold a file there.
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}
