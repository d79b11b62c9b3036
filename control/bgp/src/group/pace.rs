//! Who is told what when: what a group says goes to all members that have room, and others catch up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ipnetwork::IpNetwork;

use super::packed::{Change, Packed};
use super::{Group, Groups, Whose};
use crate::export::Export;
use crate::peer::Peer;
use crate::rib::{BestChange, Path, PeerId, Rib};
use crate::speaker::Shared;
use crate::wire::{self, Attributes, Encoding, Family};

/// How much is told at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// With fewer octets to be written a member waits for more.
    pub(crate) low_water: usize,
    /// With so many octets to be written a member has no room for more. It falls behind when another one gets so far
    /// ahead of it; the octets in between are kept once for all of them.
    pub(crate) high_water: usize,
    /// Prefixes that are told at once.
    pub(crate) batch: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            low_water: 256 * 1024,
            high_water: 1024 * 1024,
            batch: 8192,
        }
    }
}

/// Where what is said goes.
pub(crate) struct Outlet<'a> {
    pub(crate) peers: &'a mut BTreeMap<PeerId, Peer>,
    pub(crate) shared: &'a mut Shared,
    pub(crate) now: Instant,
    pub(crate) pace: Pace,
}

impl Outlet<'_> {
    /// Whether a peer waits for more.
    fn is_waiting(&self, peer: PeerId) -> bool {
        self.unwritten(peer) < self.pace.low_water
    }

    /// Whether a peer can be told more.
    fn has_room(&self, peer: PeerId) -> bool {
        self.unwritten(peer) < self.pace.high_water
    }

    fn unwritten(&self, peer: PeerId) -> usize {
        self.peers.get(&peer).map_or(0, Peer::unwritten)
    }

    /// Whether a prefix is announced by us: then no path of others is used.
    fn is_ours(&self, prefix: &IpNetwork) -> bool {
        self.shared.announcements.contains_key(prefix)
    }

    /// Whether a peer was told a prefix as ours: then a withdrawal of another's path would withdraw ours.
    fn has_ours(&self, peer: PeerId, prefix: &IpNetwork) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|peer| peer.was_told_ours(prefix))
    }

    /// Tells one peer that prefixes are gone.
    fn withdraw(&mut self, peer: PeerId, prefixes: &[IpNetwork], encoding: Encoding) {
        for family in Family::ALL {
            let of_family = prefixes.iter().filter(|p| Family::of(p) == family);
            let of_family: Vec<_> = of_family.copied().collect();
            for bytes in wire::pack_withdrawals(family, &of_family, encoding) {
                self.send(peer, bytes);
            }
        }
    }

    fn send(&mut self, peer: PeerId, bytes: Bytes) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.send(bytes, self.now, self.shared);
        }
    }
}

/// Which paths pass: asked once for neighbours in the table that share their attributes.
struct Sieve<'a> {
    export: &'a Export,
    rib: &'a Rib,
    last: Option<((*const Attributes, PeerId, Family), bool)>,
}

impl<'a> Sieve<'a> {
    const fn new(export: &'a Export, rib: &'a Rib) -> Self {
        Self {
            export,
            rib,
            last: None,
        }
    }

    fn passes(&mut self, path: &Path, family: Family) -> bool {
        let key = (Arc::as_ptr(&path.attributes), path.peer, family);
        match self.last {
            Some((known, passes)) if known == key => passes,
            _ => {
                let source = self.rib.source(path.peer);
                let passes = self.export.passes(path, family, source);
                self.last = Some((key, passes));
                passes
            }
        }
    }
}

impl Groups {
    /// Tells the members of all groups of best paths that changed, as much as they take now.
    pub(crate) fn pass_on(&mut self, changed: &[BestChange], outlet: &mut Outlet<'_>) {
        for group in self.known.values_mut() {
            group.pass_on(changed, outlet);
        }
    }
}

impl Group {
    fn pass_on(&mut self, changed: &[BestChange], outlet: &mut Outlet<'_>) {
        let changed = if self.export.transit { changed } else { &[] };
        for batch in changed.chunks(outlet.pace.batch) {
            if self.pending.is_empty() {
                self.pending_of = Whose::Nobodys;
                if self.is_awaited(|| Whose::Nobodys.and_all(self.sources(batch)), outlet) {
                    self.say(batch, outlet);
                    continue;
                }
            }
            self.pending_of = self.pending_of.and_all(self.sources(batch));
            self.pending.extend(batch.iter().map(|(prefix, _)| *prefix));
        }
        loop {
            while !self.pending.is_empty() && self.is_awaited(|| self.pending_of, outlet) {
                let pending = &mut self.pending;
                let batch: Vec<_> = std::iter::from_fn(|| pending.pop_first())
                    .take(outlet.pace.batch)
                    .map(|prefix| (prefix, outlet.shared.rib.best(&prefix).cloned()))
                    .collect();
                self.say(&batch, outlet);
            }
            let late: Vec<_> = self
                .members()
                .filter(|(peer, in_step)| !in_step && outlet.is_waiting(*peer))
                .collect();
            if late.is_empty() {
                break;
            }
            for (peer, _) in late {
                self.catch_up(peer, outlet);
            }
        }
    }

    /// Whether a member that is in step waits for what is to be said. One that waits alone, while others are busy, does
    /// not count when all of it is about its own paths: it would be told nothing.
    fn is_awaited(&self, whose: impl FnOnce() -> Whose, outlet: &Outlet<'_>) -> bool {
        let in_step = || self.members().filter(|(_, in_step)| *in_step);
        let mut waiting = in_step().filter(|(peer, _)| outlet.is_waiting(*peer));
        match (waiting.next(), waiting.next()) {
            (None, _) => false,
            (Some(_), Some(_)) => true,
            (Some((peer, _)), None) => in_step().count() == 1 || whose() != Whose::One(peer),
        }
    }

    /// Whose paths of these prefixes are said, and were.
    fn sources(&self, changed: &[BestChange]) -> impl Iterator<Item = PeerId> {
        changed.iter().flat_map(|(prefix, best)| {
            let before = self.told.get(prefix).copied();
            before
                .into_iter()
                .chain(best.as_ref().map(|path| path.peer))
        })
    }

    /// Says what changed to all members that are in step and have room; the others fall behind by it.
    fn say(&mut self, changed: &[BestChange], outlet: &mut Outlet<'_>) {
        let mut sieve = Sieve::new(&self.export, &outlet.shared.rib);
        let mut changes = Vec::with_capacity(changed.len());
        let mut became_ours = Vec::new();
        for (prefix, best) in changed {
            let is_ours = outlet.is_ours(prefix);
            let path = best.as_ref().filter(|_| !is_ours);
            let path = path.filter(|path| sieve.passes(path, Family::of(prefix)));
            let before = match path {
                Some(path) => self.told.insert(*prefix, path.peer),
                None => self.told.remove(prefix),
            };
            let change = Change {
                prefix: *prefix,
                before,
                path,
            };
            match (path, before) {
                (None, None) => {}
                (None, Some(_)) if is_ours => became_ours.push(change),
                _ => changes.push(change),
            }
        }
        let packed = Packed::new(&self.export, &changes);
        for prefix in &packed.unfit {
            self.told.remove(prefix);
        }
        for (&peer, member) in &mut self.members {
            if member.is_in_step() && outlet.has_room(peer) {
                // Who is told that a prefix is ours is not told that another's path is gone.
                let theirs = became_ours.iter().filter(|change| {
                    change.was_told_to(peer) && !outlet.has_ours(peer, &change.prefix)
                });
                let mut gone: Vec<_> = theirs.map(|change| change.prefix).collect();
                gone.extend(packed.taken_over_by(peer, &changes));
                outlet.withdraw(peer, &gone, self.export.encoding);
                for bytes in packed.without(peer) {
                    outlet.send(peer, bytes);
                }
            } else {
                for change in changes.iter().chain(&became_ours) {
                    let before = change.before.filter(|before| *before != peer);
                    member.behind.insert_if_new(change.prefix, before);
                }
            }
        }
    }

    /// Tells a member what it is behind by, as much as it takes now.
    fn catch_up(&mut self, peer: PeerId, outlet: &mut Outlet<'_>) {
        while self.is_behind(peer) && outlet.is_waiting(peer) {
            let Some(member) = self.members.get(&peer) else {
                return;
            };
            // It is told what the group has said: the group says it first.
            let unsaid = member.behind.keys().take(outlet.pace.batch);
            let unsaid = unsaid.filter(|prefix| self.pending.remove(prefix));
            let unsaid: Vec<_> = unsaid
                .map(|prefix| (prefix, outlet.shared.rib.best(&prefix).cloned()))
                .collect();
            if !unsaid.is_empty() {
                self.say(&unsaid, outlet);
            }
            self.tell(peer, outlet);
        }
    }

    /// Tells a member the first of what it is behind by, all of which the group has said.
    fn tell(&mut self, peer: PeerId, outlet: &mut Outlet<'_>) {
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        let mut sieve = Sieve::new(&self.export, &outlet.shared.rib);
        let behind = std::iter::from_fn(|| member.behind.pop_first()).take(outlet.pace.batch);
        let changes: Vec<_> = behind
            .filter(|(prefix, _)| !outlet.has_ours(peer, prefix))
            .filter_map(|(prefix, before)| {
                let best = outlet.shared.rib.best(&prefix);
                let best = best.filter(|path| path.peer != peer && !outlet.is_ours(&prefix));
                let path = best.filter(|path| sieve.passes(path, Family::of(&prefix)));
                let change = Change {
                    prefix,
                    before,
                    path,
                };
                (before.is_some() || path.is_some()).then_some(change)
            })
            .collect();
        let packed = Packed::new(&self.export, &changes);
        for bytes in packed.without(peer) {
            outlet.send(peer, bytes);
        }
    }
}
