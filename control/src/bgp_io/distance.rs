//! How far the packets of a connection go, and from how far they are taken.
//!
//! A direct external peer without GTSM gets packets of TTL 1, which never leave the link (RFC 4271 §5.1.3).
//! With GTSM (RFC 5082) both sides send 255 and the kernel drops what has less than a packet from the peer
//! can have: no sender behind a router can forge that.
//!
//! # Why the SYN is looked at
//! One socket listens for all peers, so the kernel can drop by TTL only after a connection was accepted. What
//! came before then, an OPEN perhaps, came from where the SYN came from, and that the kernel has kept.
#![expect(
    unsafe_code,
    reason = "IP_MINTTL, IPV6_MINHOPCOUNT and TCP_SAVE_SYN are options that neither socket2 nor nix knows"
)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use fairlead_bgp::Distance;
use socket2::Socket;

/// `TCP_SAVE_SYN` and `TCP_SAVED_SYN` (include/uapi/linux/tcp.h).
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;
/// Octets of an IP header and a TCP header at their longest; IPv6 extension headers may be cut off.
const LONGEST_HEADERS: usize = 512;

/// Sets both limits on a socket of an address's family.
///
/// # Errors
/// The kernel does not know the option.
pub(super) fn set(socket: &Socket, address: SocketAddr, distance: Distance) -> io::Result<()> {
    if let Some(ttl) = distance.ttl {
        match address {
            SocketAddr::V4(_) => socket.set_ttl_v4(ttl.into())?,
            SocketAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into())?,
        }
    }
    let Some(least) = distance.least_ttl else {
        return Ok(());
    };
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    set_option(socket, level, option, least.into())
}

/// Makes a listening socket keep the SYN of each connection.
///
/// # Errors
/// The kernel does not know the option.
pub(super) fn keep_syns(listener: &Socket) -> io::Result<()> {
    set_option(listener, libc::IPPROTO_TCP, TCP_SAVE_SYN, 1)
}

/// Says whether an accepted connection began within a distance.
///
/// # Errors
/// It began farther away, which is told for people; or its SYN was not kept.
pub(super) fn check_syn(stream: &impl AsFd, distance: Distance) -> io::Result<()> {
    let Some(least) = distance.least_ttl else {
        return Ok(());
    };
    match syn_ttl(stream)? {
        Some(ttl) if ttl >= least => Ok(()),
        Some(ttl) => Err(io::Error::other(format!(
            "its TTL is {ttl} and ttlSecurityHops wants {least} at least: is the peer configured for GTSM (RFC 5082)?"
        ))),
        None => Err(io::Error::other("the kernel kept no SYN to see its TTL by")),
    }
}

/// TTL or hop limit of a connection's SYN; it can be asked once.
fn syn_ttl(stream: &impl AsFd) -> io::Result<Option<u8>> {
    let mut headers = [0_u8; LONGEST_HEADERS];
    let mut length = libc::socklen_t::try_from(headers.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while it is borrowed; the kernel writes at most `length` octets of the
    // headers, and says into it how many.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            headers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match headers[0] >> 4 {
        4 if length > 0 => Some(headers[8]),
        6 if length > 0 => Some(headers[7]),
        _ => None,
    })
}

fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads `length` octets of the
    // value, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
