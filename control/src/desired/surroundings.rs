//! What the host's network shows, for documents that name a place where others name an address.
//!
//! Not for reading it (`host::surroundings`), nor for what follows (`merge`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::Family;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Indexes of devices, by their names.
    pub devices: BTreeMap<String, u32>,
    /// Addresses that may be the source of a connection, by the name of the device that has them, in the kernel's order,
    /// the primary ones first: neither link-local nor loopback ones, nor such as are not settled (RFC 4862), nor those of
    /// devices that are off.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// The gateway of each family's default route, and the index of the device that it is behind.
    pub gateways: BTreeMap<Family, (IpAddr, u32)>,
    /// Routers that advertise themselves, by the index of the device that they are heard on (RFC 4861 §6.2).
    pub routers: BTreeMap<u32, BTreeSet<Ipv6Addr>>,
}
