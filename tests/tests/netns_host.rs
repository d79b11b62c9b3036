//! The host's network through rtnetlink, in namespaces of their own.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use fairlead_control::host::links::{Change, Watch};
use fairlead_control::host::reach::{Enquirer, Reach};
use fairlead_control::host::sysctl;
use fairlead_control::plan::routes::{NextHop, RouteStep, Routes};
use fairlead_tests::netlink::on;
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::root::is_root;

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
    node.ip("route add 10.21.0.0/16 via 10.9.0.2 mtu 1300")
        .unwrap();
    node.ip("route add fd20::/32 via fd09::2").unwrap();
    node.ip("route add unreachable 10.30.0.0/16").unwrap();

    on(&node, async |netlink| {
        let device = netlink.link("eth0").await.unwrap().unwrap().index;
        let expected = [
            ("10.9.0.7", Reach::OnLink { device, mtu: None }),
            ("fd09::7", Reach::OnLink { device, mtu: None }),
            (
                "10.20.1.1",
                Reach::Routed {
                    via: ip("10.9.0.2"),
                    device,
                    mtu: None,
                },
            ),
            (
                "fd20::1",
                Reach::Routed {
                    via: ip("fd09::2"),
                    device,
                    mtu: None,
                },
            ),
            (
                "10.21.1.1",
                Reach::Routed {
                    via: ip("10.9.0.2"),
                    device,
                    mtu: Some(1300),
                },
            ),
            ("10.9.0.1", Reach::Local),
            ("fd09::1", Reach::Local),
            ("10.30.0.1", Reach::Unreachable),
            ("192.0.2.1", Reach::Unreachable),
            ("2001:db8::1", Reach::Unreachable),
        ];
        let addresses: Vec<_> = expected.iter().map(|(addr, _)| ip(addr)).collect();
        // More than fit in one bundle, and more than one thread asks.
        for times in [30, 601] {
            let questions = addresses.repeat(times);
            let answers = Enquirer::open().unwrap().ask(&questions).unwrap();
            assert_eq!(answers.len(), questions.len());
            for (answer, (addr, reach)) in answers.iter().zip(expected.iter().cycle()) {
                assert_eq!(answer, reach, "{addr}");
            }
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
        let answers = Enquirer::open().unwrap().ask(&[ip("10.20.1.1")]).unwrap();
        assert!(matches!(answers[..], [Reach::Routed { via, .. }] if via == ip("10.9.0.2")));

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
fn a_device_that_hears_router_advertisements_goes_on_hearing_them() {
    if !is_root() {
        return;
    }
    let (node, _router) = node_and_router();
    node.sysctl("net.ipv6.conf.all.forwarding", "0").unwrap();
    node.sysctl("net.ipv6.conf.eth0.accept_ra", "1").unwrap();

    let told = node.enter(|| sysctl::forwarding().unwrap()).unwrap();

    let told: Vec<_> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told[0], "net/ipv6/conf/eth0/accept_ra = 2 (was 1)");
    let again = node.enter(|| sysctl::forwarding().unwrap()).unwrap();
    assert_eq!(again, []);
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
