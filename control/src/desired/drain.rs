//! Backends that an operator has taken out of service.
//!
//! Not here: where that is kept (`agent::drains`), and what it means for the ring ([`super::readiness`]).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{BackendAddr, ObjectName, Service};

/// All of them.
pub type Drains = BTreeSet<Drain>;

/// Backends that get no new flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Drain {
    /// Their address.
    pub address: IpAddr,
    /// Their port; absent: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The service they are drained for; absent: every service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ObjectName>,
}

impl Drain {
    /// Whether it means this backend of this service.
    pub fn covers(&self, service: &Service, backend: &BackendAddr) -> bool {
        self.address == backend.addr
            && self.port.is_none_or(|port| port == backend.port)
            && self
                .service
                .as_ref()
                .is_none_or(|name| *name == service.object)
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port))?,
            None => write!(f, "{}", self.address)?,
        }
        match &self.service {
            Some(service) => write!(f, " of service {service}"),
            None => Ok(()),
        }
    }
}
