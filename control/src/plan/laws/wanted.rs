//! Law 1: what the tables must say once a plan was carried out.

use super::*;
use crate::desired::AddressKind;

impl Story {
    /// Law 1: the tables say what is wanted.
    pub(super) fn is_wanted(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let tables = &self.tables;
        let keys: Vec<_> = self.world.desired.services.keys().map(key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        prop_assert_eq!(tables.services.keys().copied().collect::<Vec<_>>(), sorted);
        let ids: BTreeSet<_> = tables.services.values().map(|row| row.id).collect();
        prop_assert_eq!(ids.len(), keys.len(), "service ids are distinct");
        prop_assert!(!ids.contains(&0));
        let mut named = BTreeSet::new();
        let mut wanted_ranges = 0;
        for (frontend, service) in &self.world.desired.services {
            let members = self.world.members(service);
            let row = tables.services[&key(frontend)];
            let slots = SIZES.of(&members);
            let moves = plan.memory.transitions.contains_key(&row.ring);
            match members.is_empty() {
                true => prop_assert_eq!(row.slots, 0),
                false if moves => prop_assert!(row.slots >= slots && row.slots.is_power_of_two()),
                false => prop_assert_eq!(row.slots, slots, "as small as may be"),
            }
            let (with_ranges, with_affinity) =
                (service.source_ranges.is_some(), service.affinity.is_some());
            let has = |flag| row.flags & flag != 0;
            prop_assert_eq!(has(service_flags::SOURCE_RANGES), with_ranges);
            prop_assert_eq!(has(service_flags::AFFINITY), with_affinity);
            prop_assert_eq!(row.affinity_s, if with_affinity { 10800 } else { 0 });
            wanted_ranges += service.source_ranges.as_ref().map_or(0, BTreeSet::len);
            for source in SOURCES.map(source) {
                let ranges = service.source_ranges.as_ref();
                let admits = ranges.is_none_or(|ranges| ranges.contains(&source));
                prop_assert_eq!(tables.admits(key(frontend), source), admits);
            }
            prop_assert_eq!(plan.programmed.contains_key(frontend), !members.is_empty());
            let ring = maglev::ring(&members, SIZES);
            let parts = (row.slots as usize).checked_div(ring.len()).unwrap_or(1);
            let ring = ring.into_iter().flat_map(|member| vec![member; parts]);
            for (slot, member) in tables.ring(&row).into_iter().zip(ring) {
                named.extend([slot.current, slot.previous]);
                let (backend, at) = tables.backend(slot.current).unwrap();
                prop_assert_eq!(at, members[member as usize].0);
                prop_assert_ne!(backend.flags & flags::ALIVE, 0);
                let reach = self.world.reach[&at.addr];
                let by_stack = match reach {
                    Reach::Local => true,
                    Reach::ByStack => self.world.is_here(at),
                    Reach::OnLink | Reach::Routed | Reach::Unreachable => false,
                };
                prop_assert_eq!(backend.flags & flags::STACK != 0, by_stack);
                prop_assert_eq!(backend.forward, self.world.forward(at));
                if slot.previous != 0 {
                    let (previous, _) = tables.backend(slot.previous).unwrap();
                    prop_assert_ne!(
                        previous.flags & flags::ALIVE,
                        0,
                        "a dead previous is not kept"
                    );
                    prop_assert!(plan.memory.transitions.contains_key(&row.ring));
                }
            }
        }
        named.extend(self.arrivals_are_wanted()?);
        for id in tables.backends.keys() {
            let retires = plan.memory.retiring.contains_key(id);
            prop_assert_ne!(
                named.contains(id),
                retires,
                "backend {} is named or retires",
                id
            );
        }
        // Those with nothing but node ports are the host's own.
        let node_ports = BTreeSet::from([AddressKind::Node]);
        let services = self.world.desired.services.iter();
        let addresses: BTreeSet<_> = services
            .filter(|(_, service)| service.address_kinds != node_ports)
            .map(|(frontend, _)| key(frontend).addr)
            .collect();
        prop_assert!(tables.addresses.keys().eq(&addresses));
        let mut served = tables.services.keys();
        prop_assert!(served.all(|key| tables.sieve.passes(key.addr)));
        prop_assert_eq!(tables.source_ranges.len(), wanted_ranges);
        self.next_hops_are_wanted()?;
        let serving: BTreeSet<_> = tables
            .backends
            .values()
            .filter(|row| row.forward == forward::HERE)
            .map(|row| ServingKey::new(row.addr, row.port))
            .collect();
        prop_assert_eq!(&tables.serving, &serving);
        let devices: Vec<_> = tables
            .devices
            .values()
            .map(|row| (row.ifindex, row.mac))
            .collect();
        prop_assert_eq!(
            devices,
            self.world
                .host
                .devices
                .clone()
                .into_iter()
                .collect::<Vec<_>>()
        );
        prop_assert!(tables.node.is_some());
        Ok(())
    }

    /// Law 3, as clients see it: whom a service lets in before and after it lets in at every moment, and whom
    /// it lets in neither before nor after it never does.
    pub(super) fn sources_are_kept_out(&self, before: &World) -> Result<(), TestCaseError> {
        if self.belongs.is_none() {
            // A stranger's row: what was wanted before is not what was there.
            return Ok(());
        }
        for frontend in (0..5).map(frontend) {
            let both = [before, &self.world].map(|world| world.desired.services.get(&frontend));
            let [Some(was), Some(is)] = both else {
                continue;
            };
            for source in SOURCES.map(source) {
                let admits = |service: &desired::Service| {
                    let ranges = service.source_ranges.as_ref();
                    ranges.is_none_or(|ranges| ranges.contains(&source))
                };
                let does = self.tables.admits(key(&frontend), source);
                prop_assert!(admits(was) || admits(is) || !does, "{} gets in", source);
                prop_assert!(
                    !(admits(was) && admits(is)) || does,
                    "{} is kept out",
                    source
                );
            }
        }
        Ok(())
    }
}
