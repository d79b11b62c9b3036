//! What each peer told us and which of it we use.
//!
//! One table holds all Adj-RIBs-In and the Loc-RIB: each prefix has the paths of its peers, with
//! the verdict of the import policy beside them, so that a change of policy needs no word from
//! the peer. What is used is computed, not stored; every mutation compares before and after and
//! remembers the prefixes for which they differ.
//!
//! Not for what we tell each peer: that is `peer`'s.

mod interned;
mod paths;

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::best_path::{self, Reason, Source};
use crate::policy::Rejection;
use crate::prefix_map::{Entry, PrefixMap};
use crate::wire::{Attributes, Family};
use interned::Interned;
pub(crate) use paths::Selection;
use paths::{Chooser, Paths, Removed};

/// A peer, in the order in which peers were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) u32);

/// A path that a peer told us.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) peer: PeerId,
    pub(crate) attributes: Arc<Attributes>,
    pub(crate) rejection: Option<Rejection>,
    /// The peer is restarting, or tells its routes again, and has not confirmed it yet (RFC 4724 §4.2, RFC 7313
    /// §4).
    pub(crate) stale: bool,
}

/// A prefix and its best path, if it has one.
pub(crate) type BestChange = (IpNetwork, Option<Path>);

/// A path that is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Which of its peer's paths to the prefix it is (RFC 7911 §3); 0 where there is one only.
    pub(crate) identifier: u32,
    pub(crate) used: bool,
    pub(crate) best: bool,
    /// What decided between it and the best path; for the best one, between it and the second.
    pub(crate) reason: Option<Reason>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rib {
    destinations: PrefixMap<Paths>,
    chooser: Chooser,
    interned: Interned,
    counts: BTreeMap<(PeerId, Family), Count>,
    /// Prefixes whose used paths changed, with these; some more than once, the latest last.
    changed: Vec<(IpNetwork, Selection)>,
    /// Prefixes whose best path changed, with it, while somebody passes them on; some more than once, the latest last.
    best_changed: Option<Vec<BestChange>>,
}

impl Rib {
    pub(crate) fn new(multipath_limit: usize) -> Self {
        Self {
            destinations: PrefixMap::default(),
            chooser: Chooser {
                sources: BTreeMap::new(),
                multipath_limit: multipath_limit.max(1),
            },
            interned: Interned::default(),
            counts: BTreeMap::new(),
            changed: Vec::new(),
            best_changed: None,
        }
    }

    /// Says who a peer is, before its first path.
    pub(crate) fn introduce(&mut self, peer: PeerId, source: Source) {
        self.chooser.sources.insert(peer, source);
    }

    /// Who a peer is, once it was introduced.
    pub(crate) fn source(&self, peer: PeerId) -> Option<&Source> {
        self.chooser.sources.get(&peer)
    }

    /// The one copy of attributes that are kept with paths.
    pub(crate) fn intern(&mut self, attributes: Arc<Attributes>) -> Arc<Attributes> {
        self.interned.only(attributes)
    }

    /// Whether changes of best paths are remembered for [`Self::take_best_changed`].
    pub(crate) fn watch_best(&mut self, is_wanted: bool) {
        if is_wanted {
            self.best_changed.get_or_insert_default();
        } else {
            self.best_changed = None;
        }
    }

    /// The prefixes whose best path, or what was said about it, changed since the last call, in their order, with
    /// that path.
    pub(crate) fn take_best_changed(&mut self) -> Vec<BestChange> {
        let changed = self.best_changed.as_mut().map(std::mem::take);
        once_each(changed.unwrap_or_default())
    }

    /// The best path of a prefix.
    pub(crate) fn best(&self, prefix: &IpNetwork) -> Option<&Path> {
        let paths = self.destinations.get(prefix)?;
        self.chooser.best(paths)
    }

    /// Takes a path in the place of the one of its identifier (RFC 7911 §3), which is 0 where a prefix has one path only.
    pub(crate) fn learn(&mut self, prefix: IpNetwork, identifier: u32, path: Path) {
        self.replace(prefix, path.peer, identifier, Some(path));
    }

    pub(crate) fn withdraw(&mut self, prefix: IpNetwork, peer: PeerId, identifier: u32) {
        self.replace(prefix, peer, identifier, None);
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
            let paths = paths.as_mut_slice().iter_mut();
            for path in paths.filter(|path| path.peer == peer) {
                path.stale = true;
            }
        }
    }

    /// Marks what a peer that is long away told as such, and forgets what shall not be kept so (RFC 9494 §4.2).
    pub(crate) fn outlive(&mut self, peer: PeerId, family: Family) {
        let of_family = self.destinations.iter();
        let of_family = of_family.filter(|(prefix, _)| Family::of(prefix) == family);
        let kept: Vec<_> = of_family
            .flat_map(|(prefix, paths)| paths.of(peer).map(move |path| (prefix, path)))
            .filter(|(_, (_, path))| path.stale)
            .map(|(prefix, (identifier, path))| (prefix, identifier, path.clone()))
            .collect();
        for (prefix, identifier, path) in kept {
            let outliving = path.attributes.outlive().map(|attributes| Path {
                attributes: self.interned.only(Arc::new(attributes)),
                ..path
            });
            self.replace(prefix, peer, identifier, outliving);
        }
    }

    /// Judges the paths of a peer again.
    pub(crate) fn judge_again(
        &mut self,
        peer: PeerId,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        let all: Vec<_> = self.destinations.keys().collect();
        self.judge_prefixes_again(peer, all, verdict);
    }

    /// Judges a peer's paths inside a prefix again.
    pub(crate) fn judge_again_within(
        &mut self,
        peer: PeerId,
        outer: &IpNetwork,
        verdict: impl Fn(&IpNetwork, &Attributes) -> Option<Rejection>,
    ) {
        let inside = self.destinations.within(outer);
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
            .filter(|(_, paths)| paths.as_slice().iter().any(is_meant))
            .map(|(prefix, _)| prefix)
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
            let paths = self.destinations.get(&prefix);
            let told: Vec<_> = paths
                .into_iter()
                .flat_map(|paths| paths.of(peer))
                .map(|(identifier, path)| (identifier, path.clone()))
                .collect();
            for (identifier, path) in told {
                let rejection = verdict(&prefix, &path.attributes);
                if rejection != path.rejection {
                    let path = Path { rejection, ..path };
                    self.replace(prefix, peer, identifier, Some(path));
                }
            }
        }
    }

    pub(crate) fn count(&self, peer: PeerId, family: Family) -> Count {
        self.counts
            .get(&(peer, family))
            .copied()
            .unwrap_or_default()
    }

    /// The prefixes whose used paths changed since the last call, in their order, with these, best first.
    pub(crate) fn take_changed(&mut self) -> Vec<(IpNetwork, Selection)> {
        once_each(std::mem::take(&mut self.changed))
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The used paths of a prefix, best first.
    pub(crate) fn used(&self, prefix: &IpNetwork) -> Selection {
        let paths = self.destinations.get(prefix);
        let selection = paths.map(|paths| self.chooser.select(paths));
        selection.unwrap_or_default()
    }

    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNetwork> {
        self.destinations.keys()
    }

    /// All paths of all prefixes, each with its place.
    pub(crate) fn ranked(&self) -> impl Iterator<Item = (IpNetwork, Vec<Ranked<'_>>)> {
        self.destinations
            .iter()
            .map(|(prefix, paths)| (prefix, self.rank(paths)))
    }

    /// The paths that a peer told.
    pub(crate) fn of(&self, peer: PeerId) -> impl Iterator<Item = (IpNetwork, &Path)> {
        self.destinations
            .iter()
            .flat_map(move |(prefix, paths)| paths.of(peer).map(move |(_, path)| (prefix, path)))
    }

    /// The paths of a prefix, each with its place.
    pub(crate) fn ranked_of(&self, prefix: &IpNetwork) -> Vec<Ranked<'_>> {
        let paths = self.destinations.get(prefix);
        paths.map_or_else(Vec::new, |paths| self.rank(paths))
    }

    fn retain(&mut self, peer: PeerId, family: Family, keep: impl Fn(&Path) -> bool) {
        let of_family = self.destinations.iter();
        let of_family = of_family.filter(|(prefix, _)| Family::of(prefix) == family);
        let gone: Vec<_> = of_family
            .flat_map(|(prefix, paths)| paths.of(peer).map(move |path| (prefix, path)))
            .filter(|(_, (_, path))| !keep(path))
            .map(|(prefix, (identifier, _))| (prefix, identifier))
            .collect();
        for (prefix, identifier) in gone {
            self.withdraw(prefix, peer, identifier);
        }
    }

    /// The only place where the path of a peer changes in a way that matters to its use.
    fn replace(&mut self, prefix: IpNetwork, peer: PeerId, identifier: u32, path: Option<Path>) {
        let count = self.counts.entry((peer, Family::of(&prefix))).or_default();
        if let Some(new) = &path {
            count.received += 1;
            count.accepted += usize::from(new.rejection.is_none());
        }
        let watches_best = self.best_changed.is_some();
        let look = |paths: &Paths| {
            let best = watches_best.then(|| self.chooser.best(paths));
            (self.chooser.select(paths), best.flatten().cloned())
        };
        let Change { before, after, old } = match self.destinations.entry(prefix) {
            Entry::V4(entry) => change(entry, (peer, identifier), path, look),
            Entry::V6(entry) => change(entry, (peer, identifier), path, look),
        };
        if let Some(old) = &old {
            count.received -= 1;
            count.accepted -= usize::from(old.rejection.is_none());
        }
        if before.0 != after.0 {
            self.changed.push((prefix, after.0));
        }
        let told = |best: &Option<Path>| {
            let path = best.as_ref()?;
            Some((path.peer, Arc::clone(&path.attributes)))
        };
        if let Some(changed) = &mut self.best_changed
            && told(&before.1) != told(&after.1)
        {
            changed.push((prefix, after.1));
        }
    }

    fn rank<'a>(&'a self, paths: &'a Paths) -> Vec<Ranked<'a>> {
        let used = self.chooser.choose(paths);
        let best = used.first().copied();
        let candidates: Vec<_> = (0..paths.as_slice().len())
            .map(|place| self.chooser.candidate(paths, place))
            .collect();
        // The strongest one beside the best.
        let second = candidates
            .iter()
            .enumerate()
            .filter(|(place, _)| Some(*place) != best)
            .filter_map(|(_, candidate)| *candidate)
            .min_by(|a, b| best_path::compare(*a, *b).0);
        let best_candidate = best.and_then(|place| candidates[place]);
        let mut ranked: Vec<_> = paths
            .as_slice()
            .iter()
            .enumerate()
            .map(|(place, path)| {
                let is_best = best == Some(place);
                let rival = if is_best { second } else { best_candidate };
                let reason = match (candidates[place], rival) {
                    (Some(candidate), Some(rival)) => Some(best_path::compare(candidate, rival).1),
                    (Some(_), None) => Some(Reason::Only),
                    (None, _) => None,
                };
                Ranked {
                    path,
                    identifier: paths.identifier(place),
                    used: used.contains(&place),
                    best: is_best,
                    reason,
                }
            })
            .collect();
        ranked.sort_by_key(|one| (!one.best, !one.used, one.path.peer, one.identifier));
        ranked
    }
}

/// In the order of prefixes, of several changes of one the latest.
fn once_each<T>(mut changed: Vec<(IpNetwork, T)>) -> Vec<(IpNetwork, T)> {
    changed.sort_by_key(|(prefix, _)| *prefix);
    changed.dedup_by(|later, kept| {
        let is_same = later.0 == kept.0;
        if is_same {
            std::mem::swap(later, kept);
        }
        is_same
    });
    changed
}

/// What was seen of a prefix before and after a path of it changed, and that path as it was.
struct Change<S> {
    before: S,
    after: S,
    old: Option<Path>,
}

/// Puts, replaces or removes the path of a peer.
fn change<K: Ord, S: Default>(
    entry: btree_map::Entry<'_, K, Paths>,
    (peer, identifier): (PeerId, u32),
    path: Option<Path>,
    look: impl Fn(&Paths) -> S,
) -> Change<S> {
    let mut seen = Change {
        before: S::default(),
        after: S::default(),
        old: None,
    };
    match (entry, path) {
        (btree_map::Entry::Vacant(_), None) => {}
        (btree_map::Entry::Vacant(vacant), Some(new)) => {
            seen.after = look(vacant.insert(Paths::new(new, identifier)));
        }
        (btree_map::Entry::Occupied(mut known), Some(new)) => {
            let paths = known.get_mut();
            seen.before = look(paths);
            seen.old = paths.put(new, identifier);
            seen.after = look(paths);
        }
        (btree_map::Entry::Occupied(mut known), None) => {
            let paths = known.get_mut();
            seen.before = look(paths);
            match paths.remove(peer, identifier) {
                Removed::Nothing => seen.after = look(paths),
                Removed::One(old) => {
                    seen.old = Some(old);
                    seen.after = look(paths);
                }
                Removed::Last(old) => {
                    seen.old = Some(old);
                    known.remove();
                }
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests;
