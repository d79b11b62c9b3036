//! Who chooses a backend by a node's tables: the datapath's own choice on tables in memory, and designs that it is
//! compared with.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_common::addr::Addr;
use fairlead_common::choice;
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::service::{ServiceKey, Slot};
use fairlead_control::desired::BackendAddr;
use fairlead_control::plan::packets::Packets;
use fairlead_control::plan::services::address;
use fairlead_control::plan::{Actual, Plan, Step};

/// The tables of a node and who chooses by them.
pub trait Datapath {
    /// Carries a plan out.
    fn carry_out(&mut self, plan: &Plan);

    /// What the tables hold.
    fn actual(&self) -> &Actual;

    /// Where a packet goes; `None`: nowhere.
    fn send(&mut self, flow: &FlowKey, opens: bool, now_s: u32) -> Option<BackendAddr>;

    /// Whether a flow was forgotten because there was no room for it.
    fn has_forgotten(&self, flow: &FlowKey) -> bool;
}

/// How backends are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// As the datapath does it.
    RingFirst,
    /// A Maglev ring and nothing else.
    RingAlone,
    /// A Maglev ring, and on each node a table of the connections that it has seen, as Katran and Cilium have it.
    TablePerNode,
    /// Ring first, but nothing is remembered: a fault that the law must see.
    Forgetful,
    /// Ring first, but every backend is taken for dead: a fault that the law must see.
    Heartless,
}

/// A node's tables in memory.
pub struct Model {
    design: Design,
    actual: Actual,
    /// `FLOWS`.
    pub flows: BTreeMap<FlowKey, Flow>,
    /// How many flows are remembered.
    capacity: usize,
    forgotten: BTreeSet<FlowKey>,
    /// The table of [`Design::TablePerNode`].
    seen: BTreeMap<FlowKey, BackendAddr>,
}

impl Model {
    pub fn new(design: Design, capacity: usize) -> Self {
        Self {
            design,
            actual: Actual::default(),
            flows: BTreeMap::new(),
            capacity,
            forgotten: BTreeSet::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Forgets the oldest, but not the one that has just been seen: of those that a second does not tell apart it
    /// is the youngest.
    fn make_room(&mut self, seen: &FlowKey) {
        while self.flows.len() > self.capacity {
            let others = self.flows.iter().filter(|(flow, _)| *flow != seen);
            let oldest = others.min_by_key(|(_, known)| known.last_seen_s);
            if let Some((&oldest, _)) = oldest {
                self.flows.remove(&oldest);
                self.forgotten.insert(oldest);
            }
        }
    }
}

/// The service that a packet of a flow from outside is for.
fn service_of(flow: &FlowKey) -> ServiceKey {
    ServiceKey::new(flow.dst, flow.dst_port, flow.proto)
}

impl Datapath for Model {
    fn carry_out(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if let Step::ForgetFlows { services, backends } = step {
                self.flows.retain(|flow, known| {
                    !services.contains(&service_of(flow)) && !backends.contains(&known.backend)
                });
            }
        }
        self.actual.clone_from(&plan.tables);
    }

    fn actual(&self) -> &Actual {
        &self.actual
    }

    fn send(&mut self, flow: &FlowKey, opens: bool, now_s: u32) -> Option<BackendAddr> {
        let row = self.actual.services.get(&service_of(flow))?;
        let mut tables = Tables {
            design: self.design,
            packets: Packets {
                actual: &self.actual,
                flows: &mut self.flows,
                now_s,
            },
        };
        let choice = choice::choose(&mut tables, row, flow, opens).ok()?;
        let at = self.actual.backends.get(&choice.backend).map(address)?;
        self.make_room(flow);
        if self.design != Design::TablePerNode {
            return Some(at);
        }
        let seen = self.seen.entry(*flow).or_insert(at);
        if opens {
            *seen = at;
        }
        Some(*seen)
    }

    fn has_forgotten(&self, flow: &FlowKey) -> bool {
        self.forgotten.contains(flow)
    }
}

/// The tables as a design sees them.
struct Tables<'a> {
    design: Design,
    packets: Packets<'a>,
}

impl choice::Tables for Tables<'_> {
    fn slot(&self, place: u32) -> Option<Slot> {
        let slot = self.packets.slot(place)?;
        Some(match self.design {
            Design::RingAlone | Design::TablePerNode => Slot {
                previous: 0,
                ..slot
            },
            Design::RingFirst | Design::Forgetful | Design::Heartless => slot,
        })
    }

    fn is_alive(&self, backend: u32) -> bool {
        self.design != Design::Heartless && self.packets.is_alive(backend)
    }

    fn admits(&self, service: u32, source: Addr) -> bool {
        self.packets.admits(service, source)
    }

    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.packets.flow(key)
    }

    fn remember(&mut self, key: &FlowKey, flow: &Flow) {
        if self.design != Design::Forgetful {
            self.packets.remember(key, flow);
        }
    }

    fn now_s(&self) -> u32 {
        self.packets.now_s()
    }
}
