//! How packets get to backends: what the kernel answered, kept until it may answer otherwise.
//!
//! A hundred thousand backends are not asked for in every round: an address is asked for when it is new, when routes
//! or links may have changed, and in its turn among some when nothing else has happened for a while, because
//! netlink may lose a message.
//!
//! Not for what the answers mean: that is `plan`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::desired::{Condition, Desired};
use crate::host::Netlink;
use crate::host::links::Link;
use crate::host::neighbours::Next;
use crate::host::reach::{Enquirer, Reach};
use crate::plan;

/// How many addresses are asked for in their turn at a look.
const IN_TURN: usize = 512;

/// The paths to all backends.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) reach: OrdMap<IpAddr, plan::Reach>,
    pub(super) ways: OrdMap<IpAddr, plan::Way>,
    macs: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// What was desired when it was looked last.
    desired: Arc<Desired>,
    /// Routes or links may have changed: every answer may be another one.
    is_stale: bool,
    /// The neighbours that the kernel keeps resolved, as far as we know.
    kept: Option<BTreeSet<Next>>,
    /// Some addresses have their turn.
    has_turn: bool,
    /// Backends left: some addresses may be nobody's.
    has_leavers: bool,
    /// The address whose turn it was last.
    turn: Option<IpAddr>,
}

impl Paths {
    /// Routes or links may have changed.
    pub(super) const fn doubt(&mut self) {
        self.is_stale = true;
    }

    /// Nothing has happened for a while: some addresses have their turn.
    pub(super) const fn take_turn(&mut self) {
        self.has_turn = true;
    }

    /// Asks for what is new or in doubt; keeps the neighbours on these ways resolved. `ports` are the devices that
    /// the datapath sends by; one that comes or goes is a link that has changed.
    pub(super) async fn follow(
        &mut self,
        enquirer: &mut Enquirer,
        netlink: &Netlink,
        desired: &Arc<Desired>,
        links: &BTreeMap<String, Link>,
        ports: &BTreeSet<u32>,
        conditions: &mut Vec<Condition>,
    ) {
        if self.is_stale {
            // A link that went down and came back has lost its neighbours, though every answer is as before.
            self.kept = None;
        }
        let questions: Vec<IpAddr> = self.questions(desired).into_iter().collect();
        // Before the answers, so that each is learnt whole, and again where more is to be resolved.
        let mut unreadable = self.look(netlink).await;
        let before = self.ways.clone();
        match enquirer.ask(&questions) {
            Ok(answers) => {
                let mtus = links.values().map(|link| (link.index, link.mtu)).collect();
                for (address, answer) in questions.into_iter().zip(answers) {
                    self.learn(address, answer, &mtus, ports);
                }
            }
            Err(error) => {
                conditions.push(super::round::trouble("host", "RouteUnknown", &error));
                // What was known goes on; everything is asked for again.
                self.is_stale = true;
            }
        }
        if !self.is_kept(&before) {
            let neighbours = self.ways.values().map(|way| (way.device, way.neighbour));
            let neighbours: BTreeSet<Next> = neighbours.collect();
            let kept = netlink.keep_neighbours(&neighbours).await;
            self.kept = kept.is_ok().then_some(neighbours);
            if let Err(error) = kept {
                conditions.push(super::round::trouble("host", "NeighbourRefused", &error));
            }
            unreadable = self.look(netlink).await;
        }
        conditions.extend(unreadable);
    }

    /// Learns the MAC addresses of neighbours; says why they cannot be read.
    async fn look(&mut self, netlink: &Netlink) -> Option<Condition> {
        match netlink.neighbours().await {
            Ok(known) => {
                let known: BTreeMap<_, _> = known
                    .into_iter()
                    .filter(|one| one.is_resolved)
                    .filter_map(|one| Some(((one.device, one.addr), one.mac?)))
                    .collect();
                // A way that was learnt has the addresses that were known then.
                if known != self.macs {
                    // One that has gone may have been ours to keep.
                    if self.macs.keys().any(|one| !known.contains_key(one)) {
                        self.kept = None;
                    }
                    self.macs = known;
                    self.resolve();
                }
                None
            }
            // Unresolved: the kernel is asked for the way of each packet.
            Err(error) => {
                self.macs.clear();
                self.resolve();
                let trouble = super::round::trouble("host", "NeighboursUnreadable", &error);
                Some(trouble)
            }
        }
    }

    /// Whether the neighbours on the ways that are others than before are kept.
    fn is_kept(&self, before: &OrdMap<IpAddr, plan::Way>) -> bool {
        let Some(kept) = &self.kept else {
            return false;
        };
        before.diff(&self.ways).all(|change| match change {
            DiffItem::Add(_, way) | DiffItem::Update { new: (_, way), .. } => {
                kept.contains(&(way.device, way.neighbour))
            }
            DiffItem::Remove(..) => false,
        })
    }

    /// The addresses to ask for.
    fn questions(&mut self, desired: &Arc<Desired>) -> BTreeSet<IpAddr> {
        let before = std::mem::replace(&mut self.desired, Arc::clone(desired));
        let has_turn = std::mem::take(&mut self.has_turn);
        let is_stale = std::mem::take(&mut self.is_stale);
        let mut asked = BTreeSet::new();
        for change in before.services.diff(&desired.services) {
            match change {
                DiffItem::Add(_, service) => {
                    asked.extend(service.backends.keys().map(|at| at.addr));
                }
                DiffItem::Update {
                    new: (_, service), ..
                } => {
                    asked.extend(service.backends.keys().map(|at| at.addr));
                    self.has_leavers = true;
                }
                DiffItem::Remove(..) => self.has_leavers = true,
            }
        }
        if is_stale || (has_turn && self.has_leavers) {
            let services = desired.services.values();
            let all: BTreeSet<IpAddr> = services
                .flat_map(|service| service.backends.keys().map(|at| at.addr))
                .collect();
            self.forget_all_but(&all);
            if is_stale {
                return all;
            }
        }
        asked.retain(|address| !self.reach.contains_key(address));
        if has_turn {
            asked.extend(self.in_turn());
        }
        asked
    }

    fn forget_all_but(&mut self, wanted: &BTreeSet<IpAddr>) {
        self.has_leavers = false;
        let known = self.reach.keys();
        let gone: Vec<_> = known
            .filter(|addr| !wanted.contains(addr))
            .copied()
            .collect();
        for address in gone {
            self.reach.remove(&address);
            self.ways.remove(&address);
        }
    }

    /// The addresses whose turn it is.
    fn in_turn(&mut self) -> Vec<IpAddr> {
        let from = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let addresses = self.reach.range((from, Bound::Unbounded));
        let addresses: Vec<_> = addresses.map(|(addr, _)| *addr).take(IN_TURN).collect();
        // At the end it begins anew.
        self.turn = addresses.get(IN_TURN - 1).copied();
        addresses
    }

    /// Takes an answer; `mtus` are those of the links, by their index.
    fn learn(
        &mut self,
        address: IpAddr,
        answer: Reach,
        mtus: &BTreeMap<u32, u32>,
        ports: &BTreeSet<u32>,
    ) {
        let way = answer
            .neighbour(address)
            .map(|(device, neighbour)| plan::Way {
                device,
                neighbour,
                mtu: answer
                    .mtu()
                    .into_iter()
                    .chain(mtus.get(&device).copied())
                    .min()
                    .unwrap_or(0),
                mac: self.macs.get(&(device, neighbour)).copied(),
            });
        let reach = match answer {
            Reach::OnLink { device, .. } if !ports.contains(&device) => plan::Reach::ByStack,
            Reach::OnLink { .. } => plan::Reach::OnLink,
            Reach::Routed { .. } => plan::Reach::Routed,
            Reach::Local => plan::Reach::Local,
            Reach::Unreachable => plan::Reach::Unreachable,
        };
        // A value that is as before is left alone, so that nobody looks at it.
        if self.reach.get(&address) != Some(&reach) {
            self.reach.insert(address, reach);
        }
        match way {
            Some(way) if self.ways.get(&address) != Some(&way) => {
                self.ways.insert(address, way);
            }
            Some(_) => {}
            None => {
                self.ways.remove(&address);
            }
        }
    }

    /// Writes the MAC addresses of neighbours into the ways that lead to them.
    fn resolve(&mut self) {
        let mac_of = |way: &plan::Way| self.macs.get(&(way.device, way.neighbour)).copied();
        let changed: Vec<_> = self
            .ways
            .iter()
            .filter(|(_, way)| way.mac != mac_of(way))
            .map(|(address, way)| {
                let mac = mac_of(way);
                (*address, plan::Way { mac, ..*way })
            })
            .collect();
        self.ways.extend(changed);
    }
}

#[cfg(test)]
mod tests {
    use fairlead_common::addr::Proto;

    use super::*;
    use crate::desired::{Backend, BackendAddr, Frontend, Home, Scope, Service};

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    fn desired(count: u32) -> Arc<Desired> {
        let services = (0..count).map(|number| {
            let frontend = Frontend {
                addr: address(1 << 16 | number),
                port: 80,
                proto: Proto::TCP,
                scope: Scope::Outside,
            };
            let at = BackendAddr {
                addr: address(number),
                port: 80,
            };
            let backend = Backend {
                ready: true,
                serving: true,
                weight: 1,
                home: Home::Bare,
            };
            let service = Service {
                backends: Arc::new([(at, backend)].into()),
                ..Service::default()
            };
            (frontend, Arc::new(service))
        });
        Arc::new(Desired {
            services: services.collect(),
            ..Desired::default()
        })
    }

    /// Asks, and gets an answer each time.
    fn look(paths: &mut Paths, desired: &Arc<Desired>) -> BTreeSet<IpAddr> {
        let asked = paths.questions(desired);
        let answers = asked.iter().map(|at| (*at, plan::Reach::OnLink));
        paths.reach.extend(answers);
        asked
    }

    #[test]
    fn every_address_has_its_turn_without_any_news() {
        let desired = desired(1500);
        let mut paths = Paths::default();
        assert_eq!(look(&mut paths, &desired).len(), 1500);
        assert_eq!(look(&mut paths, &desired).len(), 0, "known");

        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            paths.take_turn();
            let some = look(&mut paths, &desired);
            assert!(some.len() <= IN_TURN);
            asked.extend(some);
        }

        assert_eq!(asked.len(), 1500);
    }

    #[test]
    fn what_nobody_wants_is_forgotten_in_a_turn() {
        let mut paths = Paths::default();
        look(&mut paths, &desired(1500));
        look(&mut paths, &desired(1400));
        assert_eq!(paths.reach.len(), 1500);

        paths.take_turn();
        look(&mut paths, &desired(1400));

        assert_eq!(paths.reach.len(), 1400);
    }

    #[test]
    fn in_doubt_all_is_asked_for_and_what_nobody_wants_is_forgotten() {
        let mut paths = Paths::default();
        look(&mut paths, &desired(1500));
        let fewer = desired(1400);

        paths.doubt();

        assert_eq!(look(&mut paths, &fewer).len(), 1400);
        assert_eq!(paths.reach.len(), 1400);
        assert_eq!(look(&mut paths, &fewer).len(), 0, "once");
    }
}
