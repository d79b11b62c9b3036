//! The host's network through rtnetlink, in namespaces of their own.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use fairlead_control::cleanup::{self, cleanup};
use fairlead_control::dataplane::attach::{self, Hook, State, XdpMode};
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::{apply, dump, load};
use fairlead_control::host::links::{Change, Watch, XdpRun};
use fairlead_control::host::pods::{Wanted, device_name};
use fairlead_control::host::reach::Reach;
use fairlead_control::host::{Netlink, sysctl};
use fairlead_control::plan::routes::{NextHop, RouteStep, Routes};
use fairlead_control::pod;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::root::is_root;

/// Runs asynchronous work inside a namespace, with a conversation with its kernel.
fn on<R: Send>(netns: &Netns, work: impl AsyncFnOnce(Netlink) -> R + Send) -> R {
    netns
        .enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async { work(Netlink::open().unwrap()).await })
        })
        .unwrap()
}

/// A node with a router on its link: 10.9.0.1 and fd09::1 here, .2 and ::2 there.
fn node_and_router() -> (Netns, Netns) {
    let node = Netns::unique("fl-host").unwrap();
    let router = Netns::unique("fl-host").unwrap();
    veth((&node, "eth0"), (&router, "eth0")).unwrap();
    for (netns, last) in [(&node, 1), (&router, 2)] {
        netns
            .ip(&format!("addr add 10.9.0.{last}/24 dev eth0"))
            .unwrap();
        netns
            .ip(&format!("addr add fd09::{last}/64 dev eth0 nodad"))
            .unwrap();
    }
    (node, router)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hops(texts: &[&str]) -> BTreeSet<NextHop> {
    texts
        .iter()
        .map(|text| NextHop {
            via: ip(text),
            dev: None,
        })
        .collect()
}

/// The routers of each route, without devices.
fn routers(routes: &Routes) -> Vec<(String, Vec<String>)> {
    routes
        .iter()
        .map(|(prefix, hops)| {
            let via = hops.iter().map(|hop| hop.via.to_string()).collect();
            (prefix.to_string(), via)
        })
        .collect()
}

#[test]
fn a_device_is_listed_as_it_is() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();
    node.ip("link set eth0 mtu 1400 alias uplink").unwrap();

    let (all, one, none) = on(&node, async |netlink| {
        (
            netlink.links().await.unwrap(),
            netlink.link("eth0").await.unwrap().unwrap(),
            netlink.link("eth9").await.unwrap(),
        )
    });

    assert_eq!(all.len(), 2);
    assert_eq!(all[&one.index], one);
    assert_eq!((one.mtu, one.is_up, one.has_carrier), (1400, true, true));
    assert_eq!(one.alias.as_deref(), Some("uplink"));
    assert_ne!(one.mac, [0; 6]);
    assert_eq!(one.xdp, None);
    assert_eq!(none, None);
}

#[test]
fn a_device_that_comes_goes_down_and_leaves_is_told() {
    if !is_root() {
        return;
    }
    let (node, router) = node_and_router();

    on(&node, async |_| {
        let mut watch = Watch::open().unwrap();
        let mut wait = async |what: &str, seen: &dyn Fn(&Change) -> bool| {
            loop {
                let change = tokio::time::timeout(Duration::from_secs(5), watch.next())
                    .await
                    .unwrap_or_else(|_| panic!("waited for: {what}"))
                    .unwrap();
                if seen(&change) {
                    return;
                }
            }
        };
        veth((&node, "eth1"), (&router, "eth1")).unwrap();
        wait(
            "eth1 is up",
            &|change| matches!(change, Change::Present(link) if link.name == "eth1" && link.is_up),
        )
        .await;
        node.ip("link set eth1 down").unwrap();
        wait(
            "eth1 is down",
            &|change| matches!(change, Change::Present(link) if link.name == "eth1" && !link.is_up),
        )
        .await;
        node.ip("link del eth1").unwrap();
        wait(
            "eth1 has gone",
            &|change| matches!(change, Change::Gone { name, .. } if name == "eth1"),
        )
        .await;
    });
}

#[test]
fn an_address_is_reached_on_the_link_by_a_router_or_not_at_all() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();
    node.ip("route add 10.20.0.0/16 via 10.9.0.2").unwrap();
    node.ip("route add fd20::/32 via fd09::2").unwrap();
    node.ip("route add unreachable 10.30.0.0/16").unwrap();

    on(&node, async |netlink| {
        let device = netlink.link("eth0").await.unwrap().unwrap().index;
        for (addr, reach) in [
            ("10.9.0.7", Reach::OnLink { device }),
            ("fd09::7", Reach::OnLink { device }),
            (
                "10.20.1.1",
                Reach::Routed {
                    via: ip("10.9.0.2"),
                    device,
                },
            ),
            (
                "fd20::1",
                Reach::Routed {
                    via: ip("fd09::2"),
                    device,
                },
            ),
            ("10.9.0.1", Reach::Local),
            ("fd09::1", Reach::Local),
            ("10.30.0.1", Reach::Unreachable),
            ("192.0.2.1", Reach::Unreachable),
            ("2001:db8::1", Reach::Unreachable),
        ] {
            assert_eq!(netlink.reach(ip(addr)).await.unwrap(), reach, "{addr}");
        }
    });
}

#[test]
fn a_kept_neighbour_is_resolved_without_traffic_and_leaves_when_unwanted() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();

    on(&node, async |netlink| {
        let device = netlink.link("eth0").await.unwrap().unwrap().index;
        let wanted = BTreeSet::from([
            (device, ip("10.9.0.2")),
            (device, ip("fd09::2")),
            (device, ip("10.9.0.99")),
        ]);

        assert_eq!(netlink.keep_neighbours(&wanted).await.unwrap(), (3, 0));
        let mut resolved = Vec::new();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            resolved = netlink
                .neighbours()
                .await
                .unwrap()
                .into_iter()
                .filter(|one| one.is_resolved)
                .map(|one| one.addr)
                .collect();
            if resolved.len() == 2 {
                break;
            }
        }
        resolved.sort_unstable();
        assert_eq!(resolved, [ip("10.9.0.2"), ip("fd09::2")]);
        assert_eq!(netlink.keep_neighbours(&wanted).await.unwrap(), (0, 0));

        assert_eq!(
            netlink.keep_neighbours(&BTreeSet::new()).await.unwrap(),
            (0, 3)
        );
        assert_eq!(netlink.neighbours().await.unwrap(), []);
    });
}

#[test]
fn learnt_routes_are_written_replaced_removed_and_flushed_and_others_stay() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();
    node.ip("route add 10.20.0.0/16 via 10.9.0.2").unwrap();

    on(&node, async |netlink| {
        for (prefix, via) in [
            ("10.20.0.0/16", &["10.9.0.3"][..]),
            ("10.21.0.0/16", &["10.9.0.2", "10.9.0.3"]),
            ("fd21::/48", &["fd09::2", "fd09::3"]),
            ("fd22::/48", &["fd09::2"]),
            ("0.0.0.0/0", &["10.9.0.2"]),
            ("::/0", &["fd09::2"]),
        ] {
            let step = RouteStep::Add(prefix.parse().unwrap(), hops(via));
            netlink.apply_route(&step).await.unwrap();
        }

        let learnt = netlink.learnt_routes().await.unwrap();
        let text = |prefix: &str, via: &[&str]| {
            (
                prefix.to_owned(),
                via.iter().map(ToString::to_string).collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            routers(&learnt),
            [
                text("0.0.0.0/0", &["10.9.0.2"]),
                text("10.20.0.0/16", &["10.9.0.3"]),
                text("10.21.0.0/16", &["10.9.0.2", "10.9.0.3"]),
                text("::/0", &["fd09::2"]),
                text("fd21::/48", &["fd09::2", "fd09::3"]),
                text("fd22::/48", &["fd09::2"]),
            ]
        );
        assert!(learnt.values().flatten().all(|hop| hop.dev.is_some()));
        // The host's own route for the same prefix wins.
        assert!(matches!(
            netlink.reach(ip("10.20.1.1")).await.unwrap(),
            Reach::Routed { via, .. } if via == ip("10.9.0.2")
        ));

        for (prefix, via) in [("10.21.0.0/16", "10.9.0.4"), ("fd21::/48", "fd09::4")] {
            let step = RouteStep::Replace(prefix.parse().unwrap(), hops(&[via]));
            netlink.apply_route(&step).await.unwrap();
        }
        let step = RouteStep::Remove("fd22::/48".parse().unwrap());
        netlink.apply_route(&step).await.unwrap();
        netlink.apply_route(&step).await.unwrap();
        let learnt = netlink.learnt_routes().await.unwrap();
        assert_eq!(learnt[&"10.21.0.0/16".parse().unwrap()].len(), 1);
        assert_eq!(learnt[&"fd21::/48".parse().unwrap()].len(), 1);
        assert_eq!(learnt.len(), 5);

        assert_eq!(netlink.flush_learnt_routes().await.unwrap(), 5);
        assert_eq!(netlink.flush_learnt_routes().await.unwrap(), 0);
        assert!(netlink.learnt_routes().await.unwrap().is_empty());
    });
    let left = node.run("ip route show 10.20.0.0/16").unwrap();
    assert!(left.starts_with("10.20.0.0/16 via 10.9.0.2"), "{left}");
}

#[test]
fn a_next_hop_of_another_family_is_refused_for_its_route_alone() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();

    let error = on(&node, async |netlink| {
        netlink
            .put_route("fd21::/48".parse().unwrap(), &hops(&["10.9.0.2"]))
            .await
            .unwrap_err()
    });

    assert_eq!(
        error.to_string(),
        "writing route fd21::/48: next hop 10.9.0.2 is of another family"
    );
}

#[test]
fn forwarding_is_switched_on_once_and_said_once() {
    if !is_root() {
        return;
    }
    let node = Netns::unique("fl-host").unwrap();
    node.sysctl("net.ipv4.ip_forward", "0").unwrap();

    let (first, second) = node
        .enter(|| (sysctl::forwarding().unwrap(), sysctl::forwarding().unwrap()))
        .unwrap();

    let told: Vec<_> = first.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "net/ipv4/ip_forward = 1 (was 0)",
            "net/ipv6/conf/all/forwarding = 1 (was 0)"
        ]
    );
    assert_eq!(second, []);
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
        Wanted {
            name: format!("pod-{pod}"),
            namespace: self.pods[pod].path(),
            addresses: vec![
                ip(&format!("10.1.0.{}", pod + 5)),
                ip(&format!("fd00:1::{}", pod + 5)),
            ],
        }
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
    let mut loaded = load::load(&all.pins, &lock).unwrap();
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
        ]
    );
    // The next agent takes the pod's link over like its own.
    let mut next = load::load(&all.pins, &lock).unwrap();
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
    assert_eq!(removed.attachments.len(), 3);
    assert_eq!(removed.tables.len(), fairlead_common::tables::ALL.len());
    assert!(!all.pins.root().exists());
    wait_for("the pod still routes", 5, || {
        all.pods[0].run("ip route get 10.9.0.1").map(Some)
    })
    .unwrap();
}
