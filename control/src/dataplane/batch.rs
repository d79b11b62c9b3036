//! Reads and writes many rows of a map with one system call (`BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH`, Linux
//! 5.6).
//!
//! # Why
//! A walk by `BPF_MAP_GET_NEXT_KEY` costs two system calls a row and starts again from the beginning
//! when its key is deleted under it; a batch costs a fraction and keeps its place by bucket.
//!
//! Not for types: rows come as bytes, [`super::table`] gives them their meaning.
#![expect(
    unsafe_code,
    reason = "the bpf system call takes addresses; aya has no batch operations"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `BPF_MAP_LOOKUP_BATCH` in `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_BATCH`.
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Room for the kernel's place in a map: a bucket number for hashes, a key for arrays.
const PLACE_BYTES: usize = 64;

/// The `batch` member of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a walk through a map stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// What the kernel gave; absent: at the beginning.
    kernel: Option<[u8; PLACE_BYTES]>,
}

/// Some rows, as bytes.
#[derive(Debug)]
pub struct Rows {
    /// Keys, one after another.
    pub keys: Vec<u8>,
    /// Values, one after another.
    pub values: Vec<u8>,
    /// How many rows.
    pub count: usize,
    /// Where the next call goes on; absent: the walk is complete.
    pub next: Option<Place>,
}

/// Reads about `count` rows from `place` on. `key_bytes` and `value_bytes` are the map's own sizes; a
/// per-CPU map's value is the rounded size times the possible CPUs.
///
/// Rows that are added or removed while a walk is under way may or may not be seen; none is seen twice
/// unless it moves.
pub fn lookup(
    map: BorrowedFd<'_>,
    place: Place,
    key_bytes: usize,
    value_bytes: usize,
    count: usize,
) -> io::Result<Rows> {
    if key_bytes > PLACE_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut wanted = count.max(1);
    loop {
        let mut keys = vec![0_u8; wanted * key_bytes];
        let mut values = vec![0_u8; wanted * value_bytes];
        let mut next = [0_u8; PLACE_BYTES];
        let mut attributes = Attributes {
            in_batch: place
                .kernel
                .as_ref()
                .map_or(0, |kernel| kernel.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: wanted as u32,
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values of the map's own sizes and one
        // place; the callers pass the map's sizes and the buffers above hold that much and live on.
        let error = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attributes) }.err();
        let read = attributes.count as usize;
        let complete = match error.as_ref().and_then(io::Error::raw_os_error) {
            None if error.is_none() => false,
            // The map ends here; the rows before the end are valid.
            Some(libc::ENOENT) => true,
            // One bucket holds more rows than there is room for.
            Some(libc::ENOSPC) => {
                wanted *= 2;
                continue;
            }
            _ => return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into())),
        };
        keys.truncate(read * key_bytes);
        values.truncate(read * value_bytes);
        return Ok(Rows {
            keys,
            values,
            count: read,
            next: (!complete).then_some(Place { kernel: Some(next) }),
        });
    }
}

/// Writes `count` rows in their order: keys and values, one after another, of the map's own sizes. How many were written
/// before the first that could not be.
pub fn update(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> usize {
    let mut attributes = Attributes {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..Attributes::default()
    };
    // SAFETY: the kernel reads `count` keys and values of the map's own sizes, which the callers pass.
    let outcome = unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attributes) };
    // Where a call ends before its first row, the kernel leaves the count as it was.
    match outcome {
        Ok(()) => count,
        Err(_) if attributes.count as usize == count => 0,
        Err(_) => attributes.count as usize,
    }
}

/// # Safety
/// The addresses and sizes in `attributes` are those of memory that the command may use.
unsafe fn call(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    let size = size_of::<Attributes>();
    // SAFETY: as the caller says.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
