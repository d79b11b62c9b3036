use std::net::IpAddr;
use std::sync::Arc;

use fairlead_common::addr::Proto;
use fairlead_common::route::node_flags;
use fairlead_common::service::{SLOTS_PER_PAGE, Slot};

mod limits;
mod sets;

use imbl::OrdMap;

use super::*;
use crate::desired::{Backend, Desired, Home, ObjectName};
use crate::plan::maglev::Sizes;
use crate::plan::{Host, Plan};

const WINDOW: Duration = Duration::from_mins(1);
const T0: Duration = Duration::from_secs(1000);

fn at(last: u8) -> BackendAddr {
    BackendAddr {
        addr: IpAddr::from([10, 0, 0, last]),
        port: 80,
    }
}

fn frontend(last: u8) -> Frontend {
    Frontend {
        addr: IpAddr::from([192, 0, 2, last]),
        port: 80,
        proto: Proto::TCP,
        scope: Scope::Outside,
    }
}

const READY: Backend = Backend {
    ready: true,
    serving: true,
    weight: 1,
    home: Home::Bare,
};

const DRAINING: Backend = Backend {
    ready: false,
    serving: true,
    weight: 1,
    home: Home::Bare,
};

/// Tables that carry out what is planned, and what the next plan must know.
struct Node {
    desired: Desired,
    reach: OrdMap<IpAddr, Reach>,
    ring_sizes: Sizes,
    actual: Actual,
    memory: Memory,
}

impl Node {
    /// With rings of one size.
    fn new(slots: u32) -> Self {
        Self::with_rings(Sizes {
            least: slots,
            most: slots,
            each: 1,
        })
    }

    fn with_rings(ring_sizes: Sizes) -> Self {
        Self {
            desired: Desired::default(),
            reach: (0..=255).map(|n| (at(n).addr, Reach::OnLink)).collect(),
            ring_sizes,
            actual: Actual::default(),
            memory: Memory::default(),
        }
    }

    fn with(mut self, service: u8, backends: &[(u8, Backend)]) -> Self {
        self.set(service, backends);
        self
    }

    fn set(&mut self, service: u8, backends: &[(u8, Backend)]) {
        let service_object = Service {
            object: ObjectName {
                namespace: "default".to_owned(),
                name: format!("s{service}"),
            },
            backends: Arc::new(
                backends
                    .iter()
                    .map(|(n, backend)| (at(*n), *backend))
                    .collect(),
            ),
            ..Service::default()
        };
        self.desired
            .services
            .insert(frontend(service), service_object.into());
    }

    fn plan(&self, now: Duration) -> Plan {
        let wanted = Wanted {
            desired: &self.desired,
            reach: &self.reach,
            ways: &OrdMap::new(),
            host: &Host::default(),
            ring_sizes: self.ring_sizes,
            drain_window: WINDOW,
        };
        crate::plan::plan(&wanted, &self.actual, &self.memory, now)
    }

    /// Plans, carries out, and gives the plan.
    fn settle(&mut self, now: Duration) -> Plan {
        let plan = self.plan(now);
        self.actual = plan.tables.clone();
        self.memory = plan.memory.clone();
        plan
    }

    fn row(&self, service: u8) -> rows::Service {
        self.actual.services[&key(&frontend(service))]
    }

    fn ring(&self, service: u8) -> &[Slot] {
        &self.actual.rings[&self.row(service).ring]
    }

    fn id(&self, backend: u8) -> u32 {
        let found = self
            .actual
            .backends
            .iter()
            .find(|(_, row)| address(row) == at(backend));
        *found.unwrap().0
    }
}

/// How many slots a plan writes.
fn written(plan: &Plan) -> usize {
    let slots = plan.steps.iter().map(|step| {
        if let Step::PutSlots { slots, .. } = step {
            slots.len()
        } else {
            0
        }
    });
    slots.sum()
}

fn forgotten(plan: &Plan) -> Option<&Step> {
    plan.steps
        .iter()
        .find(|step| matches!(step, Step::ForgetFlows { .. }))
}

/// The one condition of a plan.
fn only(plan: &Plan) -> (&str, &str, &str) {
    let [condition] = &plan.conditions[..] else {
        panic!("{:?}", plan.conditions);
    };
    (&condition.object, &condition.reason, &condition.message)
}

#[test]
fn a_backend_on_the_link_and_one_behind_a_router_have_their_ways() {
    let mut node = Node::new(16).with(1, &[(1, READY), (2, READY)]);
    node.reach.insert(at(2).addr, Reach::Routed);

    node.settle(T0);

    assert_eq!(node.actual.backends[&node.id(1)].forward, forward::L2);
    assert_eq!(
        node.actual.backends[&node.id(2)].forward,
        forward::ENCAPSULATE
    );
    assert_eq!(
        node.actual.backends.keys().copied().collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(node.row(1).id, 1);
}

#[test]
fn the_rings_of_many_services_are_those_that_each_has_alone() {
    let backends = |service: u8| [(2 * service, READY), (2 * service + 1, READY)];
    let named = |node: &Node, service: u8| -> Vec<BackendAddr> {
        let slots = node.ring(service).iter();
        let rows = slots.map(|slot| &node.actual.backends[&slot.current]);
        rows.map(address).collect()
    };
    let mut all = Node::new(64);
    for service in 0..100 {
        all.set(service, &backends(service));
    }
    all.settle(T0);

    for service in 0..100 {
        let mut alone = Node::new(64).with(service, &backends(service));
        alone.settle(T0);
        assert_eq!(named(&all, service), named(&alone, service), "{service}");
    }
}

#[test]
fn a_host_that_answers_this_node_is_listened_to_before_it_is_asked() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    let service = node.desired.services.get_mut(&frontend(1));
    Arc::make_mut(service.unwrap()).forwarding = Forwarding::Nat;

    let plan = node.settle(T0);

    let row = node.actual.backends[&node.id(1)];
    assert_eq!(row.forward, forward::NAT);
    let serving = rows::ServingKey::new(row.addr, row.port);
    assert_eq!(node.actual.serving.iter().collect::<Vec<_>>(), [&serving]);
    let flags = node.actual.node.map(|row| row.flags);
    assert_eq!(flags, Some(node_flags::ANSWERS_RETURN));
    let place = |wanted: fn(&Step) -> bool| plan.steps.iter().position(wanted);
    let listens = place(|step| matches!(step, Step::PutNode(_)));
    assert!(listens < place(|step| matches!(step, Step::PutBackend(..))));
}

#[test]
fn services_with_equal_backends_share_a_ring() {
    let mut node = Node::new(16)
        .with(1, &[(1, READY), (2, READY)])
        .with(2, &[(1, READY), (2, READY)])
        .with(3, &[(1, READY)]);

    node.settle(T0);

    assert_eq!(node.row(1).ring, node.row(2).ring);
    assert_ne!(node.row(1).ring, node.row(3).ring);
    assert_eq!(
        node.actual.rings.keys().copied().collect::<Vec<_>>(),
        [0, SLOTS_PER_PAGE]
    );
}

#[test]
fn a_new_service_shares_no_ring_whose_slots_name_backends_of_others() {
    let mut node = Node::new(16).with(1, &[(1, READY), (2, READY)]);
    node.settle(T0);
    node.set(1, &[(1, DRAINING), (2, READY), (3, READY)]);
    node.set(2, &[(2, READY), (3, READY)]);

    node.settle(T0 + Duration::from_secs(1));

    assert!(node.ring(1).iter().any(|slot| slot.previous == node.id(1)));
    assert!(node.ring(2).iter().all(|slot| slot.previous == 0));

    node.settle(T0 + Duration::from_secs(61));
    assert_eq!(node.row(1).ring, node.row(2).ring, "equal and steady");
}

#[test]
fn a_backend_that_drains_keeps_its_flows_for_the_window_and_then_goes() {
    let mut node = Node::new(256).with(1, &[(1, READY), (2, READY)]);
    node.settle(T0);
    let drained = node.id(1);

    node.set(1, &[(1, DRAINING), (2, READY)]);
    let plan = node.settle(T0);
    assert_eq!(plan.wake, Some(T0 + WINDOW));
    let moving = node
        .ring(1)
        .iter()
        .filter(|slot| slot.previous != 0)
        .count();
    assert_eq!(written(&plan), moving, "only what changes is written");
    assert!(node.ring(1).iter().all(|slot| slot.current == node.id(2)));
    assert!(
        node.ring(1)
            .iter()
            .all(|slot| [0, drained].contains(&slot.previous))
    );

    let plan = node.settle(T0 + WINDOW);
    assert!(node.ring(1).iter().all(|slot| slot.previous == 0));
    assert_eq!(
        forgotten(&plan),
        Some(&Step::ForgetFlows {
            services: [key(&frontend(1))].into(),
            backends: BTreeSet::new(),
        })
    );
    // No slot names it any more; it stays for those that flows may remember, and then it goes.
    assert!(node.actual.backends.contains_key(&drained));
    assert_eq!(plan.wake, Some(T0 + WINDOW * 2));
    let plan = node.settle(T0 + WINDOW * 2);
    assert_eq!(
        plan.steps,
        [
            Step::ForgetFlows {
                services: BTreeSet::new(),
                backends: [drained].into(),
            },
            Step::RemoveBackend(drained),
        ]
    );
    assert_eq!(plan.wake, None);
}

#[test]
fn a_backend_that_died_leaves_no_mark() {
    let mut node = Node::new(256).with(1, &[(1, READY), (2, READY)]);
    node.settle(T0);

    node.set(1, &[(2, READY)]);
    node.settle(T0);

    assert!(node.ring(1).iter().all(|slot| slot.previous == 0));
    assert_eq!(
        node.actual.backends[&node.id(1)].flags,
        0,
        "flows leave it at once"
    );
}

#[test]
fn a_second_change_keeps_the_backend_that_serves_the_old_flows() {
    let mut node = Node::new(256).with(1, &[(1, READY)]);
    node.settle(T0);
    let first = node.id(1);

    node.set(1, &[(1, DRAINING), (2, READY)]);
    node.settle(T0);
    node.set(1, &[(1, DRAINING), (2, DRAINING), (3, READY)]);
    let plan = node.settle(T0 + Duration::from_secs(30));

    let third = node.id(3);
    assert!(
        node.ring(1)
            .iter()
            .all(|slot| (slot.current, slot.previous) == (third, first))
    );
    assert_eq!(
        node.actual.backends[&node.id(2)].flags,
        flags::ALIVE,
        "flows remember it"
    );
    assert_eq!(plan.memory.transitions[&0], T0 + Duration::from_secs(90));
}

#[test]
fn planning_again_does_not_prolong_a_window() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    node.settle(T0);
    node.set(1, &[(1, DRAINING), (2, READY)]);
    node.settle(T0);

    let plan = node.settle(T0 + Duration::from_secs(59));

    assert_eq!(plan.steps, []);
    assert_eq!(plan.memory.transitions[&0], T0 + WINDOW);
}

#[test]
fn a_change_at_the_end_of_a_window_prolongs_it() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    node.settle(T0);
    let first = node.id(1);
    node.set(1, &[(1, DRAINING), (2, READY)]);
    node.settle(T0);

    node.set(1, &[(1, DRAINING), (2, DRAINING), (3, READY)]);
    let plan = node.settle(T0 + WINDOW);

    assert!(node.ring(1).iter().all(|slot| slot.previous == first));
    assert_eq!(plan.memory.transitions[&0], T0 + WINDOW * 2);
    assert_eq!(forgotten(&plan), None);
}

#[test]
fn after_a_restart_windows_that_are_found_begin_anew() {
    let mut node = Node::new(16).with(1, &[(1, READY)]).with(2, &[(7, READY)]);
    node.settle(T0);
    node.set(1, &[(1, DRAINING), (2, READY)]);
    node.set(2, &[(8, READY)]);
    node.settle(T0);
    let retired = node.id(7);

    node.memory = Memory::default();
    let restart = T0 + Duration::from_secs(59);
    let plan = node.settle(restart);

    assert_eq!(plan.steps, []);
    assert_eq!(plan.memory.transitions[&0], restart + WINDOW);
    assert_eq!(plan.memory.retiring, [(retired, restart + WINDOW)].into());
}

#[test]
fn an_id_is_not_used_again_while_flows_may_name_it() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    node.settle(T0);
    let gone = node.id(1);
    node.set(1, &[(2, READY)]);
    node.settle(T0);
    // Its row was lost; its id is as dangerous as before.
    node.actual.backends.remove(&gone);

    node.set(1, &[(2, READY), (3, READY)]);
    node.settle(T0 + Duration::from_secs(1));
    assert_ne!(node.id(3), gone);

    node.set(1, &[(2, READY), (3, READY), (4, READY)]);
    let plan = node.settle(T0 + WINDOW);
    assert!(forgotten(&plan).is_some());
    assert_ne!(
        node.id(4),
        gone,
        "forgotten in this plan, free for the next"
    );
    node.set(1, &[(2, READY), (3, READY), (4, READY), (5, READY)]);
    node.settle(T0 + WINDOW);
    assert_eq!(node.id(5), gone);
}

#[test]
fn a_backend_that_comes_back_has_its_id() {
    let mut node = Node::new(16).with(1, &[(1, READY), (2, READY)]);
    node.settle(T0);
    let id = node.id(1);
    node.set(1, &[(2, READY)]);
    node.settle(T0);

    node.set(1, &[(1, READY), (2, READY)]);
    let plan = node.settle(T0 + Duration::from_secs(1));

    assert_eq!(node.id(1), id);
    assert!(plan.memory.retiring.is_empty());
}

#[test]
fn a_service_that_differs_leaves_a_shared_ring_with_its_flows() {
    let both = [(1, READY), (2, READY)];
    let mut node = Node::new(256).with(1, &both).with(2, &both);
    node.settle(T0);
    let shared = node.ring(1).to_vec();

    node.set(2, &[(1, DRAINING), (2, READY)]);
    let plan = node.settle(T0);

    assert_eq!(node.ring(1), shared, "the other one is not touched");
    for (now, before) in node.ring(2).iter().zip(&shared) {
        assert_eq!(now.current, node.id(2));
        let kept = if before.current == now.current {
            0
        } else {
            before.current
        };
        assert_eq!(now.previous, kept);
    }
    // Equal again: they share a ring when the windows have ended.
    node.set(2, &both);
    node.settle(T0 + Duration::from_secs(1));
    assert_ne!(node.row(1).ring, node.row(2).ring);
    node.settle(plan.wake.unwrap() + WINDOW);
    assert_eq!(node.row(1).ring, node.row(2).ring);
}

#[test]
fn a_last_backend_that_drains_keeps_the_ring() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    node.settle(T0);

    node.set(1, &[(1, DRAINING)]);
    let plan = node.settle(T0);

    assert_eq!(node.row(1).slots, 16);
    assert_eq!(plan.programmed[&frontend(1)], 0, "but nobody is ready");
}

#[test]
fn a_service_without_a_backend_keeps_a_row_without_slots() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    let plan = node.settle(T0);
    assert_eq!(plan.programmed[&frontend(1)], 1);
    let id = node.row(1).id;

    node.set(1, &[]);
    let plan = node.settle(T0);

    assert_eq!(
        node.row(1),
        rows::Service {
            id,
            ..rows::Service::default()
        }
    );
    assert!(plan.programmed.is_empty());
}

#[test]
fn a_backend_out_of_reach_is_left_out_and_named() {
    let mut node = Node::new(16).with(1, &[(1, READY), (2, READY)]);
    node.reach.insert(at(1).addr, Reach::Unreachable);

    let plan = node.settle(T0);

    assert!(node.ring(1).iter().all(|slot| slot.current == node.id(2)));
    assert_eq!(
        only(&plan),
        (
            "Service default/s1",
            "BackendUnreachable",
            "192.0.2.1:80/tcp: no route leads to 10.0.0.1:80; left out until there is one"
        )
    );
}

#[test]
fn a_way_that_changes_rewrites_one_row() {
    let mut node = Node::new(16).with(1, &[(1, READY), (2, READY)]);
    node.settle(T0);

    node.reach.insert(at(1).addr, Reach::Routed);
    let plan = node.settle(T0);

    assert_eq!(plan.steps.len(), 1);
    assert_eq!(
        node.actual.backends[&node.id(1)].forward,
        forward::ENCAPSULATE
    );
}

#[test]
fn a_ring_that_grows_and_one_that_shrinks_keep_every_flow_for_the_window() {
    let mut node = Node::with_rings(Sizes {
        least: 16,
        most: 1024,
        each: 16,
    })
    .with(1, &[(1, READY)])
    .with(2, &[(9, READY)]);
    node.settle(T0);
    let (first, place) = (node.id(1), node.row(1).ring);
    assert_eq!(node.row(1).slots, 16);

    // Grows: the parts of every slot begin as the slot.
    node.set(1, &[(1, READY), (2, READY)]);
    let plan = node.settle(T0);
    assert_eq!(node.row(1).slots, 32);
    assert_ne!(
        node.row(1).ring,
        place,
        "packets may be on their way through the old one"
    );
    for slot in node.ring(1) {
        let stays = slot.current == first;
        assert_eq!(slot.previous, if stays { 0 } else { first });
    }
    let grown: Vec<u32> = node.ring(1).iter().map(|slot| slot.current).collect();
    assert_eq!(plan.wake, Some(T0 + WINDOW));
    node.settle(T0 + WINDOW);

    // Shrinks: in its old size while it moves.
    node.set(1, &[(1, READY), (2, DRAINING)]);
    node.settle(T0 + WINDOW);
    assert_eq!(node.row(1).slots, 32);
    for (slot, before) in node.ring(1).iter().zip(&grown) {
        assert_eq!(slot.current, first);
        assert_eq!(slot.previous, if *before == first { 0 } else { *before });
    }
    let plan = node.settle(T0 + WINDOW * 2);
    assert_eq!(node.row(1).slots, 16);
    assert!(forgotten(&plan).is_some());
    assert!(
        node.ring(1)
            .iter()
            .all(|slot| (slot.current, slot.previous) == (first, 0))
    );
}
