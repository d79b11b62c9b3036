//! Passing on what other peers told: the best path of each prefix, as RFC 4271 §9.2 lets it go.
//!
//! What changed is told at once, or waits in `pending` while the peer takes no more; a prefix that changes again
//! meanwhile is told once, as it stands then. Only which prefixes were told is remembered: what was said
//! about each follows from its best path.
//!
//! Not for what the speaker originates: that is `advertise`'s, and goes before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::{Established, Peer};
use crate::best_path::DEFAULT_LOCAL_PREF;
use crate::prefix_map::PrefixSet;
use crate::rib::{BestChange, Path};
use crate::speaker::Shared;
use crate::wire::{self, Attributes, Family, Role};

/// Octets that may wait to be written before no more is told.
const HIGH_WATER: usize = 256 * 1024;
/// Prefixes that are told at once.
const BATCH: usize = 8192;

/// RFC 1997: not to external peers, to no peer, not outside a confederation (of which we are none).
const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const NO_EXPORT_SUBCONFED: u32 = 0xFFFF_FF03;

/// What is passed on to a peer.
#[derive(Debug, Default)]
pub(super) struct Transit {
    /// Not yet told, or told otherwise.
    pending: PrefixSet,
    told: PrefixSet,
}

impl Transit {
    pub(super) fn told(&self) -> impl Iterator<Item = IpNetwork> {
        self.told.iter()
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Makes the peer be told everything of a family again.
    pub(super) fn tell_again(&mut self, family: Family) {
        let of_family = self.told.iter().filter(|told| Family::of(told) == family);
        self.pending.extend(of_family);
    }
}

/// Prefixes that share what is said about them.
struct Batch {
    path: Path,
    family: Family,
    prefixes: Vec<IpNetwork>,
}

impl Peer {
    /// Whether the peer is told what others told.
    pub(crate) const fn is_passed_to(&self) -> bool {
        self.config.transit
    }

    /// Makes the peer be told all best paths, or have them withdrawn.
    pub(super) fn pass_all_on(&mut self, shared: &Shared) {
        if self.established.is_some() {
            let Transit { pending, told } = &mut self.transit;
            pending.extend(told.iter());
            if self.config.transit {
                self.transit.pending.extend(shared.rib.prefixes());
            }
        }
    }

    /// Tells the peer of best paths that changed, as much as it takes now.
    pub(crate) fn pass_on(&mut self, changed: &[BestChange], now: Instant, shared: &mut Shared) {
        let changed = if self.config.transit { changed } else { &[] };
        if changed.is_empty() && !self.transit.is_waiting() {
            return;
        }
        let Some(established) = self.established.clone() else {
            return;
        };
        let is_full = |peer: &Self| peer.session(established.direction).unwritten() >= HIGH_WATER;
        for batch in changed.chunks(BATCH) {
            if self.transit.is_waiting() || is_full(self) {
                let prefixes = batch.iter().map(|(prefix, _)| *prefix);
                self.transit.pending.extend(prefixes);
            } else {
                self.pass_batch_on(batch, &established, now, shared);
            }
        }
        while self.transit.is_waiting() && !is_full(self) {
            let pending = &mut self.transit.pending;
            let batch: Vec<_> = std::iter::from_fn(|| pending.pop_first())
                .take(BATCH)
                .map(|prefix| (prefix, shared.rib.best(&prefix).cloned()))
                .collect();
            self.pass_batch_on(&batch, &established, now, shared);
        }
        if !self.end_of_rib_sent || !self.told_again.is_empty() {
            // What is told first, or again, ends with the marker.
            self.advertise(now, shared);
        }
    }

    fn pass_batch_on(
        &mut self,
        changed: &[BestChange],
        established: &Established,
        now: Instant,
        shared: &mut Shared,
    ) {
        let mut gone = [
            (Family::Ipv4Unicast, Vec::new()),
            (Family::Ipv6Unicast, Vec::new()),
        ];
        let mut batches: Vec<Batch> = Vec::new();
        let mut places: HashMap<(*const Attributes, Family), usize> = HashMap::new();
        // Neighbours in the table are likely to share their attributes.
        let mut last = None;
        for (prefix, best) in changed {
            let prefix = *prefix;
            let is_ours = self.sent.contains_key(&prefix);
            let family = Family::of(&prefix);
            let best = best.as_ref();
            match best.filter(|path| self.passes(path, family, established, shared)) {
                Some(path) if !is_ours => {
                    let key = (Arc::as_ptr(&path.attributes), family);
                    let place = match last {
                        Some((known, place)) if known == key => place,
                        _ => *places.entry(key).or_insert(batches.len()),
                    };
                    last = Some((key, place));
                    match batches.get_mut(place) {
                        Some(batch) => batch.prefixes.push(prefix),
                        None => batches.push(Batch {
                            path: path.clone(),
                            family,
                            prefixes: vec![prefix],
                        }),
                    }
                }
                Some(_) | None => {
                    if self.transit.told.remove(&prefix) && !is_ours {
                        let list = gone.iter_mut().find(|(of, _)| *of == family);
                        if let Some((_, list)) = list {
                            list.push(prefix);
                        }
                    }
                }
            }
        }
        let mut messages = Vec::new();
        let encoding = established.terms.encoding;
        for (family, prefixes) in gone {
            messages.extend(wire::pack_withdrawals(family, &prefixes, encoding));
        }
        for batch in batches {
            let told = self.attributes_of(&batch.path, batch.family, established, shared);
            let packed = told.and_then(|told| {
                let prefixes = &batch.prefixes;
                wire::pack_announcements(&told, batch.family, prefixes, encoding).ok()
            });
            // Attributes that fitted a message with one AS less, or a longer one: RFC 4271 §9.2 and RFC 8654 §5
            // let them not be told.
            if let Some(packed) = packed {
                messages.extend(packed);
                self.transit.told.extend(batch.prefixes);
            } else {
                let told = &mut self.transit.told;
                let gone: Vec<_> = batch
                    .prefixes
                    .into_iter()
                    .filter(|p| told.remove(p))
                    .collect();
                messages.extend(wire::pack_withdrawals(batch.family, &gone, encoding));
            }
        }
        self.send_all(&messages, established, now, shared);
    }

    /// Whether the peer should know of a best path.
    fn passes(
        &self,
        path: &Path,
        family: Family,
        established: &Established,
        shared: &Shared,
    ) -> bool {
        if !self.config.transit || !established.terms.families.contains(&family) {
            return false;
        }
        let says = |community| path.attributes.communities.contains(&community);
        let is_internal = established.terms.internal;
        let stays_inside = !is_internal && (says(NO_EXPORT) || says(NO_EXPORT_SUBCONFED));
        // RFC 4271 §9.2: what an internal peer told is not for another one; we are no route reflector.
        let source = shared.rib.source(path.peer);
        let is_inside = is_internal && source.is_none_or(|source| source.internal);
        // RFC 9234 §5: what is for customers only goes to no provider, peer or route server.
        let is_for_customers = path.attributes.rare().only_to_customer.is_some();
        let role = established.terms.role;
        let leaks = is_for_customers && role.is_some_and(Role::hears_for_customers_only);
        // RFC 9494 §4.3: who does not know what it means would prefer it to better ones.
        let outlives = path.attributes.is_outliving() && established.terms.long_lived.is_none();
        let is_held_back = is_inside || stays_inside || leaks || outlives || says(NO_ADVERTISE);
        path.peer != self.id && !is_held_back
    }

    /// What is said about a path that is passed on; `None` without a next hop of the family.
    fn attributes_of(
        &self,
        path: &Path,
        family: Family,
        established: &Established,
        shared: &Shared,
    ) -> Option<Attributes> {
        let mut told = Attributes {
            next_hop: self.next_hop(established, family)?,
            link_local: None,
            ..Attributes::clone(&path.attributes)
        };
        let internal = established.terms.internal;
        if let Some(mut rare) = told.rare.take() {
            if internal {
                rare.leave_cluster();
            } else {
                rare.leave_as();
            }
            told.set_rare(*rare);
        }
        if internal {
            told.local_pref = Some(told.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
        } else {
            told.as_path.insert(0, shared.config.local_as);
            told.local_pref = None;
            // RFC 4271 §5.1.4: it is for us, not for another AS.
            told.med = None;
        }
        if established
            .terms
            .role
            .is_some_and(Role::tells_for_customers_only)
        {
            told.keep_to_customers(shared.config.local_as);
        }
        if self.config.graceful_shutdown {
            told.shut_down_gracefully(internal);
        }
        Some(told)
    }

    /// What the peer was told of others, as it stands.
    pub(super) fn passed_on<'a>(
        &'a self,
        shared: &'a Shared,
    ) -> impl Iterator<Item = (IpNetwork, Attributes)> + 'a {
        self.established.iter().flat_map(move |established| {
            self.transit.told.iter().filter_map(move |prefix| {
                let family = Family::of(&prefix);
                let best = shared.rib.best(&prefix);
                let path = best.filter(|path| self.passes(path, family, established, shared))?;
                let told = self.attributes_of(path, family, established, shared)?;
                Some((prefix, told))
            })
        })
    }
}
