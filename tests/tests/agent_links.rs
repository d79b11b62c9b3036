//! Agents whose peers have no address: the router at the other end of a link, and the default gateway.

use anyhow::{Context as _, ensure};
use fairlead_tests::lab::Lab;
use fairlead_tests::netns::{STARTS, wait_for};
use fairlead_tests::root;

/// Node 1's instance with one peer, which is found in this way.
fn documents(discovery: &str) -> String {
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
      localPort: 179
      peers:
        - {{ name: router, peerASN: 65000, autoDiscovery: {discovery}, peerConfigRef: {{ name: router }} }}
---
apiVersion: cilium.io/v2
kind: CiliumBGPPeerConfig
metadata: {{ name: router }}
spec:
  timers: {{ connectRetryTimeSeconds: 1, holdTimeSeconds: 9, keepAliveTimeSeconds: 3 }}
  families:
    - {{ afi: ipv4, safi: unicast, advertisements: {{ matchLabels: {{ advertise: bgp }} }} }}
    - {{ afi: ipv6, safi: unicast, advertisements: {{ matchLabels: {{ advertise: bgp }} }} }}
---
apiVersion: cilium.io/v2
kind: CiliumBGPAdvertisement
metadata: {{ name: pods, labels: {{ advertise: bgp }} }}
spec:
  advertisements: [{{ advertisementType: PodCIDR }}]
"
    )
}

#[test]
fn a_router_at_the_other_end_of_a_link_is_a_peer_and_ipv4_goes_by_its_link_local_address() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-link").unwrap();
    let node = &lab.nodes[0];
    let unnumbered = documents("{ mode: Unnumbered, unnumbered: { interface: eth0 } }");
    node.put("bgp.yaml", &unnumbered).unwrap();
    wait_for("nobody to be found yet", 10, || {
        let status = node.ask(&["status"])?.to_string();
        ensure!(status.contains("NeighbourUnknown"), "{status}");
        Ok(Some(()))
    })
    .unwrap();

    lab.frr
        .configure(&[
            "router bgp 65000",
            "no neighbor 10.0.1.2",
            "neighbor node1 interface remote-as 65001",
            "neighbor node1 timers connect 1",
            "address-family ipv4 unicast",
            "neighbor node1 activate",
            "exit-address-family",
            "address-family ipv6 unicast",
            "neighbor node1 activate",
        ])
        .unwrap();
    for (family, prefix) in [("ipv4", "10.1.1.0/24"), ("ipv6", "fd00:1:1::/64")] {
        wait_for(&format!("the router to have {prefix}"), 40, || {
            let route = lab
                .frr
                .json(&format!("show bgp {family} unicast {prefix}"))?;
            let ours = route["paths"][0]["nexthops"][0]["ip"].to_string();
            ensure!(ours.contains("fe80:"), "{route}");
            Ok(Some(()))
        })
        .unwrap();
    }
    wait_for(
        "the kernel to have the router's IPv4 routes by its link-local address",
        20,
        || {
            let routes = node.netns.run("ip -4 route show proto 208")?;
            let row = routes.lines().find(|line| line.starts_with("192.0.2.0/24"));
            ensure!(
                row.is_some_and(|row| row.contains("via inet6 fe80:") && row.contains("dev eth0")),
                "{routes}"
            );
            let routes = node.netns.run("ip -6 route show proto 208")?;
            let row = routes
                .lines()
                .find(|line| line.starts_with("2001:db8:c::/64"));
            ensure!(
                row.is_some_and(|row| row.contains("via fe80:") && row.contains("dev eth0")),
                "{routes}"
            );
            Ok(Some(()))
        },
    )
    .unwrap();
    // From a pod to a client and back, by the datapath.
    for client in ["192.0.2.2", "2001:db8:c::2"] {
        wait_for(&format!("a pod to reach {client}"), 10, || {
            let answered = node.pod.run(&format!("ping -c 1 -W 1 {client}"));
            Ok(answered.is_ok().then_some(()))
        })
        .unwrap();
    }

    node.put("bgp.yaml", "").unwrap();
    wait_for("its routes to go", 10, || {
        let routes = node.netns.run("ip -4 route show proto 208")?;
        ensure!(routes.is_empty(), "{routes}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn the_default_gateway_is_a_peer_and_another_one_takes_its_place() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-gate").unwrap();
    let node = &lab.nodes[0];
    let by_gateway = documents("{ mode: DefaultGateway, defaultGateway: { addressFamily: ipv4 } }");
    node.put("bgp.yaml", &by_gateway).unwrap();
    let peers = |expected: &[&str]| {
        wait_for(&format!("peers {expected:?}"), STARTS, || {
            let peers = node.ask(&["bgp", "peers"])?;
            let all = peers.as_array().map_or(&[][..], Vec::as_slice);
            let found: Vec<_> = all
                .iter()
                .map(|peer| peer["address"].as_str().unwrap_or_default())
                .collect();
            ensure!(found == expected, "{peers}");
            Ok(Some(()))
        })
        .unwrap();
    };
    peers(&[]);
    let status = node.ask(&["status"]).unwrap().to_string();
    assert!(status.contains("NoDefaultGateway"), "{status}");

    node.netns.ip("route add default via 10.0.1.1").unwrap();
    peers(&["10.0.1.1"]);
    wait_for("the router to have the pods", STARTS, || {
        let route = lab.frr.json("show bgp ipv4 unicast 10.1.1.0/24")?;
        let ours = route["paths"].to_string();
        ensure!(ours.contains("10.0.1.2"), "{route}");
        Ok(Some(()))
    })
    .unwrap();

    node.netns.ip("route replace default via 10.0.1.9").unwrap();
    peers(&["10.0.1.9"]);
    node.netns.ip("route del default").unwrap();
    peers(&[]);
}

#[test]
fn what_leads_packets_another_way_begins_another_epoch() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-epoch").unwrap();
    let node = &lab.nodes[0];
    let epoch = || -> anyhow::Result<u64> {
        let rows = node.ask(&["maps", "get", "WAY_EPOCH", "0"])?;
        rows[0]["value"]
            .as_u64()
            .with_context(|| format!("no number in {rows}"))
    };
    assert_ne!(epoch().unwrap(), 0);

    for change in [
        "ip route add blackhole 198.18.7.0/24",
        "ip -6 route add blackhole fd00:77::/64",
        "ip rule add from 198.18.7.1 lookup main",
        "ip -6 rule add from fd00:77::1 lookup main",
        "ip neigh replace 10.0.1.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
        "ip neigh replace 10.0.1.77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent",
        "ip neigh del 10.0.1.77 dev eth0",
        "ip link set eth0 mtu 1400",
    ] {
        let before = epoch().unwrap();
        node.netns.run(change).unwrap();
        wait_for(
            &format!("another epoch than {before} after {change}"),
            5,
            || Ok((epoch()? != before).then_some(())),
        )
        .unwrap();
    }
    wait_for("the table to say what eth0 takes", 5, || {
        let rows = node.ask(&["maps", "dump", "DEVICES"])?.to_string();
        Ok(rows.contains("\"mtu\":1400").then_some(()))
    })
    .unwrap();
}
