//! Changes, written as the UPDATEs that a group shares, with what is not for each of its members found again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use ipnetwork::IpNetwork;

use crate::export::Export;
use crate::rib::{Path, PeerId};
use crate::wire::{self, Attributes, Family};

/// A prefix of which something else is to be said.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) prefix: IpNetwork,
    /// Whose path was said before.
    pub(super) before: Option<PeerId>,
    /// The path that is to be said; `None`: the prefix is gone.
    pub(super) path: Option<&'a Path>,
}

impl Change<'_> {
    /// Whether a peer knows what was said before: not of a path of its own.
    pub(super) fn was_told_to(&self, peer: PeerId) -> bool {
        self.before.is_some_and(|before| before != peer)
    }
}

/// Messages without a gap, withdrawals first.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Bytes,
    /// Where in them is said what concerns paths of one peer only, in their order.
    pieces: Vec<(PeerId, Range<usize>)>,
    /// Prefixes whose attributes fit no message, or that we have no next hop for. RFC 4271 §9.2 and RFC 8654 §5 let
    /// them not be told.
    pub(super) unfit: BTreeSet<IpNetwork>,
}

/// Prefixes that share what is said about them.
struct Batch<'a> {
    path: &'a Path,
    family: Family,
    prefixes: Vec<IpNetwork>,
}

impl Packed {
    pub(super) fn new(export: &Export, changes: &[Change<'_>]) -> Self {
        let encoding = export.encoding;
        let mut unfit = BTreeSet::new();
        let mut announced = BytesMut::new();
        let mut ends = Vec::new();
        for batch in batches(changes) {
            let (path, family) = (batch.path, batch.family);
            let out = &mut announced;
            let told = export.of_path(path, family).and_then(|told| {
                wire::write_announcements(&told, family, &batch.prefixes, encoding, out).ok()
            });
            match told {
                Some(()) => ends.push((path.peer, announced.len())),
                None => unfit.extend(batch.prefixes),
            }
        }
        let mut gone: BTreeMap<(PeerId, Family), Vec<IpNetwork>> = BTreeMap::new();
        for change in changes {
            let is_gone = change.path.is_none() || unfit.contains(&change.prefix);
            if let Some(before) = change.before.filter(|_| is_gone) {
                let family = Family::of(&change.prefix);
                gone.entry((before, family))
                    .or_default()
                    .push(change.prefix);
            }
        }
        let mut withdrawn = BytesMut::new();
        let mut pieces = Vec::new();
        for ((source, family), prefixes) in gone {
            for message in wire::pack_withdrawals(family, &prefixes, encoding) {
                withdrawn.extend_from_slice(&message);
            }
            reach_to(&mut pieces, source, withdrawn.len());
        }
        for (source, end) in ends {
            reach_to(&mut pieces, source, withdrawn.len() + end);
        }
        // Members that are slow keep them long: no more than needed.
        let mut bytes = BytesMut::with_capacity(withdrawn.len() + announced.len());
        bytes.extend_from_slice(&withdrawn);
        bytes.extend_from_slice(&announced);
        Self {
            bytes: bytes.freeze(),
            pieces,
            unfit,
        }
    }

    /// Prefixes of which a peer knows another's path, and is not told the one that is said now, for it is its own.
    pub(super) fn taken_over_by(
        &self,
        peer: PeerId,
        changes: &[Change<'_>],
    ) -> impl Iterator<Item = IpNetwork> {
        let is_concerned = self.pieces.iter().any(|(source, _)| *source == peer);
        let changes = if is_concerned { changes } else { &[] };
        let own = changes
            .iter()
            .filter(move |change| change.path.is_some_and(|path| path.peer == peer));
        own.filter(move |change| change.was_told_to(peer) && !self.unfit.contains(&change.prefix))
            .map(|change| change.prefix)
    }

    /// What is said of the paths of others than this peer.
    pub(super) fn without(&self, peer: PeerId) -> Vec<Bytes> {
        let mut rest = Vec::new();
        let mut begin = 0;
        let end = (peer, self.bytes.len()..self.bytes.len());
        let cuts = self.pieces.iter().filter(|(source, _)| *source == peer);
        for (_, cut) in cuts.chain([&end]) {
            if begin < cut.start {
                rest.push(self.bytes.slice(begin..cut.start));
            }
            begin = cut.end;
        }
        rest
    }
}

/// Adds what was written since the last piece, up to `end`, to the pieces.
fn reach_to(pieces: &mut Vec<(PeerId, Range<usize>)>, source: PeerId, end: usize) {
    match pieces.last_mut() {
        Some((last, piece)) if *last == source => piece.end = end,
        last => {
            let begin = last.map_or(0, |(_, piece)| piece.end);
            pieces.push((source, begin..end));
        }
    }
}

/// What is announced, by the path.
fn batches<'a>(changes: &[Change<'a>]) -> Vec<Batch<'a>> {
    type Key = (*const Attributes, PeerId, Family);
    let mut batches: Vec<Batch<'a>> = Vec::new();
    let mut places: HashMap<Key, usize> = HashMap::with_capacity(changes.len());
    // Neighbours in the table are likely to share their attributes.
    let mut last: Option<(Key, usize)> = None;
    for change in changes {
        let Some(path) = change.path else {
            continue;
        };
        let family = Family::of(&change.prefix);
        let key: Key = (std::sync::Arc::as_ptr(&path.attributes), path.peer, family);
        let place = match last {
            Some((known, place)) if known == key => place,
            _ => *places.entry(key).or_insert(batches.len()),
        };
        last = Some((key, place));
        match batches.get_mut(place) {
            Some(batch) => batch.prefixes.push(change.prefix),
            None => batches.push(Batch {
                path,
                family,
                prefixes: vec![change.prefix],
            }),
        }
    }
    batches
}
