//! What the speaker originates, as peers are told it: worked out once, and written once, for all peers that are told
//! the same. When announcements change, what was worked out follows at the cost of what has changed.
//!
//! Not for who was told what: each peer remembers its own table, which it shares with those that know the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnetwork::IpNetwork;

use crate::config::{Announcement, Announcements, ExportRule};
use crate::export::Export;
use crate::wire::{self, Attributes, Encoding, Family};

/// Prefixes of ours with what is said about each.
pub(crate) type Table = OrdMap<IpNetwork, Arc<Attributes>>;

/// How many answers are kept, of either kind: that many kinds of peers share them.
const KEPT: usize = 64;

/// A peer, as far as it matters to what it hears.
pub(crate) struct Hearer<'a> {
    pub(crate) export: &'a Export,
    pub(crate) rules: &'a [ExportRule],
    /// By which announcements may name it.
    pub(crate) names: Vec<&'a str>,
}

impl Hearer<'_> {
    fn is_of(&self, audience: &BTreeSet<String>) -> bool {
        self.names.iter().any(|name| audience.contains(*name))
    }
}

/// What a peer is to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) table: Table,
    /// Prefixes that it is not told for want of a next hop.
    pub(crate) without_next_hop: BTreeMap<Family, usize>,
}

/// The difference between what a peer knows and what it is to know.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    from: Table,
    to: Table,
    encoding: Encoding,
    /// Whole messages, withdrawals first.
    pub(crate) bytes: Bytes,
    /// What the peer then knows.
    pub(crate) known: Table,
    /// Prefixes whose attributes fit no message, by these: they are not told, or not any more (RFC 8654 §5).
    pub(crate) refused: Vec<Vec<IpNetwork>>,
}

/// Answers that were worked out for the announcements as they stand.
#[derive(Debug, Default)]
pub(crate) struct Originated {
    /// Each set of peers that announcements name, and how many do.
    audiences: BTreeMap<BTreeSet<String>, usize>,
    wanted: Vec<(Key, Wanted)>,
    steps: Vec<Step>,
}

/// Peers with the same are to know the same.
#[derive(Debug)]
struct Key {
    export: Export,
    rules: Vec<ExportRule>,
    /// Of the audiences those that they are of.
    heard: BTreeSet<BTreeSet<String>>,
}

impl Originated {
    /// Follows the announcements: what was worked out for those before is brought to those after, at the cost of
    /// what has changed.
    pub(crate) fn follow(&mut self, before: &Announcements, after: &Announcements) {
        self.steps.clear();
        let changes: Vec<_> = before.diff(after).map(|change| of_diff(&change)).collect();
        let gathered = self.audiences.len();
        for audience in changes
            .iter()
            .filter_map(|(_, _, new)| (*new)?.peers.as_ref())
        {
            match self.audiences.get_mut(audience) {
                Some(count) => *count += 1,
                None => {
                    self.audiences.insert(audience.clone(), 1);
                }
            }
        }
        let is_known = self.audiences.len() == gathered;
        for audience in changes
            .iter()
            .filter_map(|(_, old, _)| (*old)?.peers.as_ref())
        {
            if let Some(count) = self.audiences.get_mut(audience) {
                *count -= 1;
            }
        }
        self.audiences.retain(|_, count| *count > 0);
        if !is_known {
            // No answer says whether its peers are of an audience that nobody has named before.
            self.wanted.clear();
        }
        for (key, wanted) in &mut self.wanted {
            let mut last = None;
            for (prefix, old, new) in &changes {
                key.follow(wanted, prefix, *old, *new, &mut last);
            }
        }
    }

    /// What a peer is to know of the announcements, which are those that were followed last.
    pub(crate) fn wanted(&mut self, announcements: &Announcements, hearer: &Hearer<'_>) -> Wanted {
        let audiences = self.audiences.keys();
        let heard: BTreeSet<_> = audiences.filter(|one| hearer.is_of(one)).cloned().collect();
        let is_alike = |key: &Key| {
            // Those that nobody names any more count no more.
            let known = key.heard.iter();
            let known = known.filter(|one| self.audiences.contains_key(*one));
            key.export == *hearer.export && key.rules == hearer.rules && known.eq(&heard)
        };
        if let Some((_, wanted)) = self.wanted.iter().find(|(key, _)| is_alike(key)) {
            return wanted.clone();
        }
        let key = Key {
            export: hearer.export.clone(),
            rules: hearer.rules.to_vec(),
            heard,
        };
        let (mut wanted, mut last) = (Wanted::default(), None);
        for (prefix, announcement) in announcements {
            key.follow(&mut wanted, prefix, None, Some(announcement), &mut last);
        }
        if self.wanted.len() >= KEPT {
            self.wanted.clear();
        }
        self.wanted.push((key, wanted.clone()));
        wanted
    }

    /// What is said to who knows the first table and is to know the second.
    pub(crate) fn step(&mut self, from: &Table, to: &Table, encoding: Encoding) -> Step {
        let alike =
            |step: &&Step| step.encoding == encoding && step.from == *from && step.to == *to;
        if let Some(step) = self.steps.iter().find(alike) {
            return step.clone();
        }
        let step = Step::new(from.clone(), to.clone(), encoding);
        if self.steps.len() >= KEPT {
            self.steps.clear();
        }
        self.steps.push(step.clone());
        step
    }
}

/// What is to be known of one prefix.
enum Row {
    Unheard,
    WithoutNextHop(Family),
    Told(Attributes),
}

impl Key {
    fn row(&self, prefix: &IpNetwork, announcement: &Announcement) -> Row {
        let family = Family::of(prefix);
        let audience = announcement.peers.as_ref();
        let is_heard = audience.is_none_or(|audience| self.heard.contains(audience));
        if !is_heard || !self.export.speaks(family) {
            return Row::Unheard;
        }
        let rules = self.rules.iter();
        let rules: Vec<_> = rules
            .filter(|rule| rule.prefixes.contains(prefix))
            .collect();
        let told = self.export.of_announcement(announcement, &rules, family);
        told.map_or(Row::WithoutNextHop(family), Row::Told)
    }

    /// Brings what is to be known to another announcement of a prefix. `last` is what was said of the one before: it
    /// is likely to be said again, and is kept once.
    fn follow(
        &self,
        wanted: &mut Wanted,
        prefix: &IpNetwork,
        old: Option<&Announcement>,
        new: Option<&Announcement>,
        last: &mut Option<Arc<Attributes>>,
    ) {
        match old.map(|old| self.row(prefix, old)) {
            Some(Row::Told(_)) => {
                wanted.table.remove(prefix);
            }
            Some(Row::WithoutNextHop(family)) => {
                if let Some(count) = wanted.without_next_hop.get_mut(&family) {
                    *count -= 1;
                }
                wanted.without_next_hop.retain(|_, count| *count > 0);
            }
            Some(Row::Unheard) | None => {}
        }
        match new.map(|new| self.row(prefix, new)) {
            Some(Row::Told(attributes)) => {
                let known = last.take_if(|known| **known == attributes);
                let attributes = known.unwrap_or_else(|| Arc::new(attributes));
                *last = Some(Arc::clone(&attributes));
                wanted.table.insert(*prefix, attributes);
            }
            Some(Row::WithoutNextHop(family)) => {
                *wanted.without_next_hop.entry(family).or_default() += 1;
            }
            Some(Row::Unheard) | None => {}
        }
    }
}

/// A row that differs, as it was and as it is.
pub(crate) const fn of_diff<'a, K, V>(
    change: &DiffItem<'a, 'a, K, V>,
) -> (&'a K, Option<&'a V>, Option<&'a V>) {
    match *change {
        DiffItem::Add(key, new) => (key, None, Some(new)),
        DiffItem::Remove(key, old) => (key, Some(old), None),
        DiffItem::Update {
            old: (key, old),
            new: (_, new),
        } => (key, Some(old), Some(new)),
    }
}

impl Step {
    fn new(from: Table, to: Table, encoding: Encoding) -> Self {
        let mut gone: BTreeMap<Family, Vec<IpNetwork>> = BTreeMap::new();
        let mut new: BTreeMap<(&Arc<Attributes>, Family), Vec<IpNetwork>> = BTreeMap::new();
        for (prefix, _, after) in from.diff(&to).map(|change| of_diff(&change)) {
            let family = Family::of(prefix);
            let alike = match after {
                Some(attributes) => new.entry((attributes, family)).or_default(),
                None => gone.entry(family).or_default(),
            };
            alike.push(*prefix);
        }
        let mut known = to.clone();
        let mut refused = Vec::new();
        let mut announced = BytesMut::new();
        for ((attributes, family), prefixes) in new {
            let out = &mut announced;
            match wire::write_announcements(attributes, family, &prefixes, encoding, out) {
                Ok(()) => {}
                Err(wire::TooLong) => {
                    for prefix in &prefixes {
                        known.remove(prefix);
                    }
                    let stale = prefixes.iter().filter(|prefix| from.contains_key(*prefix));
                    gone.entry(family).or_default().extend(stale);
                    refused.push(prefixes);
                }
            }
        }
        let withdrawn = gone
            .iter()
            .flat_map(|(family, prefixes)| wire::pack_withdrawals(*family, prefixes, encoding));
        let mut bytes = BytesMut::new();
        for message in withdrawn {
            bytes.extend_from_slice(&message);
        }
        bytes.unsplit(announced);
        Self {
            from,
            to,
            encoding,
            bytes: bytes.freeze(),
            known,
            refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn prefix(number: u8) -> IpNetwork {
        if number.is_multiple_of(2) {
            IpNetwork::new(Ipv4Addr::new(10, number, 0, 0).into(), 24).unwrap()
        } else {
            let address = Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 0);
            IpNetwork::new(address.into(), 64).unwrap()
        }
    }

    fn announcements() -> impl Strategy<Value = Announcements> {
        let audience = proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3)
            .prop_map(|names| names.into_iter().map(str::to_owned).collect());
        let one = (
            proptest::option::of(audience),
            proptest::option::of(0..3_u32),
        );
        let one = one.prop_map(|(peers, med)| Announcement {
            med,
            peers,
            ..Announcement::default()
        });
        let all = proptest::collection::btree_map((0..8_u8).prop_map(prefix), one, 0..8);
        all.prop_map(Announcements::from_iter)
    }

    fn export(has_v6: bool) -> Export {
        let v6 = has_v6.then_some(IpAddr::from(Ipv6Addr::LOCALHOST));
        Export {
            local_as: 65001,
            internal: false,
            next_hops: [
                (Family::Ipv4Unicast, Some(IpAddr::from([192, 0, 2, 1]))),
                (Family::Ipv6Unicast, v6),
            ]
            .into(),
            encoding: Encoding::PLAIN,
            transit: false,
            role: None,
            long_lived: false,
            graceful_shutdown: false,
        }
    }

    proptest! {
        #[test]
        fn what_follows_changes_is_what_is_worked_out_anew(
            steps in proptest::collection::vec(announcements(), 1..6),
            of_rule in proptest::sample::subsequence((0..8).collect::<Vec<u8>>(), 0..4),
        ) {
            let rule = ExportRule {
                prefixes: of_rule.into_iter().map(prefix).collect(),
                communities: [7].into(),
                ..ExportRule::default()
            };
            let (both, v4) = (export(true), export(false));
            let hearer = |export, rules, name| Hearer { export, rules, names: vec![name] };
            let rules = [rule];
            let hearers = [
                hearer(&both, &rules[..], "a"),
                hearer(&both, &[], "b"),
                hearer(&v4, &[], "c"),
            ];
            let mut followed = Originated::default();
            let mut before = Announcements::new();
            for after in steps {
                followed.follow(&before, &after);
                let mut anew = Originated::default();
                anew.follow(&Announcements::new(), &after);
                for hearer in &hearers {
                    let wanted = followed.wanted(&after, hearer);
                    let expected = anew.wanted(&after, hearer);
                    prop_assert_eq!(wanted.table, expected.table);
                    prop_assert_eq!(wanted.without_next_hop, expected.without_next_hop);
                }
                prop_assert_eq!(&followed.audiences, &anew.audiences);
                before = after;
            }
        }
    }
}
