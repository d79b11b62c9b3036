//! Which ring serves which services, and what its slots say.
//!
//! A home is a ring of one plan. It keeps the place of a ring that is there, or is given free pages; its
//! slots begin as those of the ring that its services used so far.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::service::{SLOTS_PER_PAGE, ServiceKey, Slot};
use fairlead_common::tables::RING_PAGES;

use super::ids::Ids;
use super::{Memory, key, ring};
use crate::desired::{Condition, Frontend};
use crate::plan::maglev::Member;
use crate::plan::{Actual, Wanted};

/// A ring, its services and its slots.
pub(super) struct Home {
    pub(super) ring: u32,
    services: BTreeSet<Frontend>,
    slots: Vec<Slot>,
    /// When its transition ends.
    until: Option<Duration>,
    /// Index of its members.
    group: usize,
}

impl Home {
    /// Every id that its slots name.
    pub(super) fn named(&self) -> BTreeSet<u32> {
        let mut named = BTreeSet::new();
        let mut last = Slot::default();
        for slot in &self.slots {
            // Neighbouring slots are often equal while there are few backends.
            if *slot != last {
                named.insert(slot.current);
                named.insert(slot.previous);
                last = *slot;
            }
        }
        named.remove(&0);
        named
    }

    /// The slots that differ from what the ring's place holds; all of them in a place that no service
    /// uses, since what it holds is not known.
    pub(super) fn changed_slots(&self, actual: &Actual) -> Vec<(u32, Slot)> {
        let known = actual
            .rings
            .get(&self.ring)
            .filter(|k| k.len() == self.slots.len());
        (0..)
            .zip(&self.slots)
            .filter(|(offset, slot)| known.is_none_or(|k| k[*offset as usize] != **slot))
            .map(|(offset, slot)| (offset, *slot))
            .collect()
    }
}

/// A home before its place and slots are known.
struct Draft {
    group: usize,
    services: BTreeSet<Frontend>,
    /// The ring whose flows its services have.
    base: Option<u32>,
    /// Whether it keeps that ring's place.
    stays: bool,
}

/// All homes of a plan.
pub(super) struct Homes<'a> {
    wanted: &'a Wanted<'a>,
    actual: &'a Actual,
    memory: &'a Memory,
    now: Duration,
    pub(super) settled: Vec<Home>,
    /// Rings whose places no service uses yet.
    pub(super) fresh: BTreeSet<u32>,
    /// Services whose remembered flows must be forgotten.
    pub(super) forgotten: BTreeSet<ServiceKey>,
    /// Places became free in this plan that another one has use for.
    pub(super) again: bool,
    pub(super) memo: BTreeMap<(u32, Vec<Member>), Arc<[u32]>>,
}

impl<'a> Homes<'a> {
    pub(super) fn new(
        wanted: &'a Wanted<'a>,
        actual: &'a Actual,
        memory: &'a Memory,
        now: Duration,
    ) -> Self {
        Self {
            wanted,
            actual,
            memory,
            now,
            settled: Vec::new(),
            fresh: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            again: false,
            memo: BTreeMap::new(),
        }
    }

    /// The ring of a service, when it has one.
    pub(super) fn ring_of(&self, frontend: &Frontend) -> Option<u32> {
        self.settled
            .iter()
            .find(|home| home.services.contains(frontend))
            .map(|home| home.ring)
    }

    /// Rings in transition, and when their windows end.
    pub(super) fn transitions(&self) -> BTreeMap<u32, Duration> {
        self.settled
            .iter()
            .filter_map(|home| Some((home.ring, home.until?)))
            .collect()
    }

    /// Finds a home for every service that has members.
    pub(super) fn settle(
        &mut self,
        members: &BTreeMap<Frontend, Vec<Member>>,
        ids: &Ids,
        alive: &BTreeSet<u32>,
        conditions: &mut Vec<Condition>,
    ) {
        let mut groups = BTreeMap::<&[Member], BTreeSet<Frontend>>::new();
        for (frontend, list) in members.iter().filter(|(_, list)| !list.is_empty()) {
            groups.entry(list).or_default().insert(*frontend);
        }
        let groups: Vec<_> = groups.into_iter().collect();
        let usable = self.usable_rings();
        let drafts = self.draft(&groups, &usable, ids);
        let continued: BTreeSet<_> = drafts
            .iter()
            .flat_map(|draft| {
                draft
                    .services
                    .iter()
                    .map(|service| (key(service), draft.base))
            })
            .collect();
        let mut pages = Pages::of(self.actual);
        let mut homeless = Vec::new();
        for draft in drafts {
            let place = match draft.base {
                Some(base) if draft.stays => Some(base),
                Some(_) | None => pages.take(self.wanted.ring_slots),
            };
            match place {
                Some(place) => {
                    let home = self.home(place, draft, groups[..].as_ref(), ids, alive);
                    self.settled.push(home);
                }
                None => homeless.push(draft),
            }
        }
        self.join_equal();
        for draft in homeless {
            self.shelter(draft, conditions);
        }
        self.forget_leavers(&continued);
        let used: BTreeSet<u32> = self.settled.iter().map(|home| home.ring).collect();
        let before: BTreeSet<u32> = self.rings_in_use().collect();
        self.fresh = used.difference(&before).copied().collect();
        self.again &= before.difference(&used).next().is_some();
    }

    fn rings_in_use(&self) -> impl Iterator<Item = u32> {
        let rows = self.actual.services.values();
        rows.filter(|row| row.slots > 0).map(|row| row.ring)
    }

    /// Rings of the right size, each in pages of its own.
    fn usable_rings(&self) -> BTreeSet<u32> {
        let slots = self.wanted.ring_slots;
        let mut end = 0;
        let mut usable = BTreeSet::new();
        for (&ring, held) in &self.actual.rings {
            let fits = ring.is_multiple_of(SLOTS_PER_PAGE)
                && ring >= end
                && held.len() == slots as usize
                && u64::from(ring) + u64::from(slots) <= u64::from(RING_PAGES * SLOTS_PER_PAGE);
            end = end.max(ring.saturating_add(held.len() as u32));
            if fits {
                usable.insert(ring);
            }
        }
        usable
    }

    /// Divides services by their members and the ring they use so far.
    fn draft(
        &mut self,
        groups: &[(&[Member], BTreeSet<Frontend>)],
        usable: &BTreeSet<u32>,
        ids: &Ids,
    ) -> Vec<Draft> {
        let mut users = BTreeMap::<u32, BTreeMap<usize, BTreeSet<Frontend>>>::new();
        let mut newcomers = BTreeMap::<usize, BTreeSet<Frontend>>::new();
        for (group, (_, services)) in groups.iter().enumerate() {
            for service in services {
                let row = self.actual.services.get(&key(service));
                let ring = row
                    .filter(|row| row.slots == self.wanted.ring_slots)
                    .map(|row| row.ring)
                    .filter(|ring| usable.contains(ring));
                let place = match ring {
                    Some(ring) => users.entry(ring).or_default().entry(group).or_default(),
                    None => newcomers.entry(group).or_default(),
                };
                place.insert(*service);
            }
        }
        let mut drafts = Vec::new();
        for (ring, by_group) in users {
            let keeper = self.keeper(ring, &by_group, groups, ids);
            for (group, services) in by_group {
                drafts.push(Draft {
                    group,
                    services,
                    base: Some(ring),
                    stays: Some(group) == keeper,
                });
            }
        }
        for (group, services) in newcomers {
            let joined = drafts
                .iter_mut()
                .find(|draft| draft.group == group && draft.stays);
            match joined {
                Some(draft) => draft.services.extend(services),
                None => drafts.push(Draft {
                    group,
                    services,
                    base: None,
                    stays: false,
                }),
            }
        }
        drafts
    }

    /// Of several groups on one ring the one that must change it least keeps it.
    fn keeper(
        &mut self,
        ring: u32,
        by_group: &BTreeMap<usize, BTreeSet<Frontend>>,
        groups: &[(&[Member], BTreeSet<Frontend>)],
        ids: &Ids,
    ) -> Option<usize> {
        if by_group.len() == 1 {
            return by_group.keys().next().copied();
        }
        let held = self.actual.rings.get(&ring)?;
        by_group
            .keys()
            .map(|group| {
                let want = self.want(groups[*group].0, ids);
                let differ = want
                    .iter()
                    .zip(held)
                    .filter(|(w, h)| **w != h.current)
                    .count();
                (differ, *group)
            })
            .min()
            .map(|(_, group)| group)
    }

    /// The backend id of each slot.
    fn want(&mut self, members: &[Member], ids: &Ids) -> Vec<u32> {
        let slots = self.wanted.ring_slots;
        let ring = match self.memo.get(&(slots, members.to_vec())) {
            Some(ring) => Arc::clone(ring),
            None => ring(&self.memory.rings, slots, members),
        };
        self.memo
            .insert((slots, members.to_vec()), Arc::clone(&ring));
        let ids: Vec<u32> = members.iter().map(|(at, _)| ids.id(*at)).collect();
        ring.iter().map(|member| ids[*member as usize]).collect()
    }

    /// Computes the slots of a home and its transition.
    fn home(
        &mut self,
        place: u32,
        draft: Draft,
        groups: &[(&[Member], BTreeSet<Frontend>)],
        ids: &Ids,
        alive: &BTreeSet<u32>,
    ) -> Home {
        let want = self.want(groups[draft.group].0, ids);
        let held = draft.base.and_then(|base| self.actual.rings.get(&base));
        let began = draft
            .base
            .and_then(|base| self.memory.transitions.get(&base));
        let Some(held) = held else {
            return Home {
                ring: place,
                services: draft.services,
                slots: want.into_iter().map(steady).collect(),
                until: None,
                group: draft.group,
            };
        };
        let window = self.wanted.drain_window;
        let changes = want
            .iter()
            .zip(held)
            .any(|(want, held)| *want != held.current);
        let was_moving = began.is_some() || held.iter().any(|slot| slot.previous != 0);
        // A change at the very end of a window prolongs it: the flows that were remembered stay.
        let is_over = !changes && began.is_some_and(|until| *until <= self.now);
        let serves = |id: u32| id != 0 && alive.contains(&id) && !window.is_zero() && !is_over;
        let slots: Vec<Slot> = want
            .into_iter()
            .zip(held)
            .map(|(want, held)| {
                let previous = if serves(held.previous) {
                    held.previous
                } else if want != held.current && serves(held.current) {
                    held.current
                } else if held.previous != 0 && serves(want) {
                    // Flows may be remembered that began with a third backend: the mark stays.
                    want
                } else {
                    0
                };
                Slot {
                    current: want,
                    previous,
                }
            })
            .collect();
        let is_moving = slots.iter().any(|slot| slot.previous != 0);
        if was_moving && !is_moving {
            self.forgotten.extend(draft.services.iter().map(key));
        }
        let until = match began {
            Some(until) if !changes => *until,
            Some(_) | None => self.now + window,
        };
        Home {
            ring: place,
            services: draft.services,
            slots,
            until: is_moving.then_some(until),
            group: draft.group,
        }
    }

    /// Joins homes of one group that are steady, and so have equal slots, in the first place.
    fn join_equal(&mut self) {
        let mut first = BTreeMap::<usize, usize>::new();
        let mut joined = Vec::<Home>::new();
        let mut homes = std::mem::take(&mut self.settled);
        homes.sort_by_key(|home| (!self.actual.rings.contains_key(&home.ring), home.ring));
        for home in homes {
            match first.get(&home.group) {
                Some(place) if home.until.is_none() => {
                    joined[*place].services.extend(home.services);
                }
                Some(_) | None => {
                    if home.until.is_none() {
                        first.insert(home.group, joined.len());
                    }
                    joined.push(home);
                }
            }
        }
        self.settled = joined;
    }

    /// A home that found no place joins another of its group, or its services have none.
    fn shelter(&mut self, draft: Draft, conditions: &mut Vec<Condition>) {
        let other = self
            .settled
            .iter_mut()
            .find(|home| home.group == draft.group);
        if let Some(home) = other {
            home.services.extend(draft.services);
            return;
        }
        self.again = true;
        for service in &draft.services {
            let object = &self.wanted.desired.services[service].object;
            conditions.push(Condition {
                object: format!("Service {object}"),
                origin: String::new(),
                reason: "NoRoomForRing".to_owned(),
                message: format!(
                    "{service}: no room for another ring of {} slots, so it is not served; lower loadBalancer.ringSlots, or let services share their backends",
                    self.wanted.ring_slots
                ),
            });
        }
    }

    /// What was remembered for a service that leaves a ring in transition has no meaning any more.
    fn forget_leavers(&mut self, continued: &BTreeSet<(ServiceKey, Option<u32>)>) {
        let housed: BTreeSet<ServiceKey> = self
            .settled
            .iter()
            .flat_map(|home| home.services.iter().map(key))
            .collect();
        for (service, row) in self.actual.services.iter().filter(|(_, row)| row.slots > 0) {
            let stays = housed.contains(service) && continued.contains(&(*service, Some(row.ring)));
            let was_moving = self.memory.transitions.contains_key(&row.ring)
                || self
                    .actual
                    .rings
                    .get(&row.ring)
                    .is_some_and(|held| held.iter().any(|slot| slot.previous != 0));
            if !stays && was_moving {
                self.forgotten.insert(*service);
            }
        }
    }
}

const fn steady(current: u32) -> Slot {
    Slot {
        current,
        previous: 0,
    }
}

/// The pages of `RINGS` and which are free. Places that services leave are used by the next plan, when
/// no packet can be on its way through them.
struct Pages {
    used: Vec<bool>,
}

impl Pages {
    fn of(actual: &Actual) -> Self {
        let mut used = vec![false; RING_PAGES as usize];
        for row in actual.services.values().filter(|row| row.slots > 0) {
            let first = row.ring / SLOTS_PER_PAGE;
            let last = row.ring.saturating_add(row.slots - 1) / SLOTS_PER_PAGE;
            for page in first..=last.min(RING_PAGES - 1) {
                used[page as usize] = true;
            }
        }
        Self { used }
    }

    /// Takes the first run of free pages that holds a ring.
    fn take(&mut self, slots: u32) -> Option<u32> {
        let need = slots.div_ceil(SLOTS_PER_PAGE) as usize;
        let start = self
            .used
            .windows(need)
            .position(|run| run.iter().all(|used| !used))?;
        self.used[start..start + need].fill(true);
        Some(start as u32 * SLOTS_PER_PAGE)
    }
}
