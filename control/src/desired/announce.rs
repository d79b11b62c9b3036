//! What BGP peers are told: the node's prefixes, each with the reason why it is announced or not.
//!
//! A service address is announced only while a packet that arrives for it would reach a backend: its
//! ring is in the kernel, the program attached, and a backend ready. Not here: how it is told
//! (`fairlead-bgp`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use imbl::OrdMap;
use ipnetwork::IpNetwork;

use super::{
    AddressKind, Backend, Desired, Family, Frontend, ObjectName, PathAttributes, Scope, Service,
    VirtualRouter, What,
};

/// What the kernel has of what is desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Services whose row and ring are in the kernel, and how many ready backends are on the ring.
    pub services: OrdMap<Frontend, u32>,
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
    /// The peers that are told of it, and what its path carries towards each.
    pub peers: BTreeMap<IpAddr, PathAttributes>,
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
    /// No peer is told this kind of address.
    KindNotAdvertised,
    /// What peers are told does not select the service.
    NotSelected,
    /// No peer is told pod CIDRs.
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
            Self::KindNotAdvertised => "withheld: no peer is told its kind of address",
            Self::NotSelected => "withheld: nothing that peers are told selects it",
            Self::NotExported => "withheld: no peer is told pod CIDRs",
        })
    }
}

/// Every prefix that each virtual router could announce.
pub fn announcements(
    desired: &Desired,
    programmed: &Programmed,
) -> BTreeMap<String, BTreeMap<IpNetwork, Announcement>> {
    desired
        .routers
        .iter()
        .map(|(name, router)| (name.clone(), of_router(router, desired, programmed)))
        .collect()
}

fn of_router(
    router: &VirtualRouter,
    desired: &Desired,
    programmed: &Programmed,
) -> BTreeMap<IpNetwork, Announcement> {
    let mut all = BTreeMap::new();
    for prefix in &desired.node.pod_cidrs {
        let peers = peers_told(router, Family::of(prefix), |what| {
            matches!(what, What::PodCidrs).then_some(*prefix)
        });
        if peers.is_empty() {
            withhold(&mut all, *prefix, Source::PodCidr, State::NotExported);
        }
        for (prefix, peers) in peers {
            offer(&mut all, prefix, Source::PodCidr, State::Announced, peers);
        }
    }
    let services = desired.services.iter();
    for (frontend, service) in services.filter(|(at, service)| service.is_announceable(at)) {
        let source = Source::Service(service.object.clone());
        let host = IpNetwork::from(frontend.addr);
        let labels = service.selectable_labels();
        let mut is_selected = false;
        let peers = peers_told(router, Family::of(&host), |what| {
            let What::Services {
                selector,
                kinds,
                aggregate_v4,
                aggregate_v6,
            } = what
            else {
                return None;
            };
            let selects = selector.matches(&labels);
            is_selected |= selects;
            let is_told = selects && !kinds.is_disjoint(&service.address_kinds);
            let length = match host {
                IpNetwork::V4(_) => *aggregate_v4,
                IpNetwork::V6(_) => *aggregate_v6,
            };
            // One that each node serves for itself must not draw what is for another node's.
            let whole = length.filter(|_| !service.only_local);
            let whole = whole.and_then(|length| within(frontend.addr, length));
            is_told.then(|| whole.unwrap_or(host))
        });
        if peers.is_empty() {
            let state = if is_selected {
                State::KindNotAdvertised
            } else {
                State::NotSelected
            };
            withhold(&mut all, host, source.clone(), state);
        }
        let state = of_service(frontend, service, programmed);
        for (prefix, peers) in peers {
            offer(&mut all, prefix, source.clone(), state, peers);
        }
    }
    if let Some(egress) = desired.egress.as_ref().filter(|e| !e.is_node_address) {
        let state = if programmed.attached {
            State::Announced
        } else {
            State::NotAttached
        };
        // Whoever is spoken to hears of it: what leaves must find its way back.
        let peers = router.neighbors.keys();
        let peers = peers.map(|(address, _)| (*address, PathAttributes::default()));
        let prefix = IpNetwork::V4(egress.address.into());
        offer(&mut all, prefix, Source::Egress, state, peers.collect());
    }
    all
}

/// The announced prefixes that hold addresses of services, and others that are nobody's.
pub fn aggregates(
    all: &BTreeMap<IpNetwork, Announcement>,
) -> impl Iterator<Item = IpNetwork> + use<'_> {
    let is_host = |prefix: &IpNetwork| prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 };
    all.iter()
        .filter(|(_, announcement)| {
            announcement.state.is_announced() && matches!(announcement.source, Source::Service(_))
        })
        .map(|(prefix, _)| *prefix)
        .filter(move |prefix| !is_host(prefix))
}

/// By prefix, the peers that are told something, and what it carries towards each: of several that say so
/// all communities, and the highest preference.
fn peers_told(
    router: &VirtualRouter,
    family: Family,
    mut prefix_of: impl FnMut(&What) -> Option<IpNetwork>,
) -> BTreeMap<IpNetwork, BTreeMap<IpAddr, PathAttributes>> {
    let mut told: BTreeMap<IpNetwork, BTreeMap<IpAddr, PathAttributes>> = BTreeMap::new();
    for ((address, _), neighbor) in &router.neighbors {
        for advertised in neighbor.advertised.get(&family).into_iter().flatten() {
            if let Some(prefix) = prefix_of(&advertised.what) {
                let peers = told.entry(prefix).or_default();
                peers
                    .entry(*address)
                    .or_default()
                    .add(&advertised.attributes);
            }
        }
    }
    told
}

/// The prefix of a length that an address is in.
fn within(address: IpAddr, length: u8) -> Option<IpNetwork> {
    let prefix = IpNetwork::new(address, length).ok()?;
    IpNetwork::new(prefix.network(), length).ok()
}

fn of_service(frontend: &Frontend, service: &Service, programmed: &Programmed) -> State {
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

fn withhold(
    all: &mut BTreeMap<IpNetwork, Announcement>,
    prefix: IpNetwork,
    source: Source,
    state: State,
) {
    offer(all, prefix, source, state, BTreeMap::new());
}

/// Of several things with one prefix the one that comes closest to being announced counts; the peers of
/// all that are announced are told.
fn offer(
    all: &mut BTreeMap<IpNetwork, Announcement>,
    prefix: IpNetwork,
    source: Source,
    state: State,
    peers: BTreeMap<IpAddr, PathAttributes>,
) {
    let announcement = Announcement {
        source,
        state,
        peers,
    };
    match all.get_mut(&prefix) {
        Some(known) if known.state.is_announced() && state.is_announced() => {
            for (peer, attributes) in announcement.peers {
                known.peers.entry(peer).or_default().add(&attributes);
            }
        }
        Some(known) if known.state <= state => {}
        Some(known) => *known = announcement,
        None => {
            all.insert(prefix, announcement);
        }
    }
}

impl VirtualRouter {
    /// Whether a peer is told addresses of this kind of a service.
    pub fn tells(&self, kind: AddressKind, service: &Service) -> bool {
        let labels = service.selectable_labels();
        let mut told = self
            .neighbors
            .values()
            .flat_map(|neighbor| neighbor.advertised.values().flatten());
        told.any(|advertised| {
            matches!(&advertised.what, What::Services { selector, kinds, .. }
                if kinds.contains(&kind) && selector.matches(&labels))
        })
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
