//! Pools of pod addresses: which are selected, and what of them is told.

use super::*;
use crate::desired::{Advertised, Family, PathAttributes, What};

const CLUSTER: &str = "
apiVersion: cilium.io/v2
kind: CiliumBGPClusterConfig
metadata: {name: cilium-bgp}
spec:
  bgpInstances:
  - name: main
    localASN: 65001
    peers: [{name: tor, peerASN: 65010, peerAddress: 10.0.0.1, peerConfigRef: {name: tor}}]
---
apiVersion: cilium.io/v2
kind: CiliumBGPPeerConfig
metadata: {name: tor}
spec:
  families:
  - {afi: ipv4, safi: unicast, advertisements: {matchLabels: {advertise: bgp}}}
  - {afi: ipv6, safi: unicast, advertisements: {matchLabels: {advertise: bgp}}}
";

/// Two pools, what three nodes have of them, and of one that is not there.
const POOLS: &str = "
apiVersion: cilium.io/v2alpha1
kind: CiliumPodIPPool
metadata: {name: blue, labels: {colour: blue}}
spec: {ipv4: {cidrs: [10.20.0.0/16], maskSize: 24}, ipv6: {cidrs: ['fd20::/104'], maskSize: 112}}
---
apiVersion: cilium.io/v2
kind: CiliumPodIPPool
metadata: {name: red}
spec: {ipv4: {cidrs: [10.30.0.0/16], maskSize: 24}, podSelector: {}}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: node1}
spec:
  addresses: [{type: InternalIP, ip: 10.0.1.2}]
  ipam:
    pools:
      requested: [{pool: blue, needed: {ipv4-addrs: 10}}]
      allocated:
      - {pool: blue, cidrs: [10.20.1.7/24, 'fd20::1:0/112']}
      - {pool: red, cidrs: [10.30.1.0/24]}
      - {pool: gone, cidrs: [10.40.1.0/24]}
      - {pool: blue, cidrs: [10.20.9.0/24]}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: node2}
spec: {ipam: {pools: {allocated: [{pool: red, cidrs: [10.30.2.0/24]}]}}}
";

fn advertisement(selector: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumBGPAdvertisement\nmetadata: {{name: pools, labels: {{advertise: bgp}}}}\n\
         spec:\n  advertisements:\n  - advertisementType: CiliumPodIPPool\n    {selector}\n    \
         attributes: {{communities: {{standard: ['65001:20']}}}}\n"
    )
}

/// What the one peer is told in both families, which is the same.
fn told(desired: &Desired) -> Vec<Advertised> {
    let router = desired.routers.values().next().unwrap();
    let neighbor = router.neighbors.values().next().unwrap();
    let told = &neighbor.advertised;
    assert_eq!(told[&Family::Ipv4], told[&Family::Ipv6]);
    told[&Family::Ipv4].clone()
}

fn pool(name: &str, prefixes: &[&str], communities: &[u32]) -> Advertised {
    Advertised {
        what: What::Pool {
            name: name.to_owned(),
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
        },
        attributes: PathAttributes {
            communities: communities.iter().copied().collect(),
            ..PathAttributes::default()
        },
    }
}

/// `65001:20`.
const MARK: u32 = (65001 << 16) + 20;
const BLUE: [&str; 3] = ["10.20.1.0/24", "10.20.9.0/24", "fd20::1:0/112"];
const RED: [&str; 1] = ["10.30.1.0/24"];

#[test]
fn an_advertisement_tells_what_this_node_has_of_the_pools_that_it_selects() {
    let blue = || pool("blue", &BLUE, &[MARK]);
    let red = || pool("red", &RED, &[MARK]);
    for (selector, expected) in [
        ("selector: {matchLabels: {colour: blue}}", vec![blue()]),
        ("selector: {}", vec![blue(), red()]),
        (
            "selector: {matchLabels: {io.cilium.podippool.name: red}}",
            vec![red()],
        ),
        (
            "selector: {matchExpressions: [{key: io.cilium.podippool.name, operator: NotIn, values: [red]}]}",
            vec![blue()],
        ),
        (
            "selector: {matchExpressions: [{key: io.cilium.podippool.namespace, operator: Exists}]}",
            vec![blue(), red()],
        ),
    ] {
        let desired = desired(&[NODE, CLUSTER, POOLS, &advertisement(selector)]);
        assert_eq!(desired.conditions, [], "{selector}");
        assert_eq!(told(&desired), expected, "{selector}");
    }
}

#[test]
fn pools_of_which_nothing_can_be_told_are_a_condition() {
    let none = "selector: {matchLabels: {colour: green}}";
    let all = "selector: {}";
    let elsewhere = POOLS.replace("name: node1", "name: node3");
    for (pools, selector, reason, says) in [
        (
            POOLS,
            none,
            "NoPodIPPool",
            "CiliumPodIPPool: its selector selects no CiliumPodIPPool that is there; nothing of it is advertised",
        ),
        (
            POOLS,
            "",
            "NoPodIPPool",
            "CiliumPodIPPool: it has no selector, which selects no CiliumPodIPPool; write selector: {} for all; nothing of it is advertised",
        ),
        (
            &elsewhere,
            all,
            "CiliumNodeMissing",
            "CiliumPodIPPool: there is no CiliumNode node1, which Cilium's operator writes in IPAM mode multi-pool, to say what this node has of its pools; nothing of it is advertised",
        ),
    ] {
        let desired = desired(&[NODE, CLUSTER, pools, &advertisement(selector)]);
        let condition = only(&desired);
        assert_eq!(condition.object, "CiliumBGPAdvertisement pools");
        assert_eq!((&*condition.reason, &*condition.message), (reason, says));
        assert_eq!(told(&desired), []);
    }
    // A pool of which this node has nothing is as it should be.
    let nothing = POOLS.replace("pool: red, cidrs: [10.30.1.0/24]", "pool: red");
    let only_red = "selector: {matchLabels: {io.cilium.podippool.name: red}}";
    let desired = desired(&[NODE, CLUSTER, &nothing, &advertisement(only_red)]);
    assert_eq!(desired.conditions, []);
    assert_eq!(told(&desired), [pool("red", &[], &[MARK])]);
}

#[test]
fn a_policy_tells_its_pools_and_marks_each_as_it_says_of_it() {
    let policy = POLICY
        .replace("exportPodCIDR: true", "podIPPoolSelector: {}")
        .replace("    serviceSelector: {matchLabels: {app: web}}\n", "")
        .replace(
            "peerASN: 65010}",
            "peerASN: 65010, advertisedPathAttributes: [\
             {selectorType: CiliumPodIPPool, selector: {matchLabels: {colour: blue}}, communities: {standard: ['1']}},\
             {selectorType: CiliumPodIPPool, communities: {standard: ['2']}},\
             {selectorType: PodCIDR, communities: {standard: ['3']}}]}",
        );
    let desired = desired(&[NODE, &policy, POOLS]);
    assert_eq!(desired.conditions, []);
    assert_eq!(
        told(&desired),
        [pool("blue", &BLUE, &[1, 2]), pool("red", &RED, &[2])]
    );
}

#[test]
fn of_a_cilium_node_that_cannot_be_read_it_is_said_where() {
    let wrong = POOLS.replace("10.30.1.0/24", "10.30.1/33");
    let desired = desired(&[NODE, CLUSTER, &wrong, &advertisement("selector: {}")]);
    let reasons: Vec<_> = desired.conditions.iter().map(|c| &*c.reason).collect();
    assert_eq!(reasons, ["CiliumNodeMissing", "Unreadable"]);
    let said = &desired.conditions[1];
    assert_eq!(said.object, "CiliumNode node1");
    assert!(
        said.message
            .starts_with("spec.ipam.pools.allocated[1].cidrs[0]: invalid"),
        "{said:?}"
    );
}
