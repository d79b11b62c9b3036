//! Update groups: peers that are told the same share one Adj-RIB-Out of what is passed on to them, and the bytes that
//! say it.
//!
//! ```text
//!   best paths that changed ──► pending ──► told, and bytes ──► every member that is in step and has room
//!                                            │
//!                                            └──► what a member is behind by ──► bytes of its own, as it has room
//! ```
//! What changed is said as soon as a member in step waits for more, whichever it is: the fastest sets the pace, but
//! not the one whose own paths changed, which is told nothing of them. Until then it gathers, and a prefix that
//! changes again meanwhile is said once, as it stands then. A member that has no room for what is said falls behind:
//! from then on what it knows of those prefixes is remembered for it alone, and it catches up on its own. With nothing
//! left to catch up with it is in step again: it knows what the group has said. So begins one that joins, or wants to
//! be told again.
//!
//! Only which prefixes were said is remembered, and whose paths they were, for no peer hears its own: what was said
//! about each follows from its best path.
//!
//! Not for what the speaker originates: that is `originated`'s, and goes before.

mod pace;
mod packed;

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::export::Export;
use crate::prefix_map::{PrefixMap, PrefixSet};
use crate::rib::{PeerId, Rib};
use crate::snapshot::GroupSnapshot;
use crate::wire::Family;
pub(crate) use pace::{Outlet, Pace};

/// A group, in the order in which groups came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupId(pub(crate) u32);

/// All groups of a speaker: every peer with a session is in one.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) pace: Pace,
    next: u32,
    known: BTreeMap<GroupId, Group>,
    places: BTreeMap<PeerId, GroupId>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) export: Export,
    /// The prefixes that are said to be there, and whose path was said.
    told: PrefixMap<PeerId>,
    /// Prefixes of which the latest is not said yet.
    pending: PrefixSet,
    /// Whose paths these are, and were.
    pending_of: Whose,
    members: BTreeMap<PeerId, Member>,
}

/// Whose paths are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Nobodys,
    One(PeerId),
    Several,
}

impl Whose {
    fn and_all(self, sources: impl IntoIterator<Item = PeerId>) -> Self {
        let mut whose = self;
        for source in sources {
            whose = match whose {
                Self::Nobodys => Self::One(source),
                Self::One(known) if known == source => whose,
                Self::One(_) | Self::Several => return Self::Several,
            };
        }
        whose
    }
}

/// What one peer knows, where that is not what the group said.
#[derive(Debug, Default)]
struct Member {
    /// Whose path it knows of the prefix; `None`: it knows of none.
    behind: PrefixMap<Option<PeerId>>,
}

impl Member {
    fn is_in_step(&self) -> bool {
        self.behind.is_empty()
    }
}

impl Groups {
    /// Puts a peer into the group of an export, where it stays if it is there. What it was told in another group it is
    /// told again.
    pub(crate) fn place(&mut self, peer: PeerId, export: Export, rib: &Rib) {
        let told = match self.of(peer) {
            Some((_, group)) if group.export == export => return,
            Some((_, group)) => group.told_to(peer).collect(),
            None => PrefixMap::default(),
        };
        self.leave(peer);
        let mut alike = self
            .known
            .iter_mut()
            .filter(|(_, group)| group.export == export);
        let id = if let Some((id, group)) = alike.next() {
            group.join(peer, &told);
            *id
        } else {
            self.next += 1;
            let id = GroupId(self.next);
            self.known.insert(id, Group::of(peer, export, told, rib));
            id
        };
        self.places.insert(peer, id);
    }

    /// The peer has no session any more.
    pub(crate) fn leave(&mut self, peer: PeerId) {
        let Some(id) = self.places.remove(&peer) else {
            return;
        };
        if let Some(group) = self.known.get_mut(&id) {
            group.members.remove(&peer);
            if group.members.is_empty() {
                self.known.remove(&id);
            }
        }
    }

    /// The group that a peer is in.
    pub(crate) fn of(&self, peer: PeerId) -> Option<(GroupId, &Group)> {
        let id = self.places.get(&peer)?;
        Some((*id, self.known.get(id)?))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.known.iter().map(|(id, group)| (*id, group))
    }

    /// Whether there is something that a peer is to be told and was not.
    pub(crate) fn is_waiting(&self, peer: PeerId) -> bool {
        self.of(peer).is_some_and(|(_, group)| {
            let is_said = group.pending.is_empty() || group.pending_of == Whose::One(peer);
            !is_said || group.is_behind(peer)
        })
    }

    /// What was passed on to a peer, and whose paths that was.
    pub(crate) fn told_to(&self, peer: PeerId) -> impl Iterator<Item = (IpNetwork, PeerId)> {
        let group = self.of(peer);
        group
            .into_iter()
            .flat_map(move |(_, group)| group.told_to(peer))
    }

    /// Makes a peer be told everything of a family again.
    pub(crate) fn tell_again(&mut self, peer: PeerId, family: Family) {
        let Some(group) = self.places.get(&peer).and_then(|id| self.known.get_mut(id)) else {
            return;
        };
        let again: Vec<_> = group
            .told_to(peer)
            .filter(|(prefix, _)| Family::of(prefix) == family)
            .collect();
        if let Some(member) = group.members.get_mut(&peer) {
            for (prefix, source) in again {
                member.behind.insert(prefix, Some(source));
            }
        }
    }
}

impl Group {
    /// A group of one. It has said what that one was told, and is to say everything.
    fn of(peer: PeerId, export: Export, told: PrefixMap<PeerId>, rib: &Rib) -> Self {
        let mut pending = PrefixSet::default();
        pending.extend(told.keys());
        if export.transit {
            let known = rib.prefixes();
            pending.extend(known.filter(|prefix| export.speaks(Family::of(prefix))));
        }
        Self {
            export,
            told,
            pending,
            pending_of: Whose::Several,
            members: BTreeMap::from([(peer, Member::default())]),
        }
    }

    /// Takes a peer in that was told this by another group.
    fn join(&mut self, peer: PeerId, told: &PrefixMap<PeerId>) {
        let mut behind = PrefixMap::default();
        for prefix in self.told.keys() {
            behind.insert(prefix, None);
        }
        for (prefix, source) in told.iter() {
            behind.insert(prefix, Some(*source));
        }
        self.members.insert(peer, Member { behind });
    }

    /// Its members, and whether each is in step.
    pub(crate) fn members(&self) -> impl Iterator<Item = (PeerId, bool)> {
        let members = self.members.iter();
        members.map(|(peer, member)| (*peer, member.is_in_step()))
    }

    pub(crate) fn snapshot(
        &self,
        GroupId(number): GroupId,
        name_of: impl Fn(PeerId) -> Option<String>,
    ) -> GroupSnapshot {
        let names = |members: Vec<(PeerId, bool)>| {
            let names = members.into_iter().filter_map(|(peer, _)| name_of(peer));
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        let export = &self.export;
        let families = export.next_hops.keys();
        GroupSnapshot {
            number,
            peers: names(self.members().collect()),
            behind: names(self.members().filter(|(_, in_step)| !in_step).collect()),
            internal: export.internal,
            next_hops: export.next_hops.clone(),
            longest_message: export.encoding.longest,
            role: export.role,
            graceful_shutdown: export.graceful_shutdown,
            transit: export.transit,
            passed_on: families.map(|f| (*f, self.told.count(*f))).collect(),
            waiting: self.pending.len(),
        }
    }

    fn is_behind(&self, peer: PeerId) -> bool {
        let member = self.members.get(&peer);
        member.is_some_and(|member| !member.is_in_step())
    }

    /// What was passed on to a member, and whose paths that was.
    pub(crate) fn told_to(&self, peer: PeerId) -> impl Iterator<Item = (IpNetwork, PeerId)> {
        self.members.get(&peer).into_iter().flat_map(move |member| {
            let alone = member.behind.iter();
            let alone = alone.filter_map(|(prefix, source)| Some((prefix, (*source)?)));
            let said = self.told.iter().map(|(prefix, source)| (prefix, *source));
            said.filter(move |(prefix, source)| {
                *source != peer && !member.behind.contains_key(prefix)
            })
            .chain(alone)
        })
    }
}
