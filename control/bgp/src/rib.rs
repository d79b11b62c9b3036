//! What each peer told us and which of it we use.
//!
//! One table holds all Adj-RIBs-In and the Loc-RIB: each prefix has the paths of its peers, with
//! the verdict of the import policy beside them, so that a change of policy needs no word from
//! the peer. What is used is computed, not stored; every mutation compares before and after and
//! remembers the prefixes for which they differ.
//!
//! Not for what we tell each peer: that is `peer`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::best_path::{self, Candidate, Reason, Source};
use crate::policy::Rejection;
use crate::wire::{Attributes, Family};

/// A peer, in the order in which peers were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) u32);

/// A path that a peer told us.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) peer: PeerId,
    pub(crate) attributes: Arc<Attributes>,
    pub(crate) rejection: Option<Rejection>,
    /// The peer is restarting and has not confirmed it yet (RFC 4724 §4.2).
    pub(crate) stale: bool,
}

/// A path that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "BGP calls it next hop")]
pub(crate) struct Hop {
    pub(crate) peer: PeerId,
    pub(crate) next_hop: IpAddr,
    pub(crate) link_local: Option<Ipv6Addr>,
}

/// How many prefixes of a family a peer told us, and how many may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) received: usize,
    pub(crate) accepted: usize,
}

/// A path with its place among the paths of its prefix.
#[derive(Debug)]
pub(crate) struct Ranked<'a> {
    pub(crate) path: &'a Path,
    pub(crate) used: bool,
    pub(crate) best: bool,
    /// What decided between it and the best path; for the best one, between it and the second.
    pub(crate) reason: Option<Reason>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rib {
    destinations: BTreeMap<IpNetwork, Vec<Path>>,
    sources: BTreeMap<PeerId, Source>,
    counts: BTreeMap<(PeerId, Family), Count>,
    changed: BTreeSet<IpNetwork>,
    multipath_limit: usize,
}

impl Rib {
    pub(crate) fn new(multipath_limit: usize) -> Self {
        Self {
            destinations: BTreeMap::new(),
            sources: BTreeMap::new(),
            counts: BTreeMap::new(),
            changed: BTreeSet::new(),
            multipath_limit: multipath_limit.max(1),
        }
    }

    /// Says who a peer is, before its first path.
    pub(crate) fn introduce(&mut self, peer: PeerId, source: Source) {
        self.sources.insert(peer, source);
    }

    pub(crate) fn learn(&mut self, prefix: IpNetwork, path: Path) {
        self.replace(prefix, path.peer, Some(path));
    }

    pub(crate) fn withdraw(&mut self, prefix: IpNetwork, peer: PeerId) {
        self.replace(prefix, peer, None);
    }

    /// Forgets what a peer said about a family.
    pub(crate) fn forget(&mut self, peer: PeerId, family: Family) {
        self.retain(peer, family, |_| false);
    }

    /// Forgets what a restarted peer did not say again.
    pub(crate) fn sweep_stale(&mut self, peer: PeerId, family: Family) {
        self.retain(peer, family, |path| !path.stale);
    }

    pub(crate) fn mark_stale(&mut self, peer: PeerId, family: Family) {
        for (_, paths) in self
            .destinations
            .iter_mut()
            .filter(|(prefix, _)| Family::of(prefix) == family)
        {
            for path in paths.iter_mut().filter(|path| path.peer == peer) {
                path.stale = true;
            }
        }
    }

    /// Judges the paths of a peer again.
    pub(crate) fn judge_again(
        &mut self,
        peer: PeerId,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        let all: Vec<_> = self.destinations.keys().copied().collect();
        self.judge_prefixes_again(peer, all, verdict);
    }

    /// Judges a peer's paths inside a prefix again.
    pub(crate) fn judge_again_within(
        &mut self,
        peer: PeerId,
        outer: &IpNetwork,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        let longest = if outer.is_ipv4() { 32 } else { 128 };
        let (Ok(first), Ok(last)) = (
            IpNetwork::new(outer.network(), 0),
            IpNetwork::new(outer.broadcast(), longest),
        ) else {
            return;
        };
        let inside: Vec<_> = self
            .destinations
            .range(first..=last)
            .map(|(prefix, _)| *prefix)
            .collect();
        self.judge_prefixes_again(peer, inside, verdict);
    }

    /// Judges a peer's paths by a next hop again.
    pub(crate) fn judge_again_by(
        &mut self,
        peer: PeerId,
        next_hop: IpAddr,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        let is_meant = |path: &Path| path.peer == peer && path.attributes.next_hop == next_hop;
        let meant: Vec<_> = self
            .destinations
            .iter()
            .filter(|(_, paths)| paths.iter().any(is_meant))
            .map(|(prefix, _)| *prefix)
            .collect();
        self.judge_prefixes_again(peer, meant, verdict);
    }

    fn judge_prefixes_again(
        &mut self,
        peer: PeerId,
        prefixes: Vec<IpNetwork>,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        for prefix in prefixes {
            let Some(path) = self.path(&prefix, peer) else {
                continue;
            };
            let rejection = verdict(&prefix, &path.attributes);
            if rejection != path.rejection {
                let path = Path {
                    rejection,
                    ..path.clone()
                };
                self.replace(prefix, peer, Some(path));
            }
        }
    }

    pub(crate) fn count(&self, peer: PeerId, family: Family) -> Count {
        self.counts
            .get(&(peer, family))
            .copied()
            .unwrap_or_default()
    }

    /// The prefixes whose used paths changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<IpNetwork> {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The used paths of a prefix, best first.
    pub(crate) fn used(&self, prefix: &IpNetwork) -> Vec<Hop> {
        self.destinations
            .get(prefix)
            .map(|paths| self.select(paths))
            .unwrap_or_default()
    }

    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &IpNetwork> {
        self.destinations.keys()
    }

    /// All paths of all prefixes, each with its place.
    pub(crate) fn ranked(&self) -> impl Iterator<Item = (&IpNetwork, Vec<Ranked<'_>>)> {
        self.destinations
            .iter()
            .map(|(prefix, paths)| (prefix, self.rank(paths)))
    }

    fn path(&self, prefix: &IpNetwork, peer: PeerId) -> Option<&Path> {
        self.destinations
            .get(prefix)?
            .iter()
            .find(|path| path.peer == peer)
    }

    fn retain(&mut self, peer: PeerId, family: Family, keep: impl Fn(&Path) -> bool) {
        let gone: Vec<_> = self
            .destinations
            .iter()
            .filter(|(prefix, paths)| {
                Family::of(prefix) == family
                    && paths.iter().any(|path| path.peer == peer && !keep(path))
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in gone {
            self.withdraw(prefix, peer);
        }
    }

    /// The only place where the path of a peer changes in a way that matters to its use.
    fn replace(&mut self, prefix: IpNetwork, peer: PeerId, path: Option<Path>) {
        let mut paths = self.destinations.remove(&prefix).unwrap_or_default();
        let before = self.select(&paths);
        let old = paths
            .iter()
            .position(|path| path.peer == peer)
            .map(|index| paths.remove(index));

        let count = self.counts.entry((peer, Family::of(&prefix))).or_default();
        if let Some(old) = &old {
            count.received -= 1;
            count.accepted -= usize::from(old.rejection.is_none());
        }
        if let Some(new) = path {
            count.received += 1;
            count.accepted += usize::from(new.rejection.is_none());
            // Most prefixes have one path: a million of them should not pay for four.
            paths.reserve_exact(1);
            paths.push(new);
        }

        if self.select(&paths) != before {
            self.changed.insert(prefix);
        }
        if !paths.is_empty() {
            self.destinations.insert(prefix, paths);
        }
    }

    fn candidate<'a>(&'a self, path: &'a Path) -> Option<Candidate<'a>> {
        Some(Candidate {
            attributes: &path.attributes,
            source: self.sources.get(&path.peer)?,
        })
    }

    fn select(&self, paths: &[Path]) -> Vec<Hop> {
        let usable: Vec<_> = paths
            .iter()
            .filter(|path| path.rejection.is_none())
            .filter_map(|path| Some((path, self.candidate(path)?)))
            .collect();
        let candidates: Vec<_> = usable.iter().map(|(_, candidate)| *candidate).collect();
        let Some(best) = best_path::rank(&candidates) else {
            return Vec::new();
        };
        let mut together: Vec<_> = usable
            .iter()
            .filter(|(_, candidate)| {
                best_path::compare_for_multipath(*candidate, candidates[best])
                    .0
                    .is_eq()
            })
            .collect();
        together.sort_by(|a, b| best_path::compare(a.1, b.1).0);
        let mut hops: Vec<Hop> = Vec::new();
        for (path, _) in together {
            let next_hop = path.attributes.next_hop;
            if hops.len() < self.multipath_limit && hops.iter().all(|hop| hop.next_hop != next_hop)
            {
                hops.push(Hop {
                    peer: path.peer,
                    next_hop,
                    link_local: path.attributes.link_local,
                });
            }
        }
        hops
    }

    fn rank<'a>(&'a self, paths: &'a [Path]) -> Vec<Ranked<'a>> {
        let used = self.select(paths);
        let best = used
            .first()
            .and_then(|hop| paths.iter().find(|path| path.peer == hop.peer));
        let against = |path: &Path, other: &Path| {
            let (a, b) = self.candidate(path).zip(self.candidate(other))?;
            Some(best_path::compare(a, b).1)
        };
        let mut ranked: Vec<_> = paths
            .iter()
            .map(|path| {
                let is_best = best.is_some_and(|best| best.peer == path.peer);
                let rival = if is_best {
                    paths
                        .iter()
                        .filter(|other| other.rejection.is_none() && other.peer != path.peer)
                        .filter_map(|other| Some((other, self.candidate(other)?)))
                        .min_by(|a, b| best_path::compare(a.1, b.1).0)
                        .map(|(other, _)| other)
                } else {
                    best
                };
                let reason = match rival {
                    _ if path.rejection.is_some() => None,
                    Some(rival) => against(path, rival),
                    None => Some(Reason::Only),
                };
                Ranked {
                    path,
                    used: used.iter().any(|hop| hop.peer == path.peer),
                    best: is_best,
                    reason,
                }
            })
            .collect();
        ranked.sort_by_key(|ranked| (!ranked.best, !ranked.used, ranked.path.peer));
        ranked
    }
}

#[cfg(test)]
mod tests;
