//! What the speaker originates, as peers are told it: worked out once, and written once, for all peers that are told
//! the same.
//!
//! Not for who was told what: each peer remembers its own table, which it shares with those that know the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ipnetwork::IpNetwork;

use crate::config::{Announcement, Announcements, ExportRule};
use crate::export::Export;
use crate::wire::{self, Attributes, Encoding, Family};

/// Prefixes of ours with what is said about each.
pub(crate) type Table = BTreeMap<IpNetwork, Arc<Attributes>>;

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
    pub(crate) table: Arc<Table>,
    /// Prefixes that it is not told for want of a next hop.
    pub(crate) without_next_hop: BTreeMap<Family, usize>,
}

/// The difference between what a peer knows and what it is to know.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    from: Arc<Table>,
    to: Arc<Table>,
    encoding: Encoding,
    /// Whole messages, withdrawals first.
    pub(crate) bytes: Bytes,
    /// What the peer then knows.
    pub(crate) known: Arc<Table>,
    /// Prefixes whose attributes fit no message, by these: they are not told, or not any more (RFC 8654 §5).
    pub(crate) refused: Vec<Vec<IpNetwork>>,
}

/// Answers that were worked out for the announcements as they stand.
#[derive(Debug, Default)]
pub(crate) struct Originated {
    /// Each set of peers that an announcement names.
    audiences: BTreeSet<BTreeSet<String>>,
    wanted: Vec<(Key, Wanted)>,
    steps: Vec<Step>,
}

/// Peers with the same are to know the same.
#[derive(Debug)]
struct Key {
    export: Export,
    rules: Vec<ExportRule>,
    /// Of which audiences they are.
    heard: Vec<bool>,
}

impl Originated {
    pub(crate) fn new(announcements: &Announcements) -> Self {
        let audiences = announcements.values();
        Self {
            audiences: audiences.filter_map(|one| one.peers.clone()).collect(),
            wanted: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// What a peer is to know of the announcements, which are those that this was made of.
    pub(crate) fn wanted(&mut self, announcements: &Announcements, hearer: &Hearer<'_>) -> Wanted {
        let audiences = self.audiences.iter();
        let heard: Vec<bool> = audiences.map(|audience| hearer.is_of(audience)).collect();
        let alike = self.wanted.iter().find(|(key, _)| {
            key.export == *hearer.export && key.heard == heard && key.rules == hearer.rules
        });
        if let Some((_, wanted)) = alike {
            return wanted.clone();
        }
        let wanted = work_out(announcements, hearer);
        let key = Key {
            export: hearer.export.clone(),
            rules: hearer.rules.to_vec(),
            heard,
        };
        if self.wanted.len() >= KEPT {
            self.wanted.clear();
        }
        self.wanted.push((key, wanted.clone()));
        wanted
    }

    /// What is said to who knows the first table and is to know the second.
    pub(crate) fn step(&mut self, from: &Arc<Table>, to: &Arc<Table>, encoding: Encoding) -> Step {
        let alike =
            |step: &&Step| step.encoding == encoding && step.from == *from && step.to == *to;
        if let Some(step) = self.steps.iter().find(alike) {
            return step.clone();
        }
        let step = Step::new(Arc::clone(from), Arc::clone(to), encoding);
        if self.steps.len() >= KEPT {
            self.steps.clear();
        }
        self.steps.push(step.clone());
        step
    }
}

fn work_out(announcements: &Announcements, hearer: &Hearer<'_>) -> Wanted {
    type Shape<'a> = (&'a Announcement, Vec<&'a ExportRule>, Family);
    let mut shapes: BTreeMap<Shape<'_>, Option<Arc<Attributes>>> = BTreeMap::new();
    let mut table = Table::new();
    let mut without_next_hop = BTreeMap::new();
    for (prefix, announcement) in announcements {
        let family = Family::of(prefix);
        let audience = announcement.peers.as_ref();
        let is_heard = audience.is_none_or(|audience| hearer.is_of(audience));
        if !is_heard || !hearer.export.speaks(family) {
            continue;
        }
        let rules = hearer.rules.iter();
        let rules: Vec<_> = rules
            .filter(|rule| rule.prefixes.contains(prefix))
            .collect();
        let shape = (announcement, rules, family);
        let attributes = shapes.entry(shape).or_insert_with_key(|(_, rules, _)| {
            let told = hearer.export.of_announcement(announcement, rules, family);
            told.map(Arc::new)
        });
        match attributes {
            Some(attributes) => {
                table.insert(*prefix, Arc::clone(attributes));
            }
            None => *without_next_hop.entry(family).or_default() += 1,
        }
    }
    Wanted {
        table: Arc::new(table),
        without_next_hop,
    }
}

impl Step {
    fn new(from: Arc<Table>, to: Arc<Table>, encoding: Encoding) -> Self {
        let mut gone: BTreeMap<Family, Vec<IpNetwork>> = BTreeMap::new();
        for prefix in from.keys().filter(|prefix| !to.contains_key(prefix)) {
            gone.entry(Family::of(prefix)).or_default().push(*prefix);
        }
        let mut new: BTreeMap<(&Arc<Attributes>, Family), Vec<IpNetwork>> = BTreeMap::new();
        for (prefix, attributes) in to.iter() {
            if from.get(prefix) != Some(attributes) {
                let alike = new.entry((attributes, Family::of(prefix))).or_default();
                alike.push(*prefix);
            }
        }
        let mut known = Arc::clone(&to);
        let mut refused = Vec::new();
        let mut announced = BytesMut::new();
        for ((attributes, family), prefixes) in new {
            let out = &mut announced;
            match wire::write_announcements(attributes, family, &prefixes, encoding, out) {
                Ok(()) => {}
                Err(wire::TooLong) => {
                    let known = Arc::make_mut(&mut known);
                    for prefix in &prefixes {
                        known.remove(prefix);
                    }
                    let stale = prefixes.iter().filter(|prefix| from.contains_key(prefix));
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
