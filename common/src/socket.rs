//! What sockets of this node remember of the services they speak to: rows of `SOCKETS`, `DATAGRAMS` and
//! `AFFINITY`.
//!
//! The first two are kept in the socket itself and end with it: nothing is looked up by a key, is full, is
//! forgotten or has to be cleared away.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};

/// A service as a socket asked for it, and the backend that the socket speaks to instead. The value of
/// `SOCKETS`: what a connected socket shows as its peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Translation {
    /// The service's address.
    pub service: Addr,
    /// The backend's address.
    pub backend: Addr,
    /// The service's port.
    pub service_port: Port,
    /// The backend's port.
    pub backend_port: Port,
    /// The backend's row in `BACKENDS`; 0: the socket does not speak to a service.
    pub id: u32,
}

impl Translation {
    /// Whether what comes from this address comes from the service.
    #[inline(always)]
    pub fn is_from(&self, addr: Addr, port: Port) -> bool {
        self.id != 0 && self.backend == addr && self.backend_port == port
    }
}

/// How many services an unconnected socket remembers: a power of two.
pub const TRANSLATIONS: usize = 16;

/// The value of `DATAGRAMS`: the services that an unconnected socket sent to, each with its backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Translations {
    /// One row for each service; with more services than rows the oldest is forgotten.
    pub rows: [Translation; TRANSLATIONS],
    /// How many services there have been; the next is written at this place modulo the number of rows.
    pub written: u32,
    /// The place of the row that was last sent by, modulo the number of rows.
    pub last: u32,
}

/// The key of `AFFINITY`: a client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Client {
    /// The cookie of the client's network namespace: a pod, or the host.
    pub namespace: u64,
    /// [`crate::service::Service::id`].
    pub service: u32,
    /// Zero.
    pub pad: u32,
}
