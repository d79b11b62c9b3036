mod changes;
mod endpoints;
mod instances;
mod places;
mod policy;
mod pools;
mod profiles;
mod services;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Proto;

use super::*;
use crate::desired::surroundings::Surroundings;
use crate::desired::{BackendAddr, Family, Frontend, Scope, Service, What};
use crate::source::resource::{join, read};

const NODE: &str = r"
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {rack: rack0}}
spec: {podCIDR: 10.1.1.0/24, podCIDRs: [10.1.1.0/24, 'fd01:1::/64']}
status: {addresses: [{type: Hostname, address: node1}, {type: InternalIP, address: 10.0.1.2}, {type: InternalIP, address: 'fd00::2'}]}
";

const WEB: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  type: LoadBalancer
  loadBalancerIP: 192.0.2.10
  ports: [{name: http, port: 80}]
";

const SLICE: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
- {addresses: [10.1.1.10]}
- {addresses: [10.1.2.10], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.3.10], conditions: {ready: false}}
";

const POLICY: &str = r"
apiVersion: cilium.io/v2alpha1
kind: CiliumBGPPeeringPolicy
metadata: {name: rack0}
spec:
  nodeSelector: {matchLabels: {rack: rack0}}
  virtualRouters:
  - localASN: 65010
    exportPodCIDR: true
    serviceSelector: {matchLabels: {app: web}}
    neighbors: [{peerAddress: 10.0.0.1/32, peerASN: 65010}]
";

fn merge_texts(config: &str, texts: &[&str]) -> Desired {
    let config = crate::config::load::parse(config, std::path::Path::new("config.yaml")).unwrap();
    let readings = texts
        .iter()
        .enumerate()
        .map(|(index, text)| read(&format!("{index}.yaml"), text).unwrap());
    merge(&join(readings), &config, "node1", Some(&around()))
}

/// A link with a router, one with two, one with none, and default routes.
fn around() -> Surroundings {
    let router = |last: u16| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
    Surroundings {
        devices: [("eth0", 2), ("eth1", 3), ("eth2", 4)]
            .map(|(name, index)| (name.to_owned(), index))
            .into(),
        addresses: [
            ("eth1".to_owned(), vec!["2001:db8::7".parse().unwrap()]),
            (
                "eth2".to_owned(),
                vec![
                    "2001:db8::8".parse().unwrap(),
                    [192, 0, 2, 8].into(),
                    [192, 0, 2, 9].into(),
                ],
            ),
        ]
        .into(),
        gateways: [
            (Family::Ipv4, (IpAddr::from([192, 0, 2, 1]), 2)),
            (Family::Ipv6, (router(1).into(), 2)),
        ]
        .into(),
        routers: [(2, [router(1)].into()), (3, [router(1), router(2)].into())].into(),
    }
}

fn desired(texts: &[&str]) -> Desired {
    merge_texts("", texts)
}

fn frontend(addr: &str, port: u16) -> Frontend {
    Frontend {
        addr: addr.parse().unwrap(),
        port,
        proto: Proto::TCP,
        scope: Scope::Outside,
    }
}

fn backend(addr: &str) -> BackendAddr {
    BackendAddr {
        addr: addr.parse().unwrap(),
        port: 80,
    }
}

/// The services that clients outside reach.
fn outside(desired: &Desired) -> impl Iterator<Item = (&Frontend, &Arc<Service>)> {
    let all = desired.services.iter();
    all.filter(|(frontend, _)| frontend.scope == Scope::Outside)
}

/// The slice of another service.
fn endpoints_of(service: &str) -> String {
    SLICE
        .replace("name: web-1", &format!("name: {service}-1"))
        .replace("service-name: web", &format!("service-name: {service}"))
}

/// What the conditions with a reason say.
fn said<'a>(desired: &'a Desired, reason: &str) -> Vec<&'a str> {
    let with = desired.conditions.iter().filter(|c| c.reason == reason);
    with.map(|condition| condition.message.as_str()).collect()
}

/// The one condition of a merge.
fn only(desired: &Desired) -> &Condition {
    let [condition] = &desired.conditions[..] else {
        panic!("{:?}", desired.conditions);
    };
    condition
}

#[test]
fn this_node_is_found_by_its_name() {
    let other = NODE
        .replace("node1", "node2")
        .replace("10.0.1.2", "10.0.2.2");

    let desired = desired(&[NODE, &other]);

    assert_eq!(desired.conditions, []);
    assert_eq!(desired.node.ipv4, Some(Ipv4Addr::new(10, 0, 1, 2)));
    assert_eq!(desired.node.ipv6, Some("fd00::2".parse().unwrap()));
    assert_eq!(desired.node.pod_cidrs.len(), 2);
}

#[test]
fn a_node_without_its_object_says_so_and_still_balances() {
    let desired = desired(&[WEB, SLICE, POLICY]);

    assert_eq!(only(&desired).reason, "NodeMissing");
    assert_eq!(
        only(&desired).message,
        "this node has no Node object, so it has no pods and no BGP; add one or set nodeName"
    );
    assert!(desired.routers.is_empty());
    assert_eq!(outside(&desired).count(), 1);
}

#[test]
fn a_policy_that_selects_the_node_makes_its_routers() {
    let other = POLICY
        .replace("name: rack0", "name: rack1")
        .replace("rack: rack0", "rack: rack1");

    let desired = desired(&[NODE, POLICY, &other]);

    assert_eq!(desired.conditions, []);
    let router = &desired.routers["65010"];
    assert_eq!((router.router_id, router.local_port), (None, None));
    let neighbor = &router.neighbors[&("10.0.0.1".parse().unwrap(), 179)];
    assert_eq!(neighbor.asn, 65010);
    assert_eq!(neighbor.hold, Duration::from_secs(90));
    for family in [Family::Ipv4, Family::Ipv6] {
        let told = &neighbor.advertised[&family];
        assert_eq!(told[0].what, What::PodCidrs);
        assert!(matches!(told[1].what, What::Services { .. }));
    }
    assert_eq!(neighbor.graceful_restart, None);
}

#[test]
fn a_policy_without_a_selector_is_for_every_node() {
    let policy = POLICY.replace("  nodeSelector: {matchLabels: {rack: rack0}}\n", "");

    assert_eq!(desired(&[NODE, &policy]).routers.len(), 1);
}

#[test]
fn of_two_policies_for_one_node_none_is_applied() {
    let desired = desired(&[NODE, POLICY, &POLICY.replace("name: rack0", "name: twin")]);

    assert!(desired.routers.is_empty());
    assert_eq!(desired.conditions.len(), 2);
    assert_eq!(
        desired.conditions[0].message,
        "rack0, twin all select node node1, so none is applied; narrow their nodeSelector"
    );
}

#[test]
fn the_annotation_gives_router_id_and_port() {
    let node = NODE.replace(
        "labels: {rack: rack0}",
        "labels: {rack: rack0}, annotations: {cilium.io/bgp-virtual-router.65010: 'router-id=10.9.9.9,local-port=179'}",
    );

    let desired = desired(&[&node, POLICY]);

    let router = &desired.routers["65010"];
    assert_eq!(router.router_id, Some(Ipv4Addr::new(10, 9, 9, 9)));
    assert_eq!(router.local_port, Some(179));
}

#[test]
fn a_wrong_part_of_the_annotation_is_named_and_the_rest_holds() {
    let node = NODE.replace(
        "labels: {rack: rack0}",
        "labels: {rack: rack0}, annotations: {cilium.io/bgp-virtual-router.65010: 'router-id=x,local-port=179'}",
    );

    let desired = desired(&[&node, POLICY]);

    assert_eq!(desired.routers["65010"].local_port, Some(179));
    assert_eq!(
        only(&desired).message,
        "annotation cilium.io/bgp-virtual-router.65010: \"router-id=x\" is ignored; write router-id=A.B.C.D or local-port=1..65535"
    );
}

#[test]
fn what_a_policy_asks_for_and_does_not_get_is_said() {
    let with =
        |field: &str| POLICY.replace("peerASN: 65010}", &format!("peerASN: 65010, {field}}}"));
    let routers =
        |field: &str| POLICY.replace("    exportPodCIDR: true\n", &format!("    {field}\n"));
    let twice = POLICY.replace(
        "peerASN: 65010}",
        "peerASN: 65010}, {peerAddress: 10.0.0.1/32, peerPort: 1790, peerASN: 1}",
    );
    for (policy, peers, says) in [
        (
            with("authSecretRef: s"),
            0,
            "virtual router 65010: peer 10.0.0.1: Secret kube-system/s is not there; there is no session without its password",
        ),
        (
            with("families: [{afi: l2vpn, safi: evpn}]"),
            0,
            "peer 10.0.0.1: l2vpn evpn is not spoken; use ipv4 unicast and ipv6 unicast",
        ),
        (
            with("advertisedPathAttributes: [{selectorType: CiliumLoadBalancerIPPool}]"),
            1,
            "peer 10.0.0.1: advertisedPathAttributes of CiliumLoadBalancerIPPool are not acted on yet",
        ),
        (
            routers("podIPPoolSelector: {}"),
            1,
            "podIPPoolSelector: there is no CiliumNode node1",
        ),
        (twice, 1, "peer 10.0.0.1 is listed twice; the first is used"),
    ] {
        let desired = desired(&[NODE, &policy]);

        assert_eq!(desired.routers["65010"].neighbors.len(), peers);
        assert!(
            only(&desired).message.contains(says),
            "{:?}",
            desired.conditions
        );
        assert_eq!(only(&desired).origin, "1.yaml:2");
    }
}

#[test]
fn a_peers_password_comes_from_its_secret() {
    let policy = POLICY.replace("peerASN: 65010}", "peerASN: 65010, authSecretRef: bgp}");
    let secret = |at: &str, content: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp{at}}}\n{content}\n")
    };
    let there = ", namespace: kube-system";
    let of = |config: &str, secret: &str| merge_texts(config, &[NODE, &policy, secret]);
    let password = |desired: &Desired| {
        let neighbors = &desired.routers["65010"].neighbors;
        neighbors
            .values()
            .next()
            .map(|n| n.password.clone().unwrap().octets().to_vec())
    };
    for (config, at, content) in [
        ("", there, "data: {password: aHVudGVyMg==}"),
        ("", there, "stringData: {password: hunter2}"),
        (
            "",
            there,
            "data: {password: eA==}\nstringData: {password: hunter2}",
        ),
        (
            "bgp: {secretsNamespace: bgp}",
            ", namespace: bgp",
            "data: {password: aHVudGVyMg==}",
        ),
    ] {
        let desired = of(config, &secret(at, content));
        assert_eq!(
            password(&desired).as_deref(),
            Some(&b"hunter2"[..]),
            "{content}"
        );
        assert_eq!(desired.conditions, []);
    }
    for (at, content, says) in [
        (
            "",
            "data: {password: eA==}",
            "Secret kube-system/bgp is not there",
        ),
        (
            there,
            "data: {pass: eA==}",
            "Secret kube-system/bgp has no key `password`",
        ),
        (
            there,
            "data: {password: ''}",
            "`password` of Secret kube-system/bgp cannot be used: it is empty",
        ),
    ] {
        let desired = of("", &secret(at, content));
        assert_eq!(password(&desired), None, "{content}");
        assert_eq!(only(&desired).reason, "MissingAuthSecret");
        assert!(
            only(&desired).message.contains(says),
            "{:?}",
            desired.conditions
        );
    }
}

#[test]
fn pod_cidrs_carry_what_the_policy_attaches_for_this_node() {
    let attached = |entries: &str| {
        let policy = POLICY.replace(
            "peerASN: 65010}",
            &format!("peerASN: 65010, advertisedPathAttributes: [{entries}]}}"),
        );
        let desired = desired(&[NODE, &policy]);
        assert_eq!(desired.conditions, []);
        let neighbors = &desired.routers["65010"].neighbors;
        neighbors.values().next().unwrap().advertised[&Family::Ipv4][0]
            .attributes
            .clone()
    };
    let attributes = attached(
        "{selectorType: PodCIDR, communities: {standard: ['64512:1', '7'], wellKnown: [no-export], large: ['1:2:3']}, localPreference: 150}, \
         {selectorType: PodCIDR, selector: {matchLabels: {rack: rack0}}, localPreference: 200}",
    );
    assert_eq!(
        attributes.communities.into_iter().collect::<Vec<_>>(),
        [7, 64512 << 16 | 1, 0xFFFF_FF01]
    );
    assert_eq!(attributes.large_communities.len(), 1);
    assert_eq!(attributes.local_preference, Some(200));
    let others =
        "{selectorType: PodCIDR, selector: {matchLabels: {rack: rack9}}, localPreference: 200}";
    assert_eq!(attached(others), crate::desired::PathAttributes::default());
}

#[test]
fn a_node_without_ipv4_must_be_told_its_router_id() {
    let node = NODE.replace("{type: InternalIP, address: 10.0.1.2}, ", "");

    let desired = desired(&[&node, POLICY]);

    assert_eq!(
        only(&desired).message,
        "virtual router 65010: the node has no IPv4 address to be its router id; annotate it with cilium.io/bgp-virtual-router.65010: router-id=A.B.C.D"
    );
}

#[test]
fn pods_leave_under_the_configured_address_or_the_nodes_own() {
    let masquerade = "ipv4NativeRoutingCIDR: 10.0.0.0/8\nmasquerade: {enabled: true";
    let egress = |end: &str, node: &str| merge_texts(&format!("{masquerade}{end}}}"), &[node]);

    let own = egress("", NODE).egress.unwrap();
    assert_eq!(
        (own.address, own.is_node_address),
        (Ipv4Addr::new(10, 0, 1, 2), true)
    );
    let shared = egress(", egressAddress: 192.0.2.9", NODE).egress.unwrap();
    assert_eq!(
        (shared.address, shared.is_node_address),
        (Ipv4Addr::new(192, 0, 2, 9), false)
    );
    assert_eq!(desired(&[NODE]).egress, None);

    let nameless = egress(
        "",
        &NODE.replace("{type: InternalIP, address: 10.0.1.2}, ", ""),
    );
    assert_eq!(nameless.egress, None);
    assert_eq!(only(&nameless).reason, "NoEgressAddress");
    assert!(
        only(&nameless)
            .message
            .ends_with("add one or set masquerade.egressAddress")
    );
}
