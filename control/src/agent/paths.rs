//! How packets get to backends: what the kernel answered, kept until it may answer otherwise.
//!
//! An answer costs the kernel and us thirty microseconds, so a hundred thousand backends are not asked for in
//! every round: an address is asked for when it is new, when routes or links may have changed, and in its turn
//! among a few at every look, because netlink may lose a message.
//!
//! Not for what the answers mean: that is `plan`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::desired::{Condition, Desired};
use crate::host::Netlink;
use crate::host::links::Link;
use crate::host::reach::Reach;
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
    /// The kernel keeps the neighbours on these ways resolved, as far as we know.
    are_kept: bool,
    /// The address whose turn it was last.
    turn: Option<IpAddr>,
}

impl Paths {
    /// Routes or links may have changed.
    pub(super) const fn doubt(&mut self) {
        self.is_stale = true;
    }

    /// Asks for what is new or in doubt; keeps the neighbours on these ways resolved.
    pub(super) async fn follow(
        &mut self,
        netlink: &Netlink,
        desired: &Arc<Desired>,
        links: &BTreeMap<String, Link>,
        conditions: &mut Vec<Condition>,
    ) {
        let before = self.ways.clone();
        // A link that went down and came back has lost its neighbours, though every answer is as before.
        self.are_kept &= !self.is_stale;
        for address in self.questions(desired) {
            self.ask(netlink, address, links, conditions).await;
        }
        if !self.are_kept || !self.ways.ptr_eq(&before) {
            let neighbours = self.ways.values().map(|way| (way.device, way.neighbour));
            let kept = netlink.keep_neighbours(&neighbours.collect()).await;
            self.are_kept = kept.is_ok();
            if let Err(error) = kept {
                conditions.push(super::round::trouble("host", "NeighbourRefused", &error));
            }
        }
        match netlink.neighbours().await {
            Ok(known) => {
                let known: BTreeMap<_, _> = known
                    .into_iter()
                    .filter(|one| one.is_resolved)
                    .filter_map(|one| Some(((one.device, one.addr), one.mac?)))
                    .collect();
                if known != self.macs || !self.ways.ptr_eq(&before) {
                    // One that has gone may have been ours to keep.
                    self.are_kept &= self.macs.keys().all(|one| known.contains_key(one));
                    self.macs = known;
                    self.resolve();
                }
            }
            // Unresolved: the kernel is asked for the way of each packet.
            Err(error) => {
                conditions.push(super::round::trouble(
                    "host",
                    "NeighboursUnreadable",
                    &error,
                ));
                self.macs.clear();
                self.resolve();
            }
        }
    }

    /// The addresses to ask for.
    fn questions(&mut self, desired: &Arc<Desired>) -> BTreeSet<IpAddr> {
        let before = std::mem::replace(&mut self.desired, Arc::clone(desired));
        let addresses = |is_asked: &dyn Fn(&crate::desired::Frontend) -> bool| -> BTreeSet<IpAddr> {
            let services = desired.services.iter().filter(|(of, _)| is_asked(of));
            services
                .flat_map(|(_, service)| service.backends.keys().map(|at| at.addr))
                .collect()
        };
        if std::mem::take(&mut self.is_stale) {
            let all = addresses(&|_| true);
            let gone: Vec<_> = self
                .reach
                .keys()
                .filter(|addr| !all.contains(addr))
                .copied()
                .collect();
            for address in gone {
                self.reach.remove(&address);
                self.ways.remove(&address);
            }
            return all;
        }
        let is_changed = |of: &crate::desired::Frontend| {
            let known = before.services.get(of);
            !known.is_some_and(|known| Arc::ptr_eq(known, &desired.services[of]))
        };
        let mut asked = addresses(&is_changed);
        asked.retain(|address| !self.reach.contains_key(address));
        let from = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let in_turn: Vec<_> = self
            .reach
            .range((from, Bound::Unbounded))
            .take(IN_TURN)
            .collect();
        // At the end it begins anew.
        self.turn = in_turn.get(IN_TURN - 1).map(|(address, _)| **address);
        asked.extend(in_turn.into_iter().map(|(address, _)| *address));
        asked
    }

    async fn ask(
        &mut self,
        netlink: &Netlink,
        address: IpAddr,
        links: &BTreeMap<String, Link>,
        conditions: &mut Vec<Condition>,
    ) {
        let answer = match netlink.reach(address).await {
            Ok(answer) => answer,
            Err(error) => {
                conditions.push(super::round::trouble("host", "RouteUnknown", &error));
                self.reach.remove(&address);
                self.ways.remove(&address);
                // Without an answer it has no turn: everything is asked for again.
                self.is_stale = true;
                return;
            }
        };
        let way = answer.neighbour(address).map(|(device, neighbour)| {
            let link = links.values().find(|link| link.index == device);
            let mtu = link.map(|link| link.mtu);
            plan::Way {
                device,
                neighbour,
                mtu: answer.mtu().into_iter().chain(mtu).min().unwrap_or(0),
                mac: self.macs.get(&(device, neighbour)).copied(),
            }
        });
        let reach = match answer {
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
                backends: [(at, backend)].into(),
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

        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            let some = look(&mut paths, &desired);
            assert!(some.len() <= IN_TURN);
            asked.extend(some);
        }

        assert_eq!(asked.len(), 1500);
    }

    #[test]
    fn in_doubt_all_is_asked_for_and_what_nobody_wants_is_forgotten() {
        let mut paths = Paths::default();
        look(&mut paths, &desired(1500));
        let fewer = desired(1400);

        paths.doubt();

        assert_eq!(look(&mut paths, &fewer).len(), 1400);
        assert_eq!(paths.reach.len(), 1400);
        assert!(look(&mut paths, &fewer).len() <= IN_TURN, "once");
    }
}
