//! Which ring serves which services, and what its slots say.
//!
//! A home is a ring of one plan. It keeps the place of a ring that is there, or is given free pages; its
//! slots begin as those of the ring that its services used so far. A ring that grows gets a larger place, where
//! the parts of each slot begin as the slot. One that shrinks is written in the old size until its window has
//! ended, which moves no flow, and gets a smaller place then.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::service::{SLOTS_PER_PAGE, ServiceKey, Slot};
use fairlead_common::tables::RING_PAGES;
use hashbrown::HashSet;

use super::ids::Ids;
use super::{Members, Memory, key};
use crate::cores;
use crate::desired::{BackendAddr, Condition, Frontend};
use crate::plan::maglev::{self, Member};
use crate::plan::{Actual, SlotWrites, Wanted};

/// So many rings are worth threads of their own: of 512 slots they take 0.4 ms (`cargo xtask bench plan`).
const MANY: usize = 64;

/// A ring, its services and its slots.
pub(super) struct Home {
    pub(super) ring: u32,
    services: BTreeSet<Frontend>,
    pub(super) slots: Arc<Vec<Slot>>,
    /// When its transition ends.
    until: Option<Duration>,
    /// Index of its members.
    group: usize,
}

impl Home {
    /// The slots that differ from what the ring's place holds; all of them in a place that no service
    /// uses, since what it holds is not known.
    pub(super) fn changed_slots(&self, actual: &Actual) -> SlotWrites {
        let Some(known) = actual.rings.get(&self.ring) else {
            return SlotWrites::All(Arc::clone(&self.slots));
        };
        let slots = (0..).zip(self.slots.iter().copied());
        let is_other_ring = known.len() != self.slots.len();
        let changed =
            slots.filter(|(offset, slot)| is_other_ring || known[*offset as usize] != *slot);
        SlotWrites::Some(changed.collect())
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
    /// Services for whose rings there was no room.
    pub(super) waiting: BTreeSet<Frontend>,
    /// The backend id of each slot, by group.
    wants: BTreeMap<usize, Rc<[u32]>>,
    rings: BTreeMap<Frontend, (u32, u32)>,
    /// What all services have of the places for rings; looked at where a place is sought.
    all: &'a Actual,
    pages: Option<Pages>,
}

impl<'a> Homes<'a> {
    pub(super) fn new(
        wanted: &'a Wanted<'a>,
        actual: &'a Actual,
        memory: &'a Memory,
        now: Duration,
        all: &'a Actual,
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
            waiting: BTreeSet::new(),
            wants: BTreeMap::new(),
            rings: BTreeMap::new(),
            all,
            pages: None,
        }
    }

    /// Takes a place for a ring.
    fn take(&mut self, slots: usize) -> Option<u32> {
        let pages = self.pages.get_or_insert_with(|| Pages::of(self.all));
        pages.take(slots)
    }

    /// The ring of a service and how many slots it has, when it has one.
    pub(super) fn ring_of(&self, frontend: &Frontend) -> Option<(u32, u32)> {
        self.rings.get(frontend).copied()
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
        members: &BTreeMap<Frontend, Members>,
        ids: &Ids<'_>,
        alive: &HashSet<BackendAddr>,
        conditions: &mut Vec<(Frontend, Condition)>,
    ) {
        let mut groups = BTreeMap::<&[Member], BTreeSet<Frontend>>::new();
        for (frontend, Members { list, .. }) in members {
            if !list.is_empty() {
                groups.entry(list).or_default().insert(*frontend);
            }
        }
        let groups: Vec<_> = groups.into_iter().collect();
        self.want_all(&groups, ids);
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
        let mut homeless = Vec::new();
        for draft in drafts {
            match self.home(draft, &groups, ids, alive, conditions) {
                Ok(home) => self.settled.push(home),
                Err(draft) => homeless.push(draft),
            }
        }
        self.join_equal();
        for draft in homeless {
            self.shelter(draft, conditions);
        }
        for home in &self.settled {
            let ring = (home.ring, home.slots.len() as u32);
            let services = home.services.iter();
            self.rings.extend(services.map(|service| (*service, ring)));
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

    /// Rings of a size that we write, each in pages of its own.
    fn usable_rings(&self) -> BTreeSet<u32> {
        let sizes = self.wanted.ring_sizes;
        let mut end = 0;
        let mut usable = BTreeSet::new();
        for (&ring, held) in &self.actual.rings {
            let slots = held.len() as u32;
            let fits = ring.is_multiple_of(SLOTS_PER_PAGE)
                && ring >= end
                && slots.is_power_of_two()
                && (sizes.least..=sizes.most).contains(&slots)
                && u64::from(ring) + u64::from(slots) <= u64::from(RING_PAGES * SLOTS_PER_PAGE);
            end = end.max(ring.saturating_add(slots));
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
        ids: &Ids<'_>,
    ) -> Vec<Draft> {
        let mut users = BTreeMap::<u32, BTreeMap<usize, BTreeSet<Frontend>>>::new();
        let mut newcomers = BTreeMap::<usize, BTreeSet<Frontend>>::new();
        for (group, (_, services)) in groups.iter().enumerate() {
            for service in services {
                let row = self.actual.services.get(&key(service));
                let ring = row.map(|row| row.ring).filter(|ring| {
                    let slots = self.actual.rings.get(ring).map(|held| held.len() as u32);
                    usable.contains(ring) && slots == row.map(|row| row.slots)
                });
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
        // Not on a ring in transition, whose slots still name backends that were never theirs; `join_equal` joins
        // them with one that is steady.
        drafts.extend(newcomers.into_iter().map(|(group, services)| Draft {
            group,
            services,
            base: None,
            stays: false,
        }));
        drafts
    }

    /// Of several groups on one ring the one that must change it least keeps it.
    fn keeper(
        &mut self,
        ring: u32,
        by_group: &BTreeMap<usize, BTreeSet<Frontend>>,
        groups: &[(&[Member], BTreeSet<Frontend>)],
        ids: &Ids<'_>,
    ) -> Option<usize> {
        if by_group.len() == 1 {
            return by_group.keys().next().copied();
        }
        let held = self.actual.rings.get(&ring)?;
        by_group
            .keys()
            .map(|group| {
                let want = self.want(*group, groups[*group].0, ids);
                let slots = want.len().max(held.len());
                let differs = |slot: &usize| {
                    part_of(&want, slots, *slot) != part_of(held, slots, *slot).current
                };
                // A ring that grows leaves its place.
                let grows = want.len() > held.len();
                (grows, (0..slots).filter(differs).count(), *group)
            })
            .min()
            .map(|(.., group)| group)
    }

    /// Many rings at once: each is worked out for itself, so every core takes a share.
    fn want_all(&mut self, groups: &[(&[Member], BTreeSet<Frontend>)], ids: &Ids<'_>) {
        if groups.len() < MANY {
            return;
        }
        let sizes = self.wanted.ring_sizes;
        let rings = cores::each(groups, MANY, |(members, _)| {
            named(&maglev::ring(members, sizes), members, ids)
        });
        self.wants = rings.into_iter().map(Rc::from).enumerate().collect();
    }

    /// The backend id of each slot.
    fn want(&mut self, group: usize, members: &[Member], ids: &Ids<'_>) -> Rc<[u32]> {
        let sizes = self.wanted.ring_sizes;
        let make = || named(&maglev::ring(members, sizes), members, ids).into();
        Rc::clone(self.wants.entry(group).or_insert_with(make))
    }

    /// Finds the place of a home, and computes its slots and its transition.
    fn home(
        &mut self,
        draft: Draft,
        groups: &[(&[Member], BTreeSet<Frontend>)],
        ids: &Ids<'_>,
        alive: &HashSet<BackendAddr>,
        conditions: &mut Vec<(Frontend, Condition)>,
    ) -> Result<Home, Draft> {
        let is_alive = |id: u32| ids.is_among(id, alive);
        let members = groups[draft.group].0;
        let want = self.want(draft.group, members, ids);
        let base = draft.base.and_then(|base| {
            let held = self.actual.rings.get(&base)?;
            Some((base, held))
        });
        let Some((base, held)) = base else {
            let Some(ring) = self.take(want.len()) else {
                return Err(draft);
            };
            return Ok(Home {
                ring,
                services: draft.services,
                slots: Arc::new(want.iter().copied().map(steady).collect()),
                until: None,
                group: draft.group,
            });
        };
        let mut course = self.course(base, held, &want, is_alive);
        let mut ring = Some(base).filter(|_| draft.stays && course.slots.len() == held.len());
        if ring.is_none() {
            ring = self.take(course.slots.len());
        }
        if ring.is_none() && draft.stays {
            // Without a place of its size it goes on where it is.
            ring = Some(base);
            self.again = true;
            if course.slots.len() > held.len() {
                let sizes = maglev::Sizes {
                    most: held.len() as u32,
                    ..self.wanted.ring_sizes
                };
                let coarse = named(&maglev::ring(members, sizes), members, ids);
                course = self.course(base, held, &coarse, is_alive);
                self.no_room(
                    &draft,
                    want.len(),
                    "so it has a smaller one than on other nodes",
                    conditions,
                );
            }
            course.slots = (0..held.len())
                .map(|slot| part_of(&course.slots, held.len(), slot))
                .collect();
        }
        let Some(ring) = ring else {
            return Err(draft);
        };
        if course.has_ended {
            self.forgotten.extend(draft.services.iter().map(key));
        }
        Ok(Home {
            ring,
            services: draft.services,
            slots: Arc::new(course.slots),
            until: course.until,
            group: draft.group,
        })
    }

    /// What becomes of the slots that are held when `want` is wanted.
    fn course(
        &self,
        base: u32,
        held: &[Slot],
        want: &[u32],
        is_alive: impl Fn(u32) -> bool,
    ) -> Course {
        let began = self.memory.transitions.get(&base);
        let window = self.wanted.drain_window;
        let length = want.len().max(held.len());
        let pairs =
            || (0..length).map(|slot| (part_of(want, length, slot), part_of(held, length, slot)));
        let changes = pairs().any(|(want, held)| want != held.current);
        let was_moving = began.is_some() || held.iter().any(|slot| slot.previous != 0);
        // A change at the very end of a window prolongs it: the flows that were remembered stay.
        let is_over = !changes && began.is_some_and(|until| *until <= self.now);
        let serves = |id: u32| id != 0 && !window.is_zero() && !is_over && is_alive(id);
        let slots: Vec<Slot> = pairs()
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
        if slots.iter().all(|slot| slot.previous == 0) {
            return Course {
                slots: want.iter().copied().map(steady).collect(),
                until: None,
                has_ended: was_moving,
            };
        }
        let until = match began {
            Some(until) if !changes => *until,
            Some(_) | None => self.now + window,
        };
        Course {
            slots,
            until: Some(until),
            has_ended: false,
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
    fn shelter(&mut self, draft: Draft, conditions: &mut Vec<(Frontend, Condition)>) {
        let other = self
            .settled
            .iter_mut()
            .find(|home| home.group == draft.group);
        if let Some(home) = other {
            home.services.extend(draft.services);
            return;
        }
        self.again = true;
        let slots = self.wants.get(&draft.group).map_or(0, |want| want.len());
        self.no_room(&draft, slots, "so it is not served", conditions);
    }

    fn no_room(
        &mut self,
        draft: &Draft,
        slots: usize,
        consequence: &str,
        conditions: &mut Vec<(Frontend, Condition)>,
    ) {
        for service in &draft.services {
            let object = &self.wanted.desired.services[service].object;
            let condition = Condition {
                object: format!("Service {object}"),
                origin: String::new(),
                reason: "NoRoomForRing".to_owned(),
                message: format!(
                    "{service}: no room for another ring of {slots} slots, {consequence}; remove services, or let some have equal backends and share a ring"
                ),
            };
            self.waiting.insert(*service);
            conditions.push((*service, condition));
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

/// Slots and how long they are in transition.
struct Course {
    slots: Vec<Slot>,
    /// When its transition ends.
    until: Option<Duration>,
    /// Whether a transition is over.
    has_ended: bool,
}

/// What a ring says of slot `slot` of `slots`, whatever its own size.
fn part_of<T: Copy>(ring: &[T], slots: usize, slot: usize) -> T {
    ring[slot * ring.len() / slots]
}

/// A ring of members as one of ids.
fn named(ring: &[u32], members: &[Member], ids: &Ids<'_>) -> Vec<u32> {
    let ids: Vec<u32> = members.iter().map(|(at, _)| ids.id(*at)).collect();
    ring.iter().map(|member| ids[*member as usize]).collect()
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
    /// Where the search for so many pages goes on: before it there are none.
    from: BTreeMap<usize, usize>,
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
        Self {
            used,
            from: BTreeMap::new(),
        }
    }

    /// Takes the first run of free pages that holds a ring.
    fn take(&mut self, slots: usize) -> Option<u32> {
        let need = slots.div_ceil(SLOTS_PER_PAGE as usize);
        let from = self.from.entry(need).or_default();
        let mut runs = self.used[*from..].windows(need);
        let start = *from + runs.position(|run| run.iter().all(|used| !used))?;
        *from = start;
        self.used[start..start + need].fill(true);
        Some(start as u32 * SLOTS_PER_PAGE)
    }
}
