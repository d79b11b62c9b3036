//! What BGP peers are told: the node's prefixes, each with the reason why it is announced or not.
//!
//! A service address is announced only while a packet that arrives for it would reach a backend: its
//! ring is in the kernel, the program attached, and a backend ready. Not here: how it is told
//! (`fairlead-bgp`).

use std::collections::BTreeMap;
use std::fmt;

use ipnetwork::IpNetwork;

use super::{AddressKind, Backend, Desired, Frontend, ObjectName, Scope, Service, VirtualRouter};

/// What the kernel has of what is desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Services whose row and ring are in the kernel, and how many ready backends are on the ring.
    pub services: BTreeMap<Frontend, u32>,
    /// Whether the programs are attached to an uplink.
    pub attached: bool,
}

/// A prefix that this node could announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// What the prefix is.
    pub source: Source,
    /// Whether it is announced, and why.
    pub state: State,
}

/// What a prefix is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The addresses of this node's pods.
    PodCidr,
    /// The address of a service.
    Service(ObjectName),
    /// The address that pods leave under.
    Egress,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodCidr => f.write_str("pod CIDR"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Egress => f.write_str("egress address"),
        }
    }
}

/// Whether a prefix is announced, and why. The order is that of what is missing: of several services at
/// one address the one that comes closest speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It is announced.
    Announced,
    /// No backend takes new flows.
    NoReadyBackend,
    /// Its ring is not in the kernel yet.
    NotProgrammed,
    /// No program is attached to an uplink.
    NotAttached,
    /// `serviceAdvertisements` leaves this kind of address out.
    KindNotAdvertised,
    /// `serviceSelector` does not select the service.
    NotSelected,
    /// `exportPodCIDR` is off.
    NotExported,
}

impl State {
    /// Whether peers are told.
    pub const fn is_announced(self) -> bool {
        matches!(self, Self::Announced)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Announced => "announced",
            Self::NoReadyBackend => "withheld: no backend is ready",
            Self::NotProgrammed => "withheld: its ring is not in the kernel yet",
            Self::NotAttached => "withheld: no program is attached to an uplink",
            Self::KindNotAdvertised => {
                "withheld: serviceAdvertisements leaves its kind of address out"
            }
            Self::NotSelected => "withheld: serviceSelector does not select it",
            Self::NotExported => "withheld: exportPodCIDR is off",
        })
    }
}

/// Every prefix that each virtual router (by its AS number) could announce.
pub fn announcements(
    desired: &Desired,
    programmed: &Programmed,
) -> BTreeMap<u32, BTreeMap<IpNetwork, Announcement>> {
    desired
        .routers
        .iter()
        .map(|(asn, router)| (*asn, of_router(router, desired, programmed)))
        .collect()
}

fn of_router(
    router: &VirtualRouter,
    desired: &Desired,
    programmed: &Programmed,
) -> BTreeMap<IpNetwork, Announcement> {
    let mut all = BTreeMap::new();
    for prefix in &desired.node.pod_cidrs {
        let state = if router.export_pod_cidr {
            State::Announced
        } else {
            State::NotExported
        };
        offer(&mut all, *prefix, Source::PodCidr, state);
    }
    let services = desired.services.iter();
    for (frontend, service) in services.filter(|(at, service)| service.is_announceable(at)) {
        let state = of_service(router, frontend, service, programmed);
        let prefix = IpNetwork::from(frontend.addr);
        offer(
            &mut all,
            prefix,
            Source::Service(service.object.clone()),
            state,
        );
    }
    if let Some(egress) = desired.egress.as_ref().filter(|e| !e.is_node_address) {
        let state = if programmed.attached {
            State::Announced
        } else {
            State::NotAttached
        };
        offer(
            &mut all,
            IpNetwork::V4(egress.address.into()),
            Source::Egress,
            state,
        );
    }
    all
}

fn of_service(
    router: &VirtualRouter,
    frontend: &Frontend,
    service: &Service,
    programmed: &Programmed,
) -> State {
    if !router.selects(service) {
        return State::NotSelected;
    }
    if router.address_kinds.is_disjoint(&service.address_kinds) {
        return State::KindNotAdvertised;
    }
    if !programmed.attached {
        return State::NotAttached;
    }
    let takes_flows = |backend: &Backend| backend.ready && backend.weight > 0;
    if !service.backends.values().any(takes_flows) {
        return State::NoReadyBackend;
    }
    match programmed.services.get(frontend) {
        None => State::NotProgrammed,
        Some(0) => State::NoReadyBackend,
        Some(_) => State::Announced,
    }
}

/// Of several things with one prefix the one that comes closest to being announced counts.
fn offer(
    all: &mut BTreeMap<IpNetwork, Announcement>,
    prefix: IpNetwork,
    source: Source,
    state: State,
) {
    let announcement = Announcement { source, state };
    match all.get_mut(&prefix) {
        Some(known) if known.state <= announcement.state => {}
        Some(known) => *known = announcement,
        None => {
            all.insert(prefix, announcement);
        }
    }
}

impl VirtualRouter {
    /// Whether `serviceSelector` selects a service.
    pub fn selects(&self, service: &Service) -> bool {
        let labels = service.selectable_labels();
        self.services
            .as_ref()
            .is_some_and(|selector| selector.matches(&labels))
    }
}

impl Service {
    /// Whether peers could be told of this address of it: not where only clients inside reach it, nor where it
    /// is one that the node has anyway.
    pub fn is_announceable(&self, at: &Frontend) -> bool {
        let mut kinds = self.address_kinds.iter();
        at.scope == Scope::Outside && kinds.any(|kind| *kind != AddressKind::Node)
    }

    /// Its labels and the two that Cilium adds for selectors.
    pub fn selectable_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        for (key, value) in [
            ("io.kubernetes.service.namespace", &self.object.namespace),
            ("io.kubernetes.service.name", &self.object.name),
        ] {
            labels.insert(key.to_owned(), value.clone());
        }
        labels
    }
}

#[cfg(test)]
mod tests;
