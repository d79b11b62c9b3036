//! A pinned link by its descriptor: where it is, how its program is replaced, and how it is cut at once.
//!
//! # Why
//! Removing a pin lets go of its link only after an RCU grace period (kernel/bpf/inode.c,
//! `bpf_free_inode`): a program would still run for some milliseconds after "detached" was said, and
//! the next attachment would find the device busy. `BPF_LINK_DETACH` (Linux 5.9) does not wait.
//!
//! Not for making links: aya does ([`super::attach`], [`super::sockets`]). It replaces the programs of links on
//! devices too, not those of links at cgroups.
#![expect(
    unsafe_code,
    reason = "the bpf system call takes addresses; aya hides the descriptor of an XDP link"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

/// `BPF_OBJ_GET` in `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_LINK_UPDATE`.
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `BPF_LINK_DETACH`.
const BPF_LINK_DETACH: libc::c_long = 34;

/// The object members of `union bpf_attr`.
#[repr(C)]
struct ObjectAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The `link_update` member of `union bpf_attr`.
#[repr(C)]
struct UpdateAttributes {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The `link_detach` member of `union bpf_attr`.
#[repr(C)]
struct DetachAttributes {
    link_fd: u32,
}

/// A pinned link.
#[derive(Debug)]
pub struct Link {
    descriptor: OwnedFd,
}

impl Link {
    /// Opens a pin.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let attributes = ObjectAttributes {
            pathname: path.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        };
        let descriptor = bpf(BPF_OBJ_GET, &attributes)?;
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    /// The index of the device that it is on; 0 once that has gone.
    pub fn device(&self) -> io::Result<u32> {
        fact("ifindex:", &self.facts()?)
            .ok_or_else(|| io::Error::other("this link is on no device"))
    }

    /// The number of the cgroup that it is at, which is its folder's inode; 0 once that has gone.
    pub fn cgroup(&self) -> io::Result<u64> {
        fact("cgroup_id:", &self.facts()?)
            .ok_or_else(|| io::Error::other("this link is at no cgroup"))
    }

    fn facts(&self) -> io::Result<String> {
        fs::read_to_string(format!("/proc/self/fdinfo/{}", self.descriptor.as_raw_fd()))
    }

    /// Puts another program in the place of its own: whatever comes meets the one or the other.
    pub fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = UpdateAttributes {
            link_fd: self.descriptor.as_raw_fd().cast_unsigned(),
            new_prog_fd: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            old_prog_fd: 0,
        };
        bpf(BPF_LINK_UPDATE, &attributes).map(drop)
    }

    /// Takes its program off the device or the cgroup, at once.
    pub fn cut(&self) -> io::Result<()> {
        let attributes = DetachAttributes {
            link_fd: self.descriptor.as_raw_fd().cast_unsigned(),
        };
        bpf(BPF_LINK_DETACH, &attributes).map(drop)
    }
}

fn bpf<A>(command: libc::c_long, attributes: &A) -> io::Result<libc::c_long> {
    // SAFETY: the commands read their attributes, of which the size is given, and write to no memory
    // of ours; what the attributes point at is alive in the callers.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<A>(),
        )
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome)
    }
}

/// Finds a number in what the kernel says of a link (`bpf_xdp_link_show_fdinfo` and its like).
fn fact<T: FromStr>(name: &str, text: &str) -> Option<T> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_and_cgroup_stand_among_other_facts() {
        let text =
            "pos:\t0\nlink_type:\ttcx\nlink_id:\t7\nifindex:\t12\nattach_type:\ttcx_egress (47)\n";

        assert_eq!(fact("ifindex:", text), Some(12_u32));
        let text = "link_type:\tcgroup\nlink_id:\t8\ncgroup_id:\t4294967297\nattach_type:\t10\n";
        assert_eq!(fact("cgroup_id:", text), Some(4_294_967_297_u64));
        assert_eq!(fact::<u32>("ifindex:", text), None);
    }
}
