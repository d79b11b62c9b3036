//! What outlives the agent: pinned tables, programs and links, and how the next agent takes them over.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;
use std::fs;

use aya::programs::ProgramInfo;
use bytemuck::Zeroable as _;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::route::{Node, TxPort};
use fairlead_common::service::{Backend, Service, ServiceKey, Slot};
use fairlead_common::tables::{
    self, Backends, Layout, NodeTable, Reasons, Rings, Services, Table as _, TxPorts,
};
use fairlead_control::config::document::XdpMode;
use fairlead_control::dataplane::attach::{self, Hook, State};
use fairlead_control::dataplane::decap;
use fairlead_control::dataplane::load::{self, Fresh, Loaded};
use fairlead_control::dataplane::mapped::Access;
use fairlead_control::dataplane::pins::{self, Pins};
use fairlead_control::dataplane::table::{Pinned, Slots};
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::place::Place;
use fairlead_tests::root::is_root;

fn place() -> Place {
    Place::make().unwrap()
}

/// The next load meets programs of another object.
fn pretend_another_build(place: &Place) {
    let mut layout = Pinned::<Layout>::open(&place.pins).unwrap();
    layout.set(&tables::OBJECT_ROWS[1], &1).unwrap();
}

fn service(last: u8) -> ServiceKey {
    ServiceKey::new(
        Addr::new(std::net::Ipv4Addr::new(192, 0, 2, last).into()),
        Port::new(80),
        Proto::TCP,
    )
}

#[test]
fn a_first_load_pins_every_table_and_every_program() {
    if !is_root() {
        return;
    }
    let place = place();

    let loaded = place.load().unwrap();

    assert_eq!(loaded.fresh.len(), tables::ALL.len());
    for table in tables::ALL {
        assert!(place.pins.map(table.name).exists(), "{}", table.name);
    }
    assert!(!loaded.programs.is_empty());
    for program in &loaded.programs {
        assert!(place.pins.program(&program.name).exists());
        assert!(program.verified_instructions > 0, "{}", program.name);
    }
}

#[test]
fn a_second_load_finds_its_rows_again() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    // Where the programs have a variable, the loader writes it.
    let mut node = Node::zeroed();
    node.port_secret = 11;
    let mut nodes = Pinned::<NodeTable>::open(&place.pins).unwrap();
    nodes.set(&0, &node).unwrap();
    pretend_another_build(&place);
    let row = Service {
        id: 7,
        ring: 512,
        slots: 1031,
        ..Service::default()
    };
    let mut services = Pinned::<Services>::open(&place.pins).unwrap();
    services.set(&service(1), &row).unwrap();

    let loaded = place.load().unwrap();

    assert_eq!((loaded.reused, loaded.fresh), (false, vec![]));
    assert_eq!(services.get(&service(1)).unwrap(), Some(row));
    assert_eq!(nodes.get(&0).unwrap(), Some(node));
}

#[test]
fn a_table_of_another_layout_is_made_anew_and_the_others_keep_their_rows() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    let row = Service {
        id: 7,
        ..Service::default()
    };
    let mut services = Pinned::<Services>::open(&place.pins).unwrap();
    services.set(&service(1), &row).unwrap();
    let mut backends = Pinned::<Backends>::open(&place.pins).unwrap();
    let backend = Backend {
        forward: 1,
        ..Backend::default()
    };
    backends.set(&3, &backend).unwrap();
    let row_of_services = tables::ALL
        .iter()
        .position(|table| table.name == Services::NAME)
        .unwrap() as u32;
    Pinned::<Layout>::open(&place.pins)
        .unwrap()
        .set(&row_of_services, &99)
        .unwrap();

    let loaded = place.load().unwrap();

    assert_eq!(
        loaded.fresh,
        [Fresh {
            table: "SERVICES",
            replaced: Some(format!(
                "its layout has version 99, now {}",
                Services::VERSION
            )),
        }]
    );
    let services = Pinned::<Services>::open(&place.pins).unwrap();
    assert_eq!(services.get(&service(1)).unwrap(), None);
    let backends = Pinned::<Backends>::open(&place.pins).unwrap();
    assert_eq!(backends.get(&3).unwrap(), Some(backend));
}

#[test]
fn a_pinned_map_of_another_shape_is_made_anew() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    // As an older version with smaller rows would have left it.
    let path = place.pins.map(Services::NAME);
    fs::remove_file(&path).unwrap();
    let map = aya::maps::HashMap::<_, u32, u32>::create(16, 0).unwrap();
    map.pin(&path).unwrap();
    let error = Pinned::<Services>::open(&place.pins).unwrap_err();
    let difference = format!("key bytes 4, now {}", size_of::<ServiceKey>());
    assert!(error.to_string().contains(&difference), "{error}");

    let loaded = place.load().unwrap();

    assert_eq!(loaded.fresh.len(), 1);
    assert_eq!(
        loaded.fresh[0].to_string(),
        format!("table SERVICES is made anew: {difference}")
    );
    Pinned::<Services>::open(&place.pins).unwrap();
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused_and_told_who_holds_them() {
    if !is_root() {
        return;
    }
    let place = place();

    let error = Pins::new(place.pins.root()).lock().unwrap_err();

    assert_eq!(
        error.to_string(),
        format!(
            "another agent (pid {}) owns {}: stop it, or give this one another pin path",
            std::process::id(),
            place.pins.root().display()
        )
    );
    assert!(matches!(error, pins::Error::Owned { .. }));
    drop(place.lock);
    place.pins.lock().unwrap();
}

#[test]
fn rows_are_written_read_walked_and_removed() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    let mut services = Pinned::<Services>::open(&place.pins).unwrap();
    for last in 0..=255 {
        let row = Service {
            id: last.into(),
            ..Service::default()
        };
        services.set(&service(last), &row).unwrap();
    }

    assert!(services.remove(&service(9)).unwrap());
    assert!(!services.remove(&service(9)).unwrap());

    let mut ids: Vec<_> = services.rows().map(|row| row.unwrap().1.id).collect();
    ids.sort_unstable();
    let expected: Vec<u32> = (0..=255).filter(|&id| id != 9).collect();
    assert_eq!(ids, expected);
    let backends = Pinned::<Backends>::open(&place.pins).unwrap();
    assert_eq!(backends.rows().count(), Backends::CAPACITY as usize);
    assert_eq!(backends.get(&Backends::CAPACITY).unwrap(), None);
    let reasons = Pinned::<Reasons>::open(&place.pins).unwrap();
    assert_eq!(reasons.counts().unwrap(), []);
    assert_eq!(reasons.count(&0).unwrap().packets, 0);
}

#[test]
fn a_device_that_xdp_may_redirect_to_is_a_row_of_its_index() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    let mut ports = Pinned::<TxPorts>::open(&place.pins).unwrap();

    // Loopback has index 1 in every namespace.
    let loopback = TxPort {
        ifindex: 1,
        program: 0,
    };
    ports.set(&1, &loopback).unwrap();

    assert_eq!(ports.get(&1).unwrap(), Some(loopback));
    let rows: Vec<_> = ports.rows().map(|row| row.unwrap()).collect();
    assert_eq!(rows, [(1, loopback)]);
    assert!(ports.remove(&1).unwrap());
    assert!(!ports.remove(&1).unwrap());
}

#[test]
fn a_slot_that_is_stored_is_seen_by_a_lookup() {
    if !is_root() {
        return;
    }
    let place = place();
    drop(place.load().unwrap());
    let mut slots = Slots::open(&place.pins, Access::Write).unwrap();
    let slot = Slot {
        current: 5,
        previous: 4,
    };

    // The second slot of the third page, and the last of all.
    assert!(slots.set(2 * 512 + 1, slot));
    assert!(slots.set(slots.len() - 1, slot));
    assert!(!slots.set(slots.len(), slot));

    let rings = Pinned::<Rings>::open(&place.pins).unwrap();
    assert_eq!(rings.get(&2).unwrap().unwrap()[1], slot);
    assert_eq!(rings.get(&2).unwrap().unwrap()[0], Slot::default());
    assert_eq!(
        rings.get(&(Rings::CAPACITY - 1)).unwrap().unwrap()[511],
        slot
    );
    let mut read_only = Slots::open(&place.pins, Access::Read).unwrap();
    assert_eq!(read_only.get(2 * 512 + 1), Some(slot));
    assert!(!read_only.set(0, slot));
}

/// The id of the XDP program on a device, as iproute2 shows it.
fn xdp_on(netns: &Netns, device: &str) -> Option<u64> {
    let text = netns
        .run(&format!("ip -j -d link show dev {device}"))
        .unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["xdp"]["prog"]["id"].as_u64()
}

#[test]
fn a_link_is_taken_over_by_the_next_agent_and_gone_when_detached() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    let peer = Netns::unique("fl-pins").unwrap();
    veth((&node, "up.1"), (&peer, "eth0")).unwrap();
    let attach = |loaded: &Loaded| {
        node.enter(|| loaded.attach(Hook::XdpIngress, "up.1", XdpMode::Auto))
            .unwrap()
            .unwrap()
    };

    let first = place.load().unwrap();
    assert_eq!(attach(&first), State::Driver);
    let old = xdp_on(&node, "up.1").unwrap();
    drop(first);
    assert_eq!(xdp_on(&node, "up.1"), Some(old), "the link is pinned");

    pretend_another_build(&place);
    let second = place.load().unwrap();
    assert_eq!(attach(&second), State::TakenOver);
    let new = xdp_on(&node, "up.1").unwrap();
    assert_ne!(new, old);
    drop(second);
    assert_eq!(xdp_on(&node, "up.1"), Some(new));

    let attached = attach::attachments(&place.pins).unwrap();
    assert_eq!(attached.len(), 1);
    assert_eq!(attached[0].device, "up.1");
    assert!(attach::detach(&place.pins, Hook::XdpIngress, "up.1").unwrap());
    assert!(!attach::detach(&place.pins, Hook::XdpIngress, "up.1").unwrap());
    assert_eq!(xdp_on(&node, "up.1"), None);
}

#[test]
fn generic_mode_can_be_asked_for() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    let loaded = place.load().unwrap();

    let state = node
        .enter(|| loaded.attach(Hook::XdpIngress, "lo", XdpMode::Auto))
        .unwrap()
        .unwrap();

    // Loopback's driver has no XDP of its own.
    assert_eq!(state, State::Generic);
    assert!(xdp_on(&node, "lo").is_some());
}

#[test]
fn a_device_that_is_not_there_is_missing_and_attached_once_it_appears() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    let peer = Netns::unique("fl-pins").unwrap();
    let loaded = place.load().unwrap();
    let attach = || {
        node.enter(|| loaded.attach(Hook::XdpIngress, "eth0", XdpMode::Auto))
            .unwrap()
            .unwrap()
    };

    assert_eq!(attach(), State::Missing);
    veth((&node, "eth0"), (&peer, "eth0")).unwrap();
    assert_eq!(attach(), State::Driver);

    // The device goes and another of its name comes, with the dead link still pinned.
    node.ip("link del eth0").unwrap();
    veth((&node, "eth0"), (&peer, "eth0")).unwrap();
    assert_eq!(attach(), State::Driver);
    assert!(xdp_on(&node, "eth0").is_some());

    node.ip("link del eth0").unwrap();
    assert_eq!(attach(), State::Missing);
    assert_eq!(attach::attachments(&place.pins).unwrap(), []);
}

#[test]
fn a_filter_on_a_kernel_without_tcx_outlives_the_agent_and_is_taken_over() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    let filters = || node.run("tc filter show dev lo egress").unwrap();
    let first = place.load().unwrap();
    let state = node
        .enter(|| first.attach_clsact(Hook::TcEgress, "lo").unwrap())
        .unwrap();
    assert_eq!(state, State::Clsact);
    drop(first);
    let before = filters();
    assert!(before.contains("tc_egress"), "{before}");

    pretend_another_build(&place);
    let second = place.load().unwrap();
    let state = node
        .enter(|| second.attach(Hook::TcEgress, "lo", XdpMode::Auto).unwrap())
        .unwrap();

    assert_eq!(state, State::TakenOver);
    drop(second);
    let after = filters();
    assert_eq!(after.matches("direct-action").count(), 1, "{after}");
    assert_ne!(after, before, "another program's id");
    let detached = node
        .enter(|| attach::detach(&place.pins, Hook::TcEgress, "lo").unwrap())
        .unwrap();
    assert!(detached);
    assert_eq!(filters(), "");
    assert_eq!(attach::attachments(&place.pins).unwrap(), []);
}

#[test]
fn a_renamed_device_gives_its_name_and_its_program_to_the_next() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    let peer = Netns::unique("fl-pins").unwrap();
    veth((&node, "eth0"), (&peer, "eth0")).unwrap();
    let loaded = place.load().unwrap();
    let attach = || {
        node.enter(|| loaded.attach(Hook::XdpIngress, "eth0", XdpMode::Auto))
            .unwrap()
            .unwrap()
    };
    assert_eq!(attach(), State::Driver);

    node.ip("link set eth0 down").unwrap();
    node.ip("link set eth0 name old0").unwrap();
    veth((&node, "eth0"), (&peer, "eth1")).unwrap();

    assert_eq!(attach(), State::Driver);
    assert!(xdp_on(&node, "eth0").is_some());
    assert_eq!(xdp_on(&node, "old0"), None);
    assert_eq!(attach(), State::TakenOver);
}

#[test]
fn a_device_that_another_program_holds_is_said_to_be_busy() {
    if !is_root() {
        return;
    }
    let (ours, theirs) = (place(), place());
    let node = Netns::unique("fl-pins").unwrap();
    let attach = |loaded: &Loaded| {
        node.enter(|| loaded.attach(Hook::XdpIngress, "lo", XdpMode::Auto))
            .unwrap()
    };
    attach(&theirs.load().unwrap()).unwrap();

    let error = attach(&ours.load().unwrap()).unwrap_err();

    assert_eq!(
        error.to_string(),
        "another XDP program is attached to lo: remove it with `ip link set dev lo xdp off`, or leave lo out of the configuration"
    );
}

#[test]
fn a_file_system_without_bpf_is_refused_with_the_command_that_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fairlead");

    let error = Pins::new(&path).prepare().unwrap_err();

    assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
}

#[test]
fn a_backend_pins_only_what_takes_packets_out_of_tunnels_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let fs = BpfFs::mount().unwrap();
    let pins = Pins::new(fs.path().join("fairlead"));
    let backend = Netns::unique("fl-pins").unwrap();
    let router = Netns::unique("fl-pins").unwrap();
    for device in ["eth0", "eth1"] {
        veth((&backend, device), (&router, device)).unwrap();
    }
    let attach = |device: &str, addr: &str| {
        let addresses = BTreeSet::from([addr.parse().unwrap()]);
        backend
            .enter(|| decap::attach(&pins, device, &addresses, XdpMode::Auto).unwrap())
            .unwrap()
    };
    let detach = |device: &str| {
        backend
            .enter(|| decap::detach(&pins, device).unwrap())
            .unwrap()
    };

    assert_eq!(attach("eth0", "192.0.2.1"), State::Driver);
    assert_eq!(attach("eth0", "2001:db8::1"), State::TakenOver);
    assert_eq!(attach("eth1", "192.0.2.1"), State::Driver);

    let mut tables: Vec<_> = fs::read_dir(pins.maps())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    tables.sort();
    assert_eq!(tables, ["DECAP_ADDRS", "LAYOUT", "REASONS"]);
    let expected: BTreeSet<std::net::IpAddr> = ["192.0.2.1", "2001:db8::1"]
        .map(|addr| addr.parse().unwrap())
        .into();
    assert_eq!(decap::addresses(&pins).unwrap(), expected);
    assert!(xdp_on(&backend, "eth1").is_some());

    assert!(detach("eth0"));
    assert!(!detach("eth0"));
    assert_eq!(xdp_on(&backend, "eth0"), None);
    assert_eq!(decap::addresses(&pins).unwrap(), expected);
    assert!(detach("eth1"));
    assert!(!pins.root().exists());
    assert!(!detach("eth1"));
}

#[test]
fn a_node_that_is_a_backend_too_serves_from_the_agents_tables() {
    if !is_root() {
        return;
    }
    let place = place();
    let node = Netns::unique("fl-pins").unwrap();
    drop(place.load().unwrap());
    let addresses = BTreeSet::from(["192.0.2.1".parse().unwrap()]);

    let state = node
        .enter(|| decap::attach(&place.pins, "lo", &addresses, XdpMode::Auto).unwrap())
        .unwrap();

    assert_eq!(state, State::Generic);
    assert!(decap::detach(&place.pins, "lo").unwrap());
    assert!(decap::addresses(&place.pins).unwrap().is_empty());
    assert!(place.pins.exist());
}

#[test]
fn programs_of_the_same_object_are_used_again_and_any_doubt_loads_them_anew() {
    if !is_root() {
        return;
    }
    let place = place();
    let ids = || -> BTreeSet<u32> {
        let names = fs::read_dir(place.pins.programs()).unwrap();
        names
            .map(|name| ProgramInfo::from_pin(name.unwrap().path()).unwrap().id())
            .collect()
    };
    let first = place.load().unwrap();
    assert!(!first.reused);
    let loaded = ids();
    assert_eq!(loaded.len(), first.programs.len());

    let next = place.load().unwrap();

    assert!(next.reused);
    assert_eq!(ids(), loaded);
    let tags = |loaded: &Loaded| -> BTreeSet<_> {
        let programs = loaded.programs.iter();
        programs.map(|program| program.tag.clone()).collect()
    };
    assert_eq!(tags(&next), tags(&first));

    // A pin is lost; another build has pinned them; nobody finished pinning them.
    let forget = || fs::remove_file(place.pins.program("xdp_ingress")).unwrap();
    let other = || pretend_another_build(&place);
    let unfinished = || {
        let mut layout = Pinned::<Layout>::open(&place.pins).unwrap();
        let set = |row| layout.set(row, &0).unwrap();
        tables::OBJECT_ROWS.iter().for_each(set);
    };
    for doubt in [&forget as &dyn Fn(), &other, &unfinished] {
        let before = ids();
        doubt();
        assert!(!place.load().unwrap().reused);
        assert!(ids().is_disjoint(&before));
        assert!(place.load().unwrap().reused);
    }
    // What a backend behind a router needs is there with the rest.
    let part = load::load_part(&place.pins, &place.lock, load::Part::Decapsulation).unwrap();
    assert!(part.reused);
    assert_eq!(part.programs.len(), 1);
}
