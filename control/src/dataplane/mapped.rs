//! An array map as memory: slots are written by one store each, without a system call.
//!
//! A slot is eight aligned bytes, so a packet that reads it sees the old one or the new one, never a
//! mixture. There is no lock and no order between slots.
//!
//! Not for maps without `BPF_F_MMAPABLE`, nor for values that are larger than a word: a reader would see
//! half of a change.
#![expect(
    unsafe_code,
    reason = "memory that is shared with the kernel is reached by pointer"
)]

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What may be done with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// A mapped array, seen as a run of words of type `W`.
#[derive(Debug)]
pub struct Mapped<W> {
    base: NonNull<c_void>,
    bytes: NonZeroUsize,
    words: usize,
    access: Access,
    word: PhantomData<W>,
}

// SAFETY: the memory belongs to the map, which outlives every thread of this process through the
// mapping; all access is by volatile loads and stores of whole words.
unsafe impl<W: Send> Send for Mapped<W> {}

impl<W: Pod> Mapped<W> {
    /// A word must be stored by one instruction to be seen whole.
    const WORD: () = assert!(size_of::<W>() == 8 && align_of::<W>() == 8);

    /// Maps some rows of an array of values of `row_bytes` each, where `row_bytes` is a multiple of 8 and the rows
    /// begin at a page.
    ///
    /// # Errors
    /// Those of mmap(2): `EPERM` where the map was made without `BPF_F_MMAPABLE`, `EINVAL` where the rows begin
    /// elsewhere.
    pub fn new(
        map: BorrowedFd<'_>,
        rows: &Range<u32>,
        row_bytes: usize,
        access: Access,
    ) -> io::Result<Self> {
        let () = Self::WORD;
        let length = rows.len() * row_bytes;
        let from = libc::off_t::try_from(rows.start as usize * row_bytes)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let bytes = NonZeroUsize::new(length)
            .filter(|_| row_bytes.is_multiple_of(8))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory of ours.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map, from)? };
        Ok(Self {
            base,
            bytes,
            words: length / 8,
            access,
            word: PhantomData,
        })
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.words
    }

    /// Whether there is none; never, as a map has at least one row.
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// Reads a word.
    pub fn get(&self, index: usize) -> Option<W> {
        (index < self.words).then(|| {
            // SAFETY: the index is inside the mapping, which is page-aligned and lives as long as self.
            let word = unsafe { self.base.cast::<u64>().add(index).read_volatile() };
            bytemuck::cast(word)
        })
    }

    /// Writes a word by one store; `false` when it is out of range or the memory is read-only.
    #[must_use]
    pub fn set(&mut self, index: usize, word: W) -> bool {
        let inside = index < self.words && self.access == Access::Write;
        if inside {
            // SAFETY: as in `get`, and the mapping is writable. The one aligned eight-byte store is
            // what readers in the kernel rely on.
            unsafe {
                self.base
                    .cast::<u64>()
                    .add(index)
                    .write_volatile(bytemuck::cast(word));
            }
        }
        inside
    }

    /// Writes a word by one compare-and-exchange; `false` when it was not `old`, is out of range, or the memory is
    /// read-only.
    #[must_use]
    pub fn exchange(&mut self, index: usize, old: W, new: W) -> bool {
        if index >= self.words || self.access != Access::Write {
            return false;
        }
        // SAFETY: as in `set`; an aligned word that others reach by single instructions only.
        let word = unsafe { AtomicU64::from_ptr(self.base.cast::<u64>().add(index).as_ptr()) };
        let (old, new) = (bytemuck::cast(old), bytemuck::cast(new));
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

impl<W> Drop for Mapped<W> {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `new` mapped, and nothing borrows from it.
        // An error would mean a wrong range; there is nobody left to tell.
        let _ = unsafe { munmap(self.base, self.bytes.get()) };
    }
}
