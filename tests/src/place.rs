//! An agent's place in the kernel, of a test's own: pins in a BPF file system that nobody else sees.

use anyhow::Result;
use fairlead_control::dataplane::load::{self, Loaded};
use fairlead_control::dataplane::pins::{Lock, Pins};

use crate::bpffs::BpfFs;

/// Pins and the lock that their agent holds; all gone when dropped.
#[derive(Debug)]
pub struct Place {
    /// Where everything is pinned.
    pub pins: Pins,
    /// Who may write there.
    pub lock: Lock,
    _fs: BpfFs,
}

impl Place {
    /// Makes one, with nothing pinned yet.
    ///
    /// # Errors
    /// Not root.
    pub fn make() -> Result<Self> {
        let fs = BpfFs::mount()?;
        let pins = Pins::new(fs.path().join("fairlead"));
        pins.prepare()?;
        Ok(Self {
            lock: pins.lock()?,
            pins,
            _fs: fs,
        })
    }

    /// Loads the datapath as an agent that starts there.
    ///
    /// # Errors
    /// As [`load::load`].
    pub fn load(&self) -> Result<Loaded, load::Error> {
        load::load(&self.pins, &self.lock)
    }
}
