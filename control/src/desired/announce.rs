//! What BGP peers are told: the node's prefixes, each with the reason why it is announced or not.
//!
//! A service address is announced only while a packet that arrives for it would reach a backend: its
//! ring is in the kernel, the program attached, and a backend ready. Not here: how it is told
//! (`fairlead-bgp`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
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
    /// What this node has of this pool of pod addresses.
    Pool(String),
    /// An address of this device of the host.
    Interface(String),
    /// The address of a service.
    Service(ObjectName),
    /// The address that pods leave under.
    Egress,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodCidr => f.write_str("pod CIDR"),
            Self::Pool(name) => write!(f, "pod IP pool {name}"),
            Self::Interface(name) => write!(f, "address of {name}"),
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

/// Every prefix that a virtual router could announce.
pub type Prefixes = OrdMap<IpNetwork, Announcement>;

/// Every prefix that each virtual router could announce.
pub fn announcements(desired: &Desired, programmed: &Programmed) -> BTreeMap<String, Prefixes> {
    announcements_since(&mut Memory::default(), desired, programmed)
}

/// What was offered last, by which the next time looks at what has changed. It may be lost.
#[derive(Debug, Default)]
pub struct Memory {
    /// All but the services.
    around: Desired,
    is_attached: bool,
    services: OrdMap<Frontend, Arc<Service>>,
    programmed: OrdMap<Frontend, u32>,
    routers: BTreeMap<String, Offers>,
}

/// What is offered to the peers of a virtual router.
#[derive(Debug, Default)]
struct Offers {
    by_prefix: BTreeMap<IpNetwork, Vec<(Offeror, Announcement)>>,
    /// The prefixes that each service's frontend offers.
    of_services: BTreeMap<Frontend, Vec<IpNetwork>>,
    joined: Prefixes,
}

/// Who offers a prefix; of several the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Offeror {
    Pods,
    Pool,
    Interface,
    Service(Frontend),
    Egress,
}

/// The same as [`announcements`], at the cost of what has changed since `memory` was used last.
pub fn announcements_since(
    memory: &mut Memory,
    desired: &Desired,
    programmed: &Programmed,
) -> BTreeMap<String, Prefixes> {
    let around = Desired {
        services: OrdMap::new(),
        conditions: Vec::new(),
        ..desired.clone()
    };
    if memory.around != around || memory.is_attached != programmed.attached {
        let routers = desired.routers.iter();
        *memory = Memory {
            routers: routers
                .map(|(name, router)| (name.clone(), Offers::of_node(router, desired, programmed)))
                .collect(),
            around,
            is_attached: programmed.attached,
            ..Memory::default()
        };
    }
    let services = memory.services.diff(&desired.services);
    let services = services.map(|change| of_diff(&change));
    let rings = memory.programmed.diff(&programmed.services);
    let rings = rings.map(|change| of_diff(&change));
    for frontend in services.chain(rings).collect::<BTreeSet<_>>() {
        for (name, offers) in &mut memory.routers {
            offers.follow(frontend, &desired.routers[name], desired, programmed);
        }
    }
    memory.services = desired.services.clone();
    memory.programmed = programmed.services.clone();
    let routers = memory.routers.iter();
    routers
        .map(|(name, offers)| (name.clone(), offers.joined.clone()))
        .collect()
}

/// The key of a row that differs.
pub(crate) const fn of_diff<K: Copy, V>(change: &DiffItem<'_, '_, K, V>) -> K {
    match change {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => **key,
        DiffItem::Update { old: (key, _), .. } => **key,
    }
}

impl Offers {
    /// What the node offers beside its services.
    fn of_node(router: &VirtualRouter, desired: &Desired, programmed: &Programmed) -> Self {
        let mut offers = Self::default();
        for prefix in &desired.node.pod_cidrs {
            let peers = peers_told(router, Family::of(prefix), |what| {
                matches!(what, What::PodCidrs).then_some(*prefix)
            });
            let mut state = State::Announced;
            let mut told: Vec<_> = peers.into_iter().collect();
            if told.is_empty() {
                state = State::NotExported;
                told.push((*prefix, BTreeMap::new()));
            }
            for (prefix, peers) in told {
                offers.offer(Offeror::Pods, prefix, Source::PodCidr, state, peers);
            }
        }
        for (name, prefix) in shares_of_pools(router) {
            let told = peers_told(router, Family::of(&prefix), |what| {
                let of_pool = matches!(what, What::Pool { name: pool, prefixes }
                    if pool == name && prefixes.contains(&prefix));
                of_pool.then_some(prefix)
            });
            for (prefix, peers) in told {
                let source = Source::Pool(name.to_owned());
                offers.offer(Offeror::Pool, prefix, source, State::Announced, peers);
            }
        }
        for (name, address) in interface_addresses(router) {
            let host = IpNetwork::from(address);
            let told = peers_told(router, Family::of(&host), |what| {
                let of_device = matches!(what, What::Interface { name: device, addresses }
                    if device == name && addresses.contains(&address));
                of_device.then_some(host)
            });
            for (prefix, peers) in told {
                let source = Source::Interface(name.to_owned());
                offers.offer(Offeror::Interface, prefix, source, State::Announced, peers);
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
            offers.offer(
                Offeror::Egress,
                prefix,
                Source::Egress,
                state,
                peers.collect(),
            );
        }
        let prefixes: Vec<_> = offers.by_prefix.keys().copied().collect();
        for prefix in prefixes {
            offers.join(prefix);
        }
        offers
    }

    /// Takes back what a frontend offered, and offers what it offers now.
    fn follow(
        &mut self,
        frontend: Frontend,
        router: &VirtualRouter,
        desired: &Desired,
        programmed: &Programmed,
    ) {
        let offeror = Offeror::Service(frontend);
        let mut touched = BTreeSet::new();
        for prefix in self.of_services.remove(&frontend).into_iter().flatten() {
            if let Some(offers) = self.by_prefix.get_mut(&prefix) {
                offers.retain(|(by, _)| *by != offeror);
            }
            touched.insert(prefix);
        }
        let service = desired.services.get(&frontend);
        if let Some(service) = service.filter(|service| service.is_announceable(&frontend)) {
            let source = Source::Service(service.object.clone());
            let (state, told) = told_of(&frontend, service, router, programmed);
            let prefixes = told.keys().copied().collect();
            for (prefix, peers) in told {
                self.offer(offeror, prefix, source.clone(), state, peers);
                touched.insert(prefix);
            }
            self.of_services.insert(frontend, prefixes);
        }
        for prefix in touched {
            self.join(prefix);
        }
    }

    fn offer(
        &mut self,
        offeror: Offeror,
        prefix: IpNetwork,
        source: Source,
        state: State,
        peers: BTreeMap<IpAddr, PathAttributes>,
    ) {
        let offers = self.by_prefix.entry(prefix).or_default();
        let place = offers.partition_point(|(by, _)| *by <= offeror);
        let announcement = Announcement {
            source,
            state,
            peers,
        };
        offers.insert(place, (offeror, announcement));
    }

    /// Of several things with one prefix the one that comes closest to being announced counts; the peers of all that
    /// are announced are told.
    fn join(&mut self, prefix: IpNetwork) {
        let offers = self.by_prefix.get(&prefix).map_or(&[][..], Vec::as_slice);
        // Of equal ones the first.
        let Some((_, best)) = offers.iter().min_by_key(|(_, one)| one.state) else {
            self.by_prefix.remove(&prefix);
            self.joined.remove(&prefix);
            return;
        };
        let mut joined = best.clone();
        if joined.state.is_announced() {
            joined.peers.clear();
            let announced = offers.iter().filter(|(_, one)| one.state.is_announced());
            for (peer, attributes) in announced.flat_map(|(_, one)| &one.peers) {
                joined.peers.entry(*peer).or_default().add(attributes);
            }
        }
        if self.joined.get(&prefix) != Some(&joined) {
            self.joined.insert(prefix, joined);
        }
    }
}

/// Who is told of a service's address, by prefix, and whether it is announced.
fn told_of(
    frontend: &Frontend,
    service: &Service,
    router: &VirtualRouter,
    programmed: &Programmed,
) -> (State, BTreeMap<IpNetwork, BTreeMap<IpAddr, PathAttributes>>) {
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
        return (state, BTreeMap::from([(host, BTreeMap::new())]));
    }
    (of_service(frontend, service, programmed), peers)
}

/// The devices whose addresses some peer is told, with each of these.
fn interface_addresses(router: &VirtualRouter) -> BTreeSet<(&str, IpAddr)> {
    let neighbors = router.neighbors.values();
    let told = neighbors.flat_map(|neighbor| neighbor.advertised.values().flatten());
    told.flat_map(|advertised| {
        let (name, addresses) = match &advertised.what {
            What::Interface { name, addresses } => (name.as_str(), Some(addresses)),
            What::PodCidrs | What::Pool { .. } | What::Services { .. } => ("", None),
        };
        addresses
            .into_iter()
            .flatten()
            .map(move |address| (name, *address))
    })
    .collect()
}

/// The pools of which some peer is told, with each prefix that this node has of them.
fn shares_of_pools(router: &VirtualRouter) -> BTreeSet<(&str, IpNetwork)> {
    let neighbors = router.neighbors.values();
    let told = neighbors.flat_map(|neighbor| neighbor.advertised.values().flatten());
    told.flat_map(|advertised| {
        let (name, prefixes) = match &advertised.what {
            What::Pool { name, prefixes } => (name.as_str(), Some(prefixes)),
            What::PodCidrs | What::Interface { .. } | What::Services { .. } => ("", None),
        };
        let prefixes = prefixes.into_iter().flatten();
        prefixes.map(move |prefix| (name, *prefix))
    })
    .collect()
}

/// The announced prefixes that hold addresses of services, and others that are nobody's.
pub fn aggregates(all: &Prefixes) -> impl Iterator<Item = IpNetwork> + use<'_> {
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
