//! Switches generic receive offload on: what makes a veth end receive what XDP redirects into it.
//!
//! # Why
//! A frame that XDP sends into a veth is queued for the peer's NAPI, which a veth runs only while it
//! has an XDP program or GRO (drivers/net/veth.c, `veth_xdp_xmit`); without it every frame is lost.
//!
//! Not for other offloads: nothing here needs them changed.
#![expect(
    unsafe_code,
    reason = "SIOCETHTOOL passes a pointer in a union; no crate of ours covers it"
)]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Socket, Type};

use super::Error;

/// `ETHTOOL_SGRO` (include/uapi/linux/ethtool.h).
const ETHTOOL_SGRO: u32 = 0x2c;
/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: u32 = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches GRO on for a device of the calling thread's network namespace.
pub fn enable_gro(device: &str) -> Result<(), Error> {
    set_gro(device).map_err(Error::new(format!(
        "switching on receive offload of {device}"
    )))
}

fn set_gro(device: &str) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut value = Value {
        command: ETHTOOL_SGRO,
        data: 1,
    };
    let mut name = [0 as c_char; libc::IFNAMSIZ];
    // One byte stays zero: the name ends there.
    if device.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: the request and the value it points at live until the call returns, and ETHTOOL_SGRO
    // reads exactly a `struct ethtool_value` from there.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL.into(), &raw mut request) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
