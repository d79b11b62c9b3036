//! TCP MD5 signatures (RFC 2385): the password of a peer on a socket.
//!
//! A socket that has a password for an address signs every segment to it, and the kernel drops every
//! segment from it that is unsigned or signed with another password. A connection that is accepted
//! inherits the listening socket's password of its peer. What the kernel drops it counts (`netstat`).
//!
//! Not for: which peer has which password.
#![expect(
    unsafe_code,
    reason = "TCP_MD5SIG takes a struct that neither socket2 nor nix knows"
)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use fairlead_bgp::Password;
use socket2::{SockAddr, SockAddrStorage};

/// `TCP_MD5SIG` (include/uapi/linux/tcp.h).
const TCP_MD5SIG: libc::c_int = 14;

/// `struct tcp_md5sig` (include/uapi/linux/tcp.h), without the extensions that its flags ask for.
#[repr(C)]
struct Md5Sig {
    address: SockAddrStorage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: libc::c_int,
    key: [u8; 80],
}

/// Signs what a socket says to an address, and wants what it hears from there signed alike; with
/// `None` neither any more. A listening socket does so for connections to come.
///
/// # Errors
/// The kernel has no TCP MD5, or there was no password to take away.
pub(super) fn sign(
    socket: &impl AsFd,
    peer: IpAddr,
    password: Option<&Password>,
) -> io::Result<()> {
    let octets = password.map_or(&[][..], Password::octets);
    let mut request = Md5Sig {
        // The port is not looked at.
        address: SockAddr::from(std::net::SocketAddr::new(peer, 0)).as_storage(),
        flags: 0,
        prefix_len: 0,
        key_len: u16::try_from(octets.len()).map_err(io::Error::other)?,
        ifindex: 0,
        key: [0; 80],
    };
    for (to, from) in request.key.iter_mut().zip(octets) {
        *to = *from;
    }
    let length = libc::socklen_t::try_from(size_of::<Md5Sig>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads `length` octets of
    // the request, which is that long, has no uninitialised octets and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_MD5SIG,
            (&raw const request).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
