//! The tables in the kernel, as plans write them, observers read them and `dpctl maps` shows them.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::nat::{self, NatFlow};
use fairlead_common::route::Device;
use fairlead_common::service::{Backend, Service, ServiceKey, ServingKey, Slot, flags, forward};
use fairlead_common::snat::{self, Binding, EgressPort, State};
use fairlead_common::tables::{self, Flows, NatFlows, SnatFwd, SnatRev, Table as _};
use fairlead_control::dataplane::apply::{self, KernelStore};
use fairlead_control::dataplane::dump;
use fairlead_control::dataplane::kept;
use fairlead_control::dataplane::observe::{self, Counters, Translations};
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::plan::{SlotWrites, Step, Store as _};
use fairlead_tests::kernel::flow;
use fairlead_tests::place::Place;
use fairlead_tests::root::is_root;
use serde_json::json;

/// A place whose tables are there.
fn tables() -> Place {
    let place = Place::make().unwrap();
    place.load().unwrap();
    place
}

fn addr(text: &str) -> Addr {
    Addr::new(text.parse().unwrap())
}

fn service() -> ServiceKey {
    ServiceKey::new(addr("2001:db8::80"), Port::new(80), Proto::TCP)
}

fn steps() -> Vec<Step> {
    let backend = |last| Backend {
        addr: addr(last),
        port: Port::new(80),
        forward: forward::L2,
        flags: flags::ALIVE,
        next_hop: 0,
    };
    let slot = |current| Slot {
        current,
        previous: 0,
    };
    vec![
        Step::PutDevice(Device {
            ifindex: 4097,
            mac: [2, 0, 0, 0, 0, 1],
            flags: 0,
            pad: 0,
            mtu: 1500,
        }),
        Step::PutBackend(1, backend("2001:db8::1")),
        Step::PutBackend(2, backend("10.0.0.2")),
        Step::PutSlots {
            ring: 510,
            slots: SlotWrites::Some(vec![(0, slot(1)), (1, slot(2)), (2, slot(1)), (3, slot(2))]),
        },
        Step::PutService(
            service(),
            Service {
                id: 1,
                ring: 510,
                slots: 4,
                ..Service::default()
            },
        ),
    ]
}

#[test]
fn what_a_plan_writes_is_what_is_read_back() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut store = KernelStore::open(&tables.pins).unwrap();
    assert_eq!(
        store.observe().unwrap(),
        fairlead_control::plan::Actual::default()
    );

    let outcome = apply::run(&steps(), &mut store);

    assert!(outcome.is_complete(), "{:?}", outcome.obstacles);
    let actual = apply::observe(&tables.pins).unwrap();
    assert_eq!(actual.services[&service()].slots, 4);
    assert_eq!(actual.backends.len(), 2);
    let currents: Vec<_> = actual.rings[&510].iter().map(|slot| slot.current).collect();
    assert_eq!(currents, [1, 2, 1, 2]);
    assert_eq!(actual.devices[&1].ifindex, 4097);
    assert_eq!(actual.node, None);

    let outcome = apply::run(
        &[
            Step::RemoveService(service()),
            Step::RemoveService(service()),
            Step::RemoveBackend(1),
            Step::RemoveBackend(2),
            Step::RemoveDevice(1),
        ],
        &mut store,
    );
    assert!(outcome.is_complete(), "{:?}", outcome.obstacles);
    assert_eq!(
        store.observe().unwrap(),
        fairlead_control::plan::Actual::default()
    );
}

#[test]
fn a_ring_beyond_the_table_is_refused_whole_and_its_service_left_out() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut store = KernelStore::open(&tables.pins).unwrap();
    let capacity = tables::RING_PAGES * 512;
    let slot = Slot {
        current: 1,
        previous: 0,
    };
    let ring = capacity - 1;
    let row = Service {
        id: 1,
        ring,
        slots: 2,
        ..Service::default()
    };

    let outcome = apply::run(
        &[
            Step::PutSlots {
                ring,
                slots: SlotWrites::Some(vec![(0, slot), (1, slot)]),
            },
            Step::PutService(service(), row),
        ],
        &mut store,
    );

    assert_eq!(outcome.done, 0);
    assert_eq!(
        outcome.obstacles[0].why,
        format!("slot {capacity} is beyond the {capacity} slots of RINGS")
    );
    assert!(outcome.obstacles[1].left_out);
    assert_eq!(dump::entries(&tables.pins, "RINGS").unwrap(), 0);
}

#[test]
fn of_many_rows_those_after_one_that_is_refused_are_written_too() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut store = KernelStore::open(&tables.pins).unwrap();
    let beyond = tables::Backends::CAPACITY;
    let ids = (1..=5000).chain([beyond]).chain(5001..=9000);
    let row = |id: u32| Backend {
        addr: addr("10.0.0.1"),
        port: Port::new(id as u16),
        forward: forward::L2,
        flags: flags::ALIVE,
        next_hop: 0,
    };
    let steps: Vec<Step> = ids.map(|id| Step::PutBackend(id, row(id))).collect();

    let outcome = apply::run(&steps, &mut store);

    assert_eq!(outcome.done, 9000);
    let [refused] = &outcome.obstacles[..] else {
        panic!("{:?}", outcome.obstacles);
    };
    assert!(!refused.left_out && refused.step.contains(&beyond.to_string()));
    let written = store.observe().unwrap().backends;
    let expected = (1..=9000).map(|id| (id, row(id)));
    assert!(written.into_iter().eq(expected));
}

#[test]
fn only_the_flows_of_the_services_named_are_forgotten() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut flows = Pinned::<Flows>::open(&tables.pins).unwrap();
    let flow = |port, dst_port| {
        FlowKey::new(
            addr("10.0.0.9"),
            Port::new(port),
            service().addr,
            Port::new(dst_port),
            Proto::TCP,
        )
    };
    for port in 1..=1000 {
        flows.set(&flow(port, 80), &Flow::default()).unwrap();
    }
    flows.set(&flow(1, 81), &Flow::default()).unwrap();
    let retired = Flow {
        backend: 7,
        ..Flow::default()
    };
    flows.set(&flow(2, 81), &retired).unwrap();
    let mut store = KernelStore::open(&tables.pins).unwrap();

    let forget = Step::ForgetFlows {
        services: [service()].into(),
        backends: [7].into(),
    };
    let outcome = apply::run(&[forget], &mut store);

    assert!(outcome.is_complete(), "{:?}", outcome.obstacles);
    let left: Vec<_> = flows.rows().map(|row| row.unwrap().0).collect();
    assert_eq!(left, [flow(1, 81)]);
}

#[test]
fn bindings_that_have_outlived_their_time_are_cleared_in_slices() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut outside = Pinned::<SnatRev>::open(&tables.pins).unwrap();
    let mut cache = Pinned::<SnatFwd>::open(&tables.pins).unwrap();
    let now = 10_000;
    for port in 2000..4000_u16 {
        let inside = FlowKey::new(
            addr("10.1.0.5"),
            Port::new(port),
            addr("203.0.113.1"),
            Port::new(53),
            Proto::UDP,
        );
        let key = snat::outside(&inside, addr("198.51.100.1"), Port::new(port));
        let binding = Binding {
            inside: inside.src,
            inside_port: inside.src_port,
            state: State::New as u8,
            // Every other one was silent for longer than the 30 s of an unanswered UDP flow.
            last_seen_s: if port % 2 == 0 { now - 31 } else { now - 29 },
            ..Binding::default()
        };
        outside.set(&key, &binding).unwrap();
        cache
            .set(
                &inside,
                &EgressPort {
                    port: Port::new(port),
                },
            )
            .unwrap();
        assert_eq!(observe::inside(&key, &binding), inside);
    }
    let mut translations = Translations::open(&tables.pins).unwrap();

    let mut slices = 0;
    while translations
        .alive()
        .iter()
        .any(|(_, alive)| alive.is_none())
    {
        translations.clear_expired(now, 500).unwrap();
        slices += 1;
        assert!(slices < 100, "the walk does not end");
    }

    assert!(slices > 1);
    assert_eq!(outside.rows().count(), 1000);
    let counted = [("SNAT_REV", 1000), ("NAT_FLOWS", 0), ("NAT_RECENT", 0)];
    let counted = counted.map(|(table, rows)| (table, Some(rows)));
    assert_eq!(translations.alive(), counted);
    assert_eq!(dump::entries(&tables.pins, "SNAT_FWD").unwrap(), 1000);
    assert!(
        outside
            .rows()
            .all(|row| row.unwrap().1.last_seen_s == now - 29)
    );
}

#[test]
fn a_translated_flow_that_has_ended_is_freed_and_cuts_no_other_one_off() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let now = observe::now_s().unwrap();
    let mut kept = Pinned::<NatFlows>::open(&tables.pins).unwrap();
    let mut put = |at: u32, silent_s: u32| {
        let answer = flow(("10.244.1.5", 53), ("10.0.0.9", 40000), Proto::UDP);
        let binding = Binding {
            state: State::New as u8,
            last_seen_s: now - silent_s,
            ..Binding::default()
        };
        let row = NatFlow::new(&answer, binding);
        kept.set(&at, &row).unwrap();
    };
    // Nobody has answered for longer than 30 s, or not yet; the table's end leads on to its beginning.
    let last = nat::ROWS - 1;
    for (at, silent_s) in [(100, 60), (101, 0), (102, 60), (last, 60), (0, 0)] {
        put(at, silent_s);
    }
    let used = || -> Vec<u32> {
        let rows = dump::dump(&tables.pins, "NAT_FLOWS").unwrap();
        let key = |row: &dump::Row| serde_json::from_value(row.key.clone()).unwrap();
        rows.iter().map(key).collect()
    };
    let mut sweep = kept::Sweep::open(&tables.pins).unwrap();
    let walk = |sweep: &mut kept::Sweep| {
        let pieces = (0..1000).find(|_| sweep.clear_expired(now).unwrap());
        assert!(pieces.is_some_and(|pieces| pieces > 1));
        sweep.alive()
    };

    assert_eq!(walk(&mut sweep), Some(2));
    assert_eq!(
        used(),
        [0, 100, 101, last],
        "who is sought beyond 100 is found"
    );
    put(0, 60);
    put(101, 60);
    assert_eq!(walk(&mut sweep), Some(0));
    assert_eq!(used(), [last], "it was looked at before the row behind it");
    assert_eq!(walk(&mut sweep), Some(0));
    assert!(used().is_empty());
}

#[test]
fn the_clock_is_the_one_that_the_datapath_stamps_with() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let boot: f64 = uptime.split(' ').next().unwrap().parse().unwrap();

    let now = observe::now_s().unwrap();

    // /proc/uptime counts sleep as well; a machine that runs tests has not slept.
    assert!((f64::from(now) - boot).abs() < 5.0, "{now} and {boot}");
}

#[test]
fn every_counter_begins_at_zero_and_every_reason_is_listed() {
    if !is_root() {
        return;
    }
    let tables = tables();

    let counters = Counters::open(&tables.pins).unwrap();

    let reasons = counters.reasons().unwrap();
    assert_eq!(reasons.len(), fairlead_common::reason::Reason::ALL.len());
    assert!(reasons.iter().all(|(_, count)| count.packets == 0));
    assert!(counters.services().unwrap().is_empty());
    assert!(counters.backends().unwrap().is_empty());
}

#[test]
fn every_table_is_listed_dumped_and_looked_up_by_name() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let mut store = KernelStore::open(&tables.pins).unwrap();
    assert!(apply::run(&steps(), &mut store).is_complete());

    let listed = dump::list(&tables.pins);

    let names: BTreeSet<_> = listed.iter().map(|table| table.name).collect();
    assert_eq!(names.len(), tables::ALL.len());
    let usage = |name| listed.iter().find(|table| table.name == name).unwrap();
    let entries = |name| usage(name).entries;
    assert_eq!(usage("NAT_FLOWS").capacity, NatFlows::CAPACITY);
    assert_eq!(entries("SERVICES"), Some(1));
    assert_eq!(entries("BACKENDS"), Some(2));
    assert_eq!(entries("RINGS"), Some(4));
    let versions_and_digest = tables::ALL.len() + tables::OBJECT_ROWS.len();
    assert_eq!(entries("LAYOUT"), Some(versions_and_digest as u32));
    for table in tables::ALL {
        if table.kind == tables::Kind::SocketStorage {
            // Its rows are in sockets, where nobody can list them.
            let error = dump::dump(&tables.pins, table.name).unwrap_err();
            assert!(error.to_string().contains("socket"), "{error}");
            continue;
        }
        let rows = dump::dump(&tables.pins, table.name).unwrap();
        assert_eq!(
            Some(rows.len() as u32),
            entries(table.name),
            "{}",
            table.name
        );
    }
    let rows = dump::dump(&tables.pins, "services").unwrap();
    assert_eq!(
        rows[0].key,
        json!({ "addr": "2001:db8::80", "port": 80, "proto": "tcp", "scope": "outside" })
    );
    assert_eq!(
        rows[0].value,
        json!({ "id": 1, "ring": 510, "slots": 4, "affinitySeconds": 0, "sourceRanges": false })
    );
    assert_eq!(rows[0].raw_key.len(), 2 * size_of::<ServiceKey>());
    let row = dump::get(
        &tables.pins,
        "SERVICES",
        "addr=2001:db8::80 port=80 proto=tcp",
    )
    .unwrap();
    assert_eq!(row.as_ref(), Some(&rows[0]));
    let slot = dump::get(&tables.pins, "RINGS", "511").unwrap().unwrap();
    assert_eq!(slot.value, json!({ "current": 2, "previous": 0 }));
    let none = dump::get(
        &tables.pins,
        "SERVICES",
        "addr=2001:db8::80 port=81 proto=tcp",
    )
    .unwrap();
    assert_eq!(none, None);
    let error = dump::dump(&tables.pins, "NOPE").unwrap_err().to_string();
    assert!(
        error.starts_with("no table is called NOPE: there are NODE,"),
        "{error}"
    );
}

#[test]
fn tables_without_an_agent_are_listed_as_absent_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let pins = Pins::new(folder.path());

    let listed = dump::list(&pins);
    let error = dump::dump(&pins, "SERVICES").unwrap_err().to_string();

    assert_eq!(listed.len(), tables::ALL.len());
    assert!(listed.iter().all(|table| table.entries.is_none()));
    assert_eq!(
        error,
        format!(
            "table {} is not pinned at {}/maps/SERVICES: start the agent (`fairlead run`), or give its pin path",
            tables::Services::NAME,
            folder.path().display()
        )
    );
}

/// The rows of SERVING that have a bit, with their bits.
fn listening(pins: &Pins) -> Vec<(u32, u64)> {
    let table = Pinned::<tables::Serving>::open(pins).unwrap();
    let rows = table.rows().map(Result::unwrap);
    rows.filter(|(_, bits)| *bits != 0).collect()
}

#[test]
fn answers_are_looked_for_where_the_backends_listen_that_the_table_has() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let pins = &tables.pins;
    let backend = |number: u16, forward| Backend {
        addr: addr("10.244.1.5"),
        port: Port::new(number),
        forward,
        flags: flags::ALIVE,
        next_hop: 0,
    };
    let mut backends = Pinned::<tables::Backends>::open(pins).unwrap();
    backends.set(&1, &backend(80, forward::HERE)).unwrap();
    backends.set(&2, &backend(81, forward::NAT)).unwrap();
    backends.set(&3, &backend(82, forward::L2)).unwrap();
    let mut places = Pinned::<tables::Serving>::open(pins).unwrap();
    // What an agent has left that was killed between two steps.
    places.set(&7, &u64::MAX).unwrap();

    let store = KernelStore::open(pins).unwrap();

    let key = |port: u16| ServingKey::new(addr("10.244.1.5"), Port::new(port));
    let of = |ports: &[u16]| -> Vec<(u32, u64)> {
        let mut rows = std::collections::BTreeMap::new();
        for (word, bit) in ports.iter().map(|port| key(*port).place()) {
            *rows.entry(word).or_default() |= bit;
        }
        rows.into_iter().collect()
    };
    assert_eq!(listening(pins), of(&[80, 81]));
    let known = store.observe().unwrap().serving;
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [key(80), key(81)]);
}

#[test]
fn a_place_that_two_backends_share_is_kept_until_both_have_gone() {
    if !is_root() {
        return;
    }
    let tables = tables();
    let key = |number: u32| {
        let addr = Addr::from(std::net::Ipv4Addr::from(0x0af4_0000 + number));
        ServingKey::new(addr, Port::new(8080))
    };
    let first = key(1);
    let second = (2..1 << 20)
        .map(key)
        .find(|one| one.place() == first.place());
    let second = second.unwrap();
    let mut store = KernelStore::open(&tables.pins).unwrap();
    let mut after = |step: Step| {
        store.apply(&step).unwrap();
        listening(&tables.pins)
    };

    let set = vec![first.place()];
    assert_eq!(after(Step::PutServing(first)), set);
    assert_eq!(after(Step::PutServing(second)), set);
    assert_eq!(after(Step::PutServing(second)), set, "again");
    assert_eq!(after(Step::RemoveServing(first)), set);
    assert_eq!(after(Step::RemoveServing(second)), []);
    assert_eq!(after(Step::RemoveServing(second)), [], "again");
}
