//! `dpctl trace` explains packets as the program treats them, and leaves no trace in the tables.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytemuck::Zeroable as _;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::route::{self, Device};
use fairlead_common::served;
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, NextHop, Service, ServiceKey, ServingKey, Slot, flags, forward,
    next_hop_flags,
};
use fairlead_common::tables::{BackendStats, Flows, ServiceDrops, ServiceStats};
use fairlead_control::api::types::{Trace, TraceQuestion};
use fairlead_control::config::document::XdpMode;
use fairlead_control::dataplane::apply::{self, KernelStore};
use fairlead_control::dataplane::attach::Hook;
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::rehearse::Rehearsal;
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::plan::{SlotWrites, Step, Store as _};
use fairlead_control::view::State;
use fairlead_control::view::trace::Tracer;
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::place::Place;
use fairlead_tests::root;
use nix::net::if_::if_nametoindex;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Slots of each ring.
const SLOTS: u32 = 251;
/// How many services, backends and clients there are.
const SERVICES: u8 = 6;
const BACKENDS: u32 = 8;
const CLIENTS: u8 = 5;
/// A backend of the node itself.
const OWN: &str = "10.1.0.99";

/// Runs `work` in a namespace where `eth0` has the program.
fn on_a_node(work: impl FnOnce(&Place) + Send) {
    if !root::is_root() {
        return;
    }
    let (near, far) = (
        Netns::unique("fl-tra").unwrap(),
        Netns::unique("fl-tra").unwrap(),
    );
    veth((&near, "eth0"), (&far, "eth0")).unwrap();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    near.ip(&format!("link set eth0 address {mac}")).unwrap();
    let place = Place::make().unwrap();
    near.enter(|| {
        let loaded = place.load().unwrap();
        loaded
            .attach(Hook::XdpIngress, "eth0", XdpMode::Auto)
            .unwrap();
        work(&place);
    })
    .unwrap();
}

fn service_addr(number: u8) -> IpAddr {
    if number.is_multiple_of(2) {
        IpAddr::from([192, 0, 2, number])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)])
    }
}

fn service_key(number: u8) -> ServiceKey {
    let proto = if number < 4 { Proto::TCP } else { Proto::UDP };
    ServiceKey::new(Addr::new(service_addr(number)), Port::new(80), proto)
}

fn client(number: u8, is_v4: bool) -> IpAddr {
    if is_v4 {
        IpAddr::from([203, 0, 113, number])
    } else {
        IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(number)])
    }
}

/// Tables in which every case occurs: slots that are steady, in transition and empty; backends alive and dead,
/// on the link and behind a router, with and without a next hop; flows that are remembered.
fn fill(pins: &Pins) {
    let ifindex = if_nametoindex("eth0").unwrap();
    let mut node = route::Node::zeroed();
    node.tunnel_v4 = Addr::new("10.1.0.1".parse().unwrap());
    node.tunnel_v6 = Addr::new("fd00:1::1".parse().unwrap());
    let mut steps = vec![
        Step::PutNode(Box::new(node)),
        Step::PutDevice(Device {
            ifindex,
            mac: MAC,
            flags: 0,
            pad: 0,
            mtu: 1500,
        }),
    ];
    for id in 1..=BACKENDS {
        let addr = if id % 2 == 0 {
            format!("10.1.0.{id}")
        } else {
            format!("fd00:1::{id}")
        };
        let addr = Addr::new(addr.parse().unwrap());
        steps.push(Step::PutNextHop(
            id,
            NextHop {
                ifindex,
                source: MAC,
                destination: [2, 0, 0, 0, 1, id as u8],
                addr,
                mtu: 1500,
                flags: if id == 3 { 0 } else { next_hop_flags::RESOLVED },
            },
        ));
        steps.push(Step::PutBackend(
            id,
            Backend {
                addr,
                port: Port::new(80),
                forward: if id < 5 {
                    forward::L2
                } else {
                    forward::ENCAPSULATE
                },
                flags: if id % 4 == 1 { 0 } else { flags::ALIVE },
                next_hop: id,
            },
        ));
    }
    // One of this node's own, which no ring names: other nodes' rings do.
    let own = Addr::new(OWN.parse().unwrap());
    steps.push(Step::PutServing(ServingKey::new(own, Port::new(8080))));
    steps.push(Step::PutBackend(
        BACKENDS + 1,
        Backend {
            addr: own,
            port: Port::new(8080),
            forward: forward::HERE,
            flags: flags::ALIVE,
            next_hop: 1,
        },
    ));
    for number in [0, 2] {
        let row = Arrival {
            backend: BACKENDS + 1,
            service: u32::from(number) + 100,
        };
        steps.push(Step::PutArrival(
            ArrivalKey::new(&service_key(number), own),
            row,
        ));
    }
    for number in 0..SERVICES {
        let slots = (0..SLOTS).map(|offset| {
            let mixed = offset * 7 + u32::from(number);
            let slot = Slot {
                // One slot in nine names nobody.
                current: if mixed % 9 == 0 {
                    0
                } else {
                    mixed % BACKENDS + 1
                },
                previous: if mixed % 2 == 0 {
                    0
                } else {
                    mixed / 3 % BACKENDS + 1
                },
            };
            (offset, slot)
        });
        let ring = u32::from(number) * 512;
        steps.push(Step::PutSlots {
            ring,
            slots: SlotWrites::Some(slots.collect()),
        });
        let row = Service {
            id: u32::from(number) + 100,
            ring,
            // The last one has no backend.
            slots: if number + 1 == SERVICES { 0 } else { SLOTS },
            ..Service::default()
        };
        steps.push(Step::PutService(service_key(number), row));
        let inside = Service {
            id: row.id + 100,
            ..row
        };
        steps.push(Step::PutService(service_key(number).inside(), inside));
        let served = u32::from(row.slots > 0) * served::flags::SERVED;
        steps.push(Step::PutAddress(service_key(number).addr, served));
    }
    let addresses = (0..SERVICES).map(|number| service_key(number).addr);
    steps.push(Step::PutSieve(Box::new(addresses.collect())));
    let mut store = KernelStore::open(pins).unwrap();
    for step in &steps {
        store.apply(step).unwrap();
    }
    apply::set_tx_ports(pins, &BTreeSet::from([ifindex])).unwrap();
    let mut flows: Pinned<Flows> = Pinned::open(pins).unwrap();
    for number in 0..SERVICES {
        for from in 0..CLIENTS {
            let key = service_key(number);
            let src = client(from, key.addr.is_v4());
            let port = Port::new(1000 + u16::from(from));
            let key = FlowKey::new(Addr::new(src), port, key.addr, key.port, key.proto);
            let flow = Flow {
                backend: u32::from(from + number) % BACKENDS + 1,
                last_seen_s: 1,
            };
            flows.set(&key, &flow).unwrap();
        }
    }
}

fn question(src: (IpAddr, u16), dst: (IpAddr, u16), proto: &str) -> TraceQuestion {
    TraceQuestion {
        device: "eth0".to_owned(),
        src: SocketAddr::from(src),
        dst: SocketAddr::from(dst),
        proto: proto.to_owned(),
        flags: "syn".to_owned(),
        ttl: 64,
        size: 0,
        wrapped_by: None,
        wrapped_for: None,
    }
}

fn questions() -> impl Strategy<Value = TraceQuestion> {
    let service = (
        0..SERVICES + 1,
        prop_oneof![9 => Just(80_u16), 1 => Just(81)],
    );
    let source = (0..=CLIENTS, 995_u16..1010);
    let flags = prop_oneof![
        Just("syn"),
        Just("ack"),
        Just("syn,ack"),
        Just("fin,ack"),
        Just("")
    ];
    let ttl = prop_oneof![9 => Just(64_u8), 1 => 0_u8..3];
    let size = prop_oneof![8 => Just(0_u16), 1 => 40_u16..200, 1 => 1400_u16..2000];
    let wrapped_for = prop_oneof![
        5 => Just(None),
        1 => Just(Some(OWN.parse().unwrap())),
        1 => Just(Some(IpAddr::from([10, 1, 0, 98]))),
    ];
    (
        service,
        source,
        any::<bool>(),
        flags,
        ttl,
        size,
        wrapped_for,
    )
        .prop_map(
            |((number, port), (from, src_port), tcp, flags, ttl, size, wrapped_for)| {
                let dst = service_addr(number);
                let proto = if tcp { "tcp" } else { "udp" };
                TraceQuestion {
                    flags: flags.to_owned(),
                    ttl,
                    size,
                    wrapped_by: wrapped_for.map(|_| IpAddr::from([10, 9, 0, 1])),
                    wrapped_for,
                    ..question((client(from, dst.is_ipv4()), src_port), (dst, port), proto)
                }
            },
        )
}

/// Every row of the tables that packets write.
fn written(pins: &Pins) -> impl PartialEq + std::fmt::Debug {
    let flows: Pinned<Flows> = Pinned::open(pins).unwrap();
    let flows: Result<Vec<_>, _> = flows.rows().collect();
    (
        flows.unwrap(),
        Pinned::<ServiceStats>::open(pins)
            .unwrap()
            .counts()
            .unwrap(),
        Pinned::<BackendStats>::open(pins)
            .unwrap()
            .counts()
            .unwrap(),
        Pinned::<ServiceDrops>::open(pins)
            .unwrap()
            .counts()
            .unwrap(),
    )
}

fn state(pins: &Pins) -> State {
    State {
        actual: Arc::new(apply::observe(pins).unwrap()),
        ..State::default()
    }
}

#[test]
fn the_explanation_agrees_with_the_program_on_any_packet_and_the_tables_stay_as_they_are() {
    on_a_node(|node| {
        fill(&node.pins);
        let state = state(&node.pins);
        let before = written(&node.pins);
        let mut rehearsal = Rehearsal::open(&node.pins, Hook::XdpIngress).unwrap();
        let met = RefCell::new(BTreeSet::new());
        let tracer = RefCell::new(Tracer {
            state: &state,
            hook: Hook::XdpIngress,
            rehearsal: &mut rehearsal,
        });

        TestRunner::new(Config {
            failure_persistence: None,
            ..Config::with_cases(600)
        })
        .run(&questions(), |question| {
            let trace = tracer.borrow_mut().trace(&question).unwrap();
            prop_assert_eq!(&trace.disagreement, &None, "{:#?}", trace);
            met.borrow_mut().insert(trace.reason);
            Ok(())
        })
        .unwrap();

        let met = met.into_inner();
        for reason in [
            "service-l2",
            "service-encapsulated",
            "service-no-backend",
            "service-ttl-told",
            "service-too-big-told",
            "service-translated",
        ] {
            assert!(met.contains(reason), "no packet met {reason}: {met:?}");
        }
        assert_eq!(written(&node.pins), before, "a trace is seen by nobody");
    });
}

#[test]
fn the_explanation_agrees_with_the_program_on_any_packet_of_a_pod() {
    on_a_node(|node| {
        fill(&node.pins);
        let state = state(&node.pins);
        let before = written(&node.pins);
        let mut rehearsal = Rehearsal::open(&node.pins, Hook::TcIngress).unwrap();
        let met = RefCell::new(BTreeSet::new());
        let tracer = RefCell::new(Tracer {
            state: &state,
            hook: Hook::TcIngress,
            rehearsal: &mut rehearsal,
        });

        TestRunner::new(Config {
            failure_persistence: None,
            ..Config::with_cases(300)
        })
        .run(&questions(), |question| {
            let question = TraceQuestion {
                wrapped_by: None,
                wrapped_for: None,
                ..question
            };
            let trace = tracer.borrow_mut().trace(&question).unwrap();
            prop_assert_eq!(&trace.disagreement, &None, "{:#?}", trace);
            met.borrow_mut().insert(trace.reason);
            Ok(())
        })
        .unwrap();

        let met = met.into_inner();
        for reason in ["service-l2", "service-encapsulated", "service-no-backend"] {
            assert!(met.contains(reason), "no packet met {reason}: {met:?}");
        }
        assert_eq!(written(&node.pins), before, "a trace is seen by nobody");
    });
}

#[test]
fn a_packet_that_another_node_has_wrapped_is_explained_by_its_choice() {
    on_a_node(|node| {
        fill(&node.pins);
        let state = state(&node.pins);
        let mut rehearsal = Rehearsal::open(&node.pins, Hook::XdpIngress).unwrap();
        let mut tracer = Tracer {
            state: &state,
            hook: Hook::XdpIngress,
            rehearsal: &mut rehearsal,
        };
        let mut asked = question((client(9, true), 1), (service_addr(0), 80), "tcp");
        asked.wrapped_by = Some(IpAddr::from([10, 9, 0, 1]));
        asked.wrapped_for = Some(OWN.parse().unwrap());

        let trace = tracer.trace(&asked).unwrap();

        assert_eq!(trace.reason, "service-translated", "{trace:#?}");
        assert!(
            stage(&trace, "tunnel").starts_with("wrapped by 10.9.0.1, which has chosen 10.1.0.99"),
            "{trace:#?}"
        );
        assert!(
            stage(&trace, "backend").starts_with("10.1.0.99:8080"),
            "{trace:#?}"
        );

        asked.wrapped_for = Some(IpAddr::from([10, 1, 0, 98]));
        let trace = tracer.trace(&asked).unwrap();
        assert!(
            stage(&trace, "tunnel").ends_with("routed or passed as it is"),
            "{trace:#?}"
        );
        asked.wrapped_by = None;
        assert!(tracer.trace(&asked).is_err());
    });
}

#[test]
fn an_explanation_from_other_tables_is_found_to_disagree() {
    on_a_node(|node| {
        fill(&node.pins);
        let mut state = state(&node.pins);
        let actual = Arc::make_mut(&mut state.actual);
        let others = |slots: &Arc<Vec<Slot>>| {
            let mut slots = Vec::clone(slots);
            for slot in &mut slots {
                slot.current = slot.current % BACKENDS + 1;
            }
            Arc::new(slots)
        };
        let rings = actual.rings.iter();
        actual.rings = rings.map(|(at, slots)| (*at, others(slots))).collect();
        let mut rehearsal = Rehearsal::open(&node.pins, Hook::XdpIngress).unwrap();
        let mut tracer = Tracer {
            state: &state,
            hook: Hook::XdpIngress,
            rehearsal: &mut rehearsal,
        };
        let mut traces = (1..100).map(|port| {
            let question = question((client(9, true), port), (service_addr(0), 80), "tcp");
            tracer.trace(&question).unwrap()
        });

        assert!(traces.any(|trace| trace.disagreement.is_some()));
    });
}

fn stage<'a>(trace: &'a Trace, name: &str) -> &'a str {
    let found = trace.stages.iter().find(|stage| stage.name == name);
    &found
        .unwrap_or_else(|| panic!("no stage {name}: {trace:#?}"))
        .text
}

#[test]
fn a_trace_says_every_stage_in_words() {
    on_a_node(|node| {
        fill(&node.pins);
        let state = state(&node.pins);
        let mut rehearsal = Rehearsal::open(&node.pins, Hook::XdpIngress).unwrap();
        let mut tracer = Tracer {
            state: &state,
            hook: Hook::XdpIngress,
            rehearsal: &mut rehearsal,
        };
        let mut trace = |question: &TraceQuestion| tracer.trace(question).unwrap();
        let to = |number| (service_addr(number), 80);
        let ask = |port| question((client(9, true), port), to(0), "tcp");

        let sent = (1..200)
            .map(|port| trace(&ask(port)))
            .find(|trace| trace.reason == "service-l2")
            .unwrap();
        assert!(
            stage(&sent, "device").ends_with("met by xdp_ingress"),
            "{sent:#?}"
        );
        assert!(
            stage(&sent, "service").contains("id 100, with a ring of 251 slots"),
            "{sent:#?}"
        );
        assert!(stage(&sent, "slot").contains(" of 251: "), "{sent:#?}");
        assert!(
            stage(&sent, "way").contains("next hop 10.1.0."),
            "{sent:#?}"
        );
        assert!(
            stage(&sent, "verdict").starts_with("forward: To a service: "),
            "{sent:#?}"
        );
        assert!(sent.result[0].contains("-> 02:00:00:00:01:0"), "{sent:#?}");

        let elsewhere = TraceQuestion {
            dst: SocketAddr::from((service_addr(0), 8080)),
            ..ask(1)
        };
        let elsewhere = trace(&elsewhere);
        assert!(
            stage(&elsewhere, "service").ends_with("there are 80/tcp: does the port differ?"),
            "{elsewhere:#?}"
        );

        let nobody = trace(&question((client(9, false), 1), to(SERVICES - 1), "udp"));
        assert_eq!(
            (nobody.verdict.as_str(), nobody.reason.as_str()),
            ("drop", "service-no-backend")
        );
        assert!(
            stage(&nobody, "service").ends_with("has no backend"),
            "{nobody:#?}"
        );
    });
}
