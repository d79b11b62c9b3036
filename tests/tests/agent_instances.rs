//! An agent with Cilium's objects of version 2, beside one with a peering policy.

use anyhow::ensure;
use fairlead_tests::lab::Lab;
use fairlead_tests::netns::wait_for;
use fairlead_tests::root;

/// What a person who comes from Cilium has.
fn documents(service: &str, community: &str) -> String {
    format!(
        "\
apiVersion: cilium.io/v2
kind: CiliumBGPClusterConfig
metadata: {{ name: cilium-bgp }}
spec:
  nodeSelector: {{ matchLabels: {{ rack: rack1 }} }}
  bgpInstances:
    - name: instance-65001
      localASN: 65001
      peers:
        - {{ name: router, peerASN: 65000, peerAddress: 10.0.1.1, peerConfigRef: {{ name: router }} }}
---
apiVersion: cilium.io/v2
kind: CiliumBGPPeerConfig
metadata: {{ name: router }}
spec:
  timers: {{ connectRetryTimeSeconds: 1, holdTimeSeconds: 9, keepAliveTimeSeconds: 3 }}
  gracefulRestart: {{ enabled: true, restartTimeSeconds: 60 }}
  families:
    - {{ afi: ipv4, safi: unicast, advertisements: {{ matchLabels: {{ advertise: bgp }} }} }}
    - {{ afi: ipv6, safi: unicast }}
---
apiVersion: cilium.io/v2
kind: CiliumBGPAdvertisement
metadata: {{ name: all, labels: {{ advertise: bgp }} }}
spec:
  advertisements:
    - advertisementType: PodCIDR
      attributes: {{ communities: {{ standard: [\"{community}\"], large: [\"65001:1:2\"] }} }}
    - advertisementType: Service
      selector: {{ matchLabels: {{ announce: bgp }} }}
      service: {{ addresses: [LoadBalancerIP]{service} }}
"
    )
}

#[test]
fn objects_of_ciliums_second_version_are_followed_and_what_is_told_changes_without_a_reset() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-v2").unwrap();
    let node = &lab.nodes[0];
    let aggregated = documents(", aggregationLengthIPv4: 24", "65001:7");
    node.put("bgp.yaml", &aggregated).unwrap();
    // The router's path to a prefix by this node, and its communities.
    let path = |prefix: &str| {
        let route = lab.frr.json(&format!("show bgp ipv4 unicast {prefix}"))?;
        let paths = route["paths"].as_array().cloned().unwrap_or_default();
        let ours = paths
            .into_iter()
            .find(|path| path["peer"]["peerId"] == "10.0.1.2");
        Ok::<_, anyhow::Error>(ours.map(|path| {
            let text = |key: &str| path[key]["string"].as_str().unwrap_or_default().to_owned();
            (text("community"), text("largeCommunity"))
        }))
    };
    let told = |prefix: &str, community: &str| {
        wait_for(&format!("{prefix} with {community:?}"), 20, || {
            let found = path(prefix)?;
            let is_it = found
                .as_ref()
                .is_some_and(|(standard, _)| standard == community);
            ensure!(is_it, "{prefix}: {found:?}");
            Ok(Some(()))
        })
        .unwrap();
    };
    told("10.1.1.0/24", "65001:7");
    assert_eq!(path("10.1.1.0/24").unwrap().unwrap().1, "65001:1:2");
    told("203.0.113.0/24", "");
    assert_eq!(path("203.0.113.10/32").unwrap(), None);
    let holes = || node.netns.run("ip route show type blackhole proto 208");
    assert!(holes().unwrap().contains("203.0.113.0/24"));
    let status = node.ask(&["status"]).unwrap();
    let conditions = status["conditions"].as_array().unwrap();
    let of_bgp = |object: &serde_json::Value| object.as_str().unwrap().contains("BGP");
    assert!(
        !conditions.iter().any(|one| of_bgp(&one["object"])),
        "{status}"
    );
    // Nothing is told in the family that selects no advertisement.
    let v6 = lab.frr.json("show bgp ipv6 unicast fd00:1:1::/64").unwrap();
    assert_eq!(v6["paths"], serde_json::Value::Null);

    let sessions = || {
        let all = lab.frr.json("show bgp neighbors 10.0.1.2").unwrap();
        all["10.0.1.2"]["connectionsEstablished"].clone()
    };
    let before = sessions();
    node.put("bgp.yaml", &documents("", "65001:8")).unwrap();
    told("10.1.1.0/24", "65001:8");
    told("203.0.113.10/32", "");
    wait_for("the aggregate to go", 10, || {
        ensure!(path("203.0.113.0/24")?.is_none());
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(holes().unwrap(), "");
    assert_eq!(sessions(), before);
}

#[test]
fn a_source_interface_is_where_sessions_come_from_and_its_address_is_followed() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-source").unwrap();
    let node = &lab.nodes[0];
    // The router knows the node by addresses that no link of theirs chooses.
    for address in ["10.0.1.50", "10.0.1.51"] {
        lab.frr
            .configure(&[
                "router bgp 65000",
                &format!("neighbor {address} remote-as 65001"),
                &format!("neighbor {address} timers connect 1"),
                "address-family ipv4 unicast",
                &format!("neighbor {address} activate"),
            ])
            .unwrap();
    }
    let named = documents("", "65001:7").replace(
        "spec:\n  timers",
        "spec:\n  transport: { sourceInterface: lo }\n  timers",
    );
    node.put("bgp.yaml", &named).unwrap();
    wait_for("the missing address to be told of", 10, || {
        let status = node.ask(&["status"])?.to_string();
        ensure!(status.contains("lo has no global IPv4 address"), "{status}");
        Ok(Some(()))
    })
    .unwrap();
    let comes_from = |address: &str| {
        wait_for(&format!("a session from {address}"), 30, || {
            let neighbors = lab.frr.json("show bgp neighbors")?;
            let state = &neighbors[address]["bgpState"];
            ensure!(state == "Established", "{address}: {state}");
            Ok(Some(()))
        })
        .unwrap();
    };
    comes_from("10.0.1.2");
    node.netns.ip("addr add 10.0.1.50/32 dev lo").unwrap();
    comes_from("10.0.1.50");
    node.netns.ip("addr del 10.0.1.50/32 dev lo").unwrap();
    node.netns.ip("addr add 10.0.1.51/32 dev lo").unwrap();
    comes_from("10.0.1.51");
    // By the name that its object has for it.
    let shown = node.ask(&["bgp", "neighbor", "router"]).unwrap();
    assert_eq!(shown[0]["localAddress"], "10.0.1.51", "{shown:#}");
}

#[test]
fn addresses_of_a_device_are_told_while_it_has_them() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-lo").unwrap();
    let node = &lab.nodes[0];
    let told = documents("", "65001:7").replace(
        "    - advertisementType: Service",
        "    - advertisementType: Interface\n      interface: { name: lo }\n      \
         attributes: { communities: { standard: [\"65001:9\"] } }\n    - advertisementType: Service",
    );
    let both = told.replace(
        "{ afi: ipv6, safi: unicast }",
        "{ afi: ipv6, safi: unicast, advertisements: { matchLabels: { advertise: bgp } } }",
    );
    node.put("bgp.yaml", &both).unwrap();
    let is_told = |prefix: &str, is_wanted: bool| {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        wait_for(&format!("{prefix}: told {is_wanted}"), 20, || {
            let route = lab
                .frr
                .json(&format!("show bgp {family} unicast {prefix}"))?;
            let paths = route["paths"].as_array();
            let ours = paths.and_then(|paths| paths.first());
            let marked = ours.is_some_and(|path| path["community"]["string"] == "65001:9");
            ensure!(marked == is_wanted, "{route}");
            Ok(Some(()))
        })
        .unwrap();
    };
    wait_for("the missing address to be told of", 10, || {
        let status = node.ask(&["status"])?.to_string();
        ensure!(
            status.contains("lo is off, or has no global address"),
            "{status}"
        );
        Ok(Some(()))
    })
    .unwrap();
    for (prefix, address) in [
        ("10.9.9.1/32", "10.9.9.1/32"),
        ("fd09::1/128", "fd09::1/64"),
    ] {
        node.netns
            .ip(&format!("addr add {address} dev lo"))
            .unwrap();
        is_told(prefix, true);
        node.netns
            .ip(&format!("addr del {address} dev lo"))
            .unwrap();
        is_told(prefix, false);
    }
    // One that is there all the time, on a device that is switched off.
    node.netns
        .ip("link add fl-own type veth peer name fl-own2")
        .unwrap();
    node.netns.ip("addr add 10.9.9.2/32 dev fl-own").unwrap();
    node.netns.ip("link set fl-own up").unwrap();
    let named = both.replace("name: lo }", "name: fl-own }");
    node.put("bgp.yaml", &named).unwrap();
    is_told("10.9.9.2/32", true);
    node.netns.ip("link set fl-own down").unwrap();
    is_told("10.9.9.2/32", false);
}

#[test]
fn a_router_that_dials_from_a_range_is_a_peer_and_hears_what_the_range_is_told() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-range").unwrap();
    let node = &lab.nodes[0];
    let profile = |asns: &str| {
        format!(
            "apiVersion: fairlead.io/v1alpha1\nkind: BGPPeerProfile\nmetadata: {{ name: racks }}\n\
             spec:\n  nodeSelector: {{ matchLabels: {{ rack: rack1 }} }}\n  \
             range: {{ prefixLength: 28, asns: [{asns}], limit: 4 }}\n"
        )
    };
    node.put("profile.yaml", &profile("64999")).unwrap();
    let ranged = documents("", "65001:7")
        .replace("localASN: 65001", "localASN: 65001\n      localPort: 179")
        .replace(
            "peerASN: 65000, peerAddress: 10.0.1.1,",
            "peerAddress: 10.0.1.0,",
        );
    node.put("bgp.yaml", &ranged).unwrap();
    let events = |what: &str| {
        wait_for(what, 30, || {
            let events = node.ask(&["bgp", "events"])?.to_string();
            ensure!(events.contains(what), "{events}");
            Ok(Some(()))
        })
        .unwrap();
    };
    // It is of another AS than the range wants.
    events("sent 2/2 Bad Peer AS");
    node.put("profile.yaml", &profile("64999, 65000")).unwrap();
    wait_for("the router to be let in and to be told", 60, || {
        let path = lab
            .frr
            .json("show bgp ipv4 unicast 10.1.1.0/24")?
            .to_string();
        ensure!(path.contains("65001:7"), "{path}");
        let shown = node.ask(&["bgp", "neighbor", "10.0.1.1"])?;
        ensure!(shown[0]["state"] == "Established", "{shown:#}");
        ensure!(
            shown[0]["families"][0]["accepted"].as_u64() > Some(0),
            "{shown:#}"
        );
        ensure!(shown[0]["range"] == "10.0.1.0", "{shown:#}");
        ensure!(shown[0]["peerAsn"] == 65000, "{shown:#}");
        Ok(Some(()))
    })
    .unwrap();

    // Without the profile its address is a peer of its own, at which nobody is.
    std::fs::remove_file(node.manifests().join("profile.yaml")).unwrap();
    wait_for("the router to be let go", 20, || {
        let peers = node.ask(&["bgp", "peers"])?;
        let addresses: Vec<_> = peers
            .as_array()
            .unwrap()
            .iter()
            .map(|p| &p["address"])
            .collect();
        ensure!(addresses == ["10.0.1.0"], "{peers:#}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn what_a_node_has_of_a_pool_of_pod_addresses_is_told_while_it_has_it() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-pools").unwrap();
    let node = &lab.nodes[0];
    let told = documents("", "65001:7")
        .replace(
            "    - advertisementType: Service",
            "    - advertisementType: CiliumPodIPPool\n      selector: { matchLabels: { colour: blue } }\n      \
             attributes: { communities: { standard: [\"65001:9\"] } }\n    - advertisementType: Service",
        )
        .replace(
            "{ afi: ipv6, safi: unicast }",
            "{ afi: ipv6, safi: unicast, advertisements: { matchLabels: { advertise: bgp } } }",
        );
    node.put("bgp.yaml", &told).unwrap();
    wait_for("the missing CiliumNode to be told of", 10, || {
        let status = node.ask(&["status"])?.to_string();
        ensure!(status.contains("there is no CiliumNode node1"), "{status}");
        Ok(Some(()))
    })
    .unwrap();
    let pools = |labels: &str| {
        format!(
            "apiVersion: cilium.io/v2alpha1\nkind: CiliumPodIPPool\nmetadata: {{ name: blue, labels: {{ {labels} }} }}\n\
             spec: {{ ipv4: {{ cidrs: [10.20.0.0/16], maskSize: 24 }}, ipv6: {{ cidrs: ['fd20::/104'], maskSize: 112 }} }}\n"
        )
    };
    let shares = |cidrs: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {{ name: node1 }}\n\
             spec: {{ ipam: {{ pools: {{ allocated: [{{ pool: blue, cidrs: [{cidrs}] }}] }} }} }}\n"
        )
    };
    let is_told = |prefix: &str, is_wanted: bool| {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        wait_for(&format!("{prefix}: told {is_wanted}"), 20, || {
            let route = lab
                .frr
                .json(&format!("show bgp {family} unicast {prefix}"))?;
            let paths = route["paths"].as_array();
            let ours = paths.and_then(|paths| paths.first());
            let marked = ours.is_some_and(|path| path["community"]["string"] == "65001:9");
            ensure!(
                marked == is_wanted && ours.is_some() == is_wanted,
                "{route}"
            );
            Ok(Some(()))
        })
        .unwrap();
    };
    node.put("pool.yaml", &pools("colour: blue")).unwrap();
    node.put("share.yaml", &shares("10.20.1.0/24, 'fd20::1:0/112'"))
        .unwrap();
    is_told("10.20.1.0/24", true);
    is_told("fd20::1:0/112", true);
    let status = node.ask(&["status"]).unwrap().to_string();
    assert!(!status.contains("CiliumNode"), "{status}");

    // The operator gives it another prefix, and takes one back.
    node.put("share.yaml", &shares("10.20.2.0/24, 'fd20::1:0/112'"))
        .unwrap();
    is_told("10.20.2.0/24", true);
    is_told("10.20.1.0/24", false);
    is_told("fd20::1:0/112", true);
    // The pool is no longer one that is told.
    node.put("pool.yaml", &pools("colour: red")).unwrap();
    is_told("10.20.2.0/24", false);
    is_told("fd20::1:0/112", false);
}
