//! Pods, in namespaces of their own: joined, resolved, taken off again.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_common::route::Device;
use fairlead_control::cleanup::{self, cleanup};
use fairlead_control::config::document::XdpMode;
use fairlead_control::dataplane::apply::KernelStore;
use fairlead_control::dataplane::attach::{self, Hook, State};
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::{apply, dump, load};
use fairlead_control::host::links::XdpRun;
use fairlead_control::host::pods::{Wanted, device_name};
use fairlead_control::plan::Step;
use fairlead_control::plan::routes::NextHop;
use fairlead_control::pod;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::netlink::on;
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::root::is_root;

fn hops(texts: &[&str]) -> BTreeSet<NextHop> {
    let hop = |text: &&str| NextHop {
        via: ip(text),
        dev: None,
    };
    texts.iter().map(hop).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node, its pins, and two pods on it.
struct PodNode {
    node: Netns,
    pods: [Netns; 2],
    pins: Pins,
    _fs: BpfFs,
}

fn pod_node() -> PodNode {
    let fs = BpfFs::mount().unwrap();
    PodNode {
        node: Netns::unique("fl-host").unwrap(),
        pods: [
            Netns::unique("fl-host").unwrap(),
            Netns::unique("fl-host").unwrap(),
        ],
        pins: Pins::new(fs.path().join("fairlead")),
        _fs: fs,
    }
}

impl PodNode {
    fn wanted(&self, pod: usize) -> Wanted {
        let addresses = vec![
            ip(&format!("10.1.0.{}", pod + 5)),
            ip(&format!("fd00:1::{}", pod + 5)),
        ];
        Wanted::new(&format!("pod-{pod}"), self.pods[pod].path(), addresses)
    }

    fn add(&self, pod: usize) -> Result<pod::Added, pod::Error> {
        let wanted = self.wanted(pod);
        on(&self.node, async |netlink| {
            pod::add(&netlink, &self.pins, &wanted).await
        })
    }

    fn del(&self, name: &str) -> bool {
        on(&self.node, async |netlink| {
            pod::del(&netlink, &self.pins, name).await.unwrap()
        })
    }
}

#[test]
fn pods_without_an_agent_reach_each_other_and_say_what_is_missing() {
    if !is_root() {
        return;
    }
    let all = pod_node();

    let first = all.add(0).unwrap();
    all.add(1).unwrap();
    let again = all.add(1).unwrap();

    assert_eq!(first.notes.len(), 1);
    assert!(first.notes[0].contains("fairlead run"), "{:?}", first.notes);
    assert_eq!(again.joined.changes, []);
    for target in ["10.1.0.6", "fd00:1::6"] {
        all.pods[0].run(&format!("ping -c1 -W2 {target}")).unwrap();
    }
    let features = all.pods[0].run("ethtool -k eth0").unwrap();
    assert!(
        features.contains("generic-receive-offload: on"),
        "{features}"
    );
    let pods = on(&all.node, async |netlink| netlink.pods().await.unwrap());
    let listed: Vec<_> = pods
        .iter()
        .map(|pod| (pod.name.as_str(), pod.addresses.clone()))
        .collect();
    assert_eq!(
        listed,
        [
            ("pod-0", all.wanted(0).addresses),
            ("pod-1", all.wanted(1).addresses)
        ]
    );
}

#[test]
fn what_the_datapath_needs_of_a_pod_is_resolved_at_once() {
    if !is_root() {
        return;
    }
    let all = pod_node();

    all.add(0).unwrap();

    let device = device_name("pod-0");
    for addr in ["10.1.0.5", "fd00:1::5"] {
        let neighbour = all
            .node
            .run(&format!("ip neigh show {addr} dev {device}"))
            .unwrap();
        assert!(neighbour.contains("PERMANENT"), "{addr}: {neighbour}");
    }
    let gateways = all.pods[0].run("ip neigh show dev eth0").unwrap();
    for gateway in ["169.254.1.1", "fe80::1"] {
        let line = gateways
            .lines()
            .find(|line| line.starts_with(gateway))
            .unwrap_or_else(|| panic!("{gateway}: {gateways}"));
        assert!(line.contains("PERMANENT"), "{line}");
    }
}

#[test]
fn a_pod_with_other_addresses_is_joined_anew() {
    if !is_root() {
        return;
    }
    let all = pod_node();
    all.add(0).unwrap();
    let wanted = Wanted {
        addresses: vec![ip("10.1.0.77")],
        ..all.wanted(0)
    };

    on(&all.node, async |netlink| {
        netlink.join_pod(&wanted).await.unwrap();
        let pods = netlink.pods().await.unwrap();
        assert_eq!(pods[0].addresses, [ip("10.1.0.77")]);
    });

    let inside = all.pods[0].run("ip -br addr show dev eth0").unwrap();
    assert!(inside.contains("10.1.0.77/32"), "{inside}");
    assert!(!inside.contains("10.1.0.5/32"), "{inside}");
}

#[test]
fn an_address_that_another_pod_has_is_refused() {
    if !is_root() {
        return;
    }
    let all = pod_node();
    all.add(0).unwrap();
    let wanted = Wanted {
        addresses: vec![ip("10.1.0.5")],
        ..all.wanted(1)
    };

    let error = on(&all.node, async |netlink| {
        netlink.join_pod(&wanted).await.unwrap_err()
    });

    assert_eq!(
        error.to_string(),
        "adding pod pod-1: pod pod-0 has address 10.1.0.5"
    );
}

#[test]
fn a_half_done_pod_is_completed_and_a_removed_one_leaves_nothing() {
    if !is_root() {
        return;
    }
    let all = pod_node();
    let device = device_name("pod-0");
    // As a process that was killed after making the pair would leave it.
    all.node
        .ip(&format!(
            "link add {device} type veth peer name eth0 netns {}",
            all.pods[0].name()
        ))
        .unwrap();

    all.add(0).unwrap();
    all.pods[0].run("ip -6 route get 2001:db8::1").unwrap();
    assert!(all.del("pod-0"));
    assert!(!all.del("pod-0"));

    let left = all.node.run("ip -o link").unwrap();
    assert!(!left.contains(&device), "{left}");
    assert_eq!(all.node.run("ip route").unwrap(), "");
    let inside = all.pods[0].run("ip -o link").unwrap();
    assert!(!inside.contains("eth0"), "{inside}");
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    if !is_root() {
        return;
    }
    let all = pod_node();
    let wanted = Wanted {
        namespace: "/run/netns/fl-host-nowhere".into(),
        ..all.wanted(0)
    };

    let error = on(&all.node, async |netlink| {
        netlink.join_pod(&wanted).await.unwrap_err()
    });

    assert!(
        error
            .to_string()
            .starts_with("opening the network namespace /run/netns/fl-host-nowhere: "),
        "{error}"
    );
}

#[test]
fn a_pod_beside_an_agent_is_attached_and_cleanup_takes_everything_but_pods() {
    if !is_root() {
        return;
    }
    let all = pod_node();
    all.pins.prepare().unwrap();
    let lock = all.pins.lock().unwrap();
    let router = Netns::unique("fl-host").unwrap();
    veth((&all.node, "eth0"), (&router, "eth0")).unwrap();
    all.node.ip("addr add 10.9.0.1/24 dev eth0").unwrap();
    let loaded = load::load(&all.pins, &lock).unwrap();
    all.node
        .enter(|| {
            assert_eq!(
                loaded
                    .attach(Hook::XdpIngress, "eth0", XdpMode::Auto)
                    .unwrap(),
                State::Driver
            );
            assert_eq!(
                loaded
                    .attach(Hook::TcEgress, "eth0", XdpMode::Auto)
                    .unwrap(),
                State::Tcx
            );
        })
        .unwrap();

    let added = all.add(0).unwrap();

    assert_eq!(added.notes, Vec::<String>::new());
    let index = added.joined.pod.index;
    let row = dump::get(&all.pins, "TX_PORTS", &index.to_string()).unwrap();
    assert_eq!(row.unwrap().value["ifindex"], index);
    let device = apply::observe(&all.pins).unwrap().devices[&index];
    assert_eq!(device.mac, added.joined.pod.mac);
    // What an agent has seen of the device stays when the pod is added again.
    let seen = Device {
        mtu: 1400,
        ..device
    };
    let mut store = KernelStore::open(&all.pins).unwrap();
    assert!(apply::run(&[Step::PutDevice(seen)], &mut store).is_complete());
    all.add(0).unwrap();
    assert_eq!(apply::observe(&all.pins).unwrap().devices[&index], seen);
    let attached: Vec<_> = attach::attachments(&all.pins)
        .unwrap()
        .into_iter()
        .map(|one| (one.hook, one.device))
        .collect();
    assert_eq!(
        attached,
        [
            (Hook::XdpIngress, "eth0".to_owned()),
            (Hook::TcIngress, device_name("pod-0")),
            (Hook::TcEgress, "eth0".to_owned()),
            (Hook::TcToPod, device_name("pod-0")),
        ]
    );
    // The next agent takes the pod's link over like its own.
    let next = load::load(&all.pins, &lock).unwrap();
    let state = all
        .node
        .enter(|| next.attach(Hook::TcIngress, &device_name("pod-0"), XdpMode::Auto))
        .unwrap()
        .unwrap();
    assert_eq!(state, State::TakenOver);

    let removed = on(&all.node, async |netlink| {
        let eth0 = netlink.link("eth0").await.unwrap().unwrap();
        assert_eq!(eth0.xdp, Some(XdpRun::Driver));
        let learnt = "10.50.0.0/16".parse().unwrap();
        netlink
            .put_route(learnt, &hops(&["10.9.0.2"]))
            .await
            .unwrap();
        let next = BTreeSet::from([(eth0.index, ip("10.9.0.2"))]);
        netlink.keep_neighbours(&next).await.unwrap();
        let removed = cleanup(&netlink, &all.pins, Some(lock)).await.unwrap();
        let again = cleanup(&netlink, &all.pins, None).await.unwrap();
        assert_eq!(again, cleanup::Removed::default());
        assert_eq!(again.to_string(), "nothing to remove");
        assert_eq!(
            netlink.link("eth0").await.unwrap().unwrap().xdp,
            None,
            "the program has left the device"
        );
        assert_eq!(netlink.pods().await.unwrap().len(), 1, "pods stay");
        removed
    });
    assert_eq!((removed.routes, removed.neighbours), (1, 1));
    assert_eq!(removed.attachments.len(), 4);
    assert_eq!(removed.tables.len(), fairlead_common::tables::ALL.len());
    assert!(!all.pins.root().exists());
    wait_for("the pod still routes", 5, || {
        all.pods[0].run("ip route get 10.9.0.1").map(Some)
    })
    .unwrap();
}
