//! Where services are reached, and by whom.

use std::net::IpAddr;

use super::{NODE, SLICE, WEB, desired, merge_texts, outside, said};
use crate::desired::{AddressKind, Desired, Scope};

/// Every frontend as it is printed, in its order.
fn frontends(desired: &Desired) -> Vec<String> {
    desired.services.keys().map(ToString::to_string).collect()
}

fn web(spec: &str) -> String {
    WEB.replace(
        "  type: LoadBalancer\n  loadBalancerIP: 192.0.2.10\n",
        &format!("  {spec}\n"),
    )
}

#[test]
fn a_cluster_address_is_for_clients_inside() {
    let web = web("clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd00:96::1']");

    let desired = desired(&[NODE, &web, SLICE]);

    assert_eq!(
        frontends(&desired),
        ["10.96.0.1:80/tcp inside", "[fd00:96::1]:80/tcp inside"]
    );
}

#[test]
fn the_first_cluster_address_is_enough() {
    let web = web("clusterIP: 10.96.0.1");

    assert_eq!(
        frontends(&desired(&[NODE, &web, SLICE])),
        ["10.96.0.1:80/tcp inside"]
    );
}

#[test]
fn balancer_and_external_addresses_are_for_clients_on_both_sides() {
    let web = WEB.replace(
        "  loadBalancerIP",
        "  externalIPs: [192.0.2.11]\n  loadBalancerIP",
    );

    assert_eq!(
        frontends(&desired(&[NODE, &web, SLICE])),
        [
            "192.0.2.10:80/tcp",
            "192.0.2.10:80/tcp inside",
            "192.0.2.11:80/tcp",
            "192.0.2.11:80/tcp inside",
        ]
    );
}

#[test]
fn a_cluster_address_that_bgp_announces_is_for_clients_outside_too() {
    let policy = super::POLICY.replace("exportPodCIDR: true", "serviceAdvertisements: [ClusterIP]");
    let web = web("clusterIP: 10.96.0.1");

    let announced = desired(&[NODE, &web, SLICE, &policy]);
    let other = web.replace("app: web", "app: other");
    let unselected = desired(&[NODE, &other, SLICE, &policy]);

    assert_eq!(
        frontends(&announced),
        ["10.96.0.1:80/tcp", "10.96.0.1:80/tcp inside"]
    );
    assert_eq!(announced.conditions, []);
    assert_eq!(frontends(&unselected), ["10.96.0.1:80/tcp inside"]);
}

/// A service with a node port and backends of named nodes.
fn node_port(spec: &str) -> (String, String) {
    let web = web(spec).replace("port: 80", "port: 80, nodePort: 30080");
    let slice = SLICE.replace("{addresses", "{nodeName: node2, addresses");
    (web, slice)
}

#[test]
fn a_node_port_is_served_at_the_nodes_internal_addresses_of_the_services_families() {
    for (families, expected) in [
        ("ipFamilies: [IPv4]", &["10.0.1.2"][..]),
        ("ipFamilies: [IPv6]", &["fd00::2"]),
        ("ipFamilies: [IPv4, IPv6]", &["10.0.1.2", "fd00::2"]),
        ("clusterIPs: ['fd00:96::1']", &["fd00::2"]),
        // Those of its slices.
        ("publishNotReadyAddresses: false", &["10.0.1.2"]),
    ] {
        let (web, slice) = node_port(&format!("type: NodePort\n  {families}"));

        let desired = desired(&[NODE, &web, &slice]);

        let found: Vec<_> = outside(&desired)
            .map(|(at, service)| {
                assert_eq!(at.port, 30080);
                assert!(service.address_kinds.contains(&AddressKind::Node));
                at.addr.to_string()
            })
            .collect();
        assert_eq!(found, expected, "{families}");
    }
}

#[test]
fn node_ports_are_for_clients_on_both_sides_and_lead_to_the_target_port() {
    let (web, slice) = node_port("type: NodePort");

    let desired = desired(&[NODE, &web, &slice]);

    assert_eq!(
        frontends(&desired),
        [
            "0.0.0.0:30080/tcp inside",
            "10.0.1.2:30080/tcp",
            "10.0.1.2:30080/tcp inside",
            "127.0.0.1:30080/tcp inside"
        ]
    );
    for service in desired.services.values() {
        assert!(service.backends.keys().all(|at| at.port == 80));
        assert_eq!(service.backends.len(), 3);
    }
    assert_eq!(desired.conditions, []);
}

#[test]
fn the_addresses_of_node_ports_are_configured_by_prefix() {
    let node = NODE.replace(
        "{type: Hostname, address: node1}",
        "{type: ExternalIP, address: 198.51.100.7}",
    );
    let (web, slice) = node_port("type: NodePort");
    let served = |prefixes: &str| -> Vec<String> {
        let config = format!("loadBalancer: {{nodePortAddresses: [{prefixes}]}}");
        let desired = merge_texts(&config, &[&node, &web, &slice]);
        let addrs = outside(&desired).map(|(at, _)| at.addr.to_string());
        addrs.collect()
    };

    assert_eq!(served("198.51.100.0/24"), ["198.51.100.7"]);
    assert_eq!(served("0.0.0.0/0"), ["10.0.1.2", "198.51.100.7"]);
    // An address that the Node object does not name.
    assert_eq!(served("203.0.113.1/32"), ["203.0.113.1"]);
    assert!(served("203.0.113.0/24").is_empty());
}

#[test]
fn a_type_without_node_ports_and_a_service_without_one_have_none() {
    let (cluster, slice) = node_port("type: ClusterIP\n  clusterIP: 10.96.0.1");
    let unallocated = WEB.replace(
        "  type: LoadBalancer",
        "  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false",
    );
    for web in [cluster, unallocated] {
        let desired = desired(&[NODE, &web, &slice]);

        assert!(desired.services.keys().all(|at| at.port == 80));
    }
}

#[test]
fn of_another_class_only_the_balancers_addresses_are_not_ours() {
    let web = WEB
        .replace(
            "  type: LoadBalancer",
            "  type: LoadBalancer\n  loadBalancerClass: example.com/other\n  clusterIP: 10.96.0.1\n  externalIPs: [192.0.2.11]",
        )
        .replace("port: 80", "port: 80, nodePort: 30080");
    let slice = SLICE.replace("{addresses", "{nodeName: node2, addresses");

    let desired = desired(&[NODE, &web, &slice]);

    assert_eq!(
        outside(&desired)
            .map(|(at, _)| at.to_string())
            .collect::<Vec<_>>(),
        ["10.0.1.2:30080/tcp", "192.0.2.11:80/tcp"]
    );
    let inside = desired
        .services
        .keys()
        .filter(|at| at.scope == Scope::Inside);
    assert_eq!(
        inside.map(|at| at.addr).collect::<Vec<IpAddr>>(),
        [
            "0.0.0.0",
            "10.0.1.2",
            "10.96.0.1",
            "127.0.0.1",
            "192.0.2.11"
        ]
        .map(|text| text.parse::<IpAddr>().unwrap())
    );
}

#[test]
fn an_ingress_of_mode_proxy_is_left_to_its_load_balancer() {
    let web = WEB.replace("  loadBalancerIP: 192.0.2.10\n", "")
        + "status: {loadBalancer: {ingress: [{ip: 192.0.2.12, ipMode: Proxy}, {ip: 192.0.2.13, ipMode: VIP}]}}\n";

    let desired = desired(&[NODE, &web, SLICE]);

    assert!(
        desired
            .services
            .keys()
            .all(|at| at.addr.to_string() == "192.0.2.13")
    );
    assert_eq!(desired.services.len(), 2);
}

#[test]
fn a_node_port_that_another_service_has_is_a_conflict_said_once() {
    let (web, slice) = node_port("type: NodePort");
    let other = web.replace("name: web", "name: zweb");
    let others = super::endpoints_of("zweb").replace("{addresses", "{nodeName: node2, addresses");

    let desired = desired(&[NODE, &web, &slice, &other, &others]);

    assert_eq!(
        said(&desired, "AddressConflict"),
        [
            "10.0.1.2:30080/tcp belongs to Service default/web, which is older or comes first by name; give one of them another address or port"
        ]
    );
    assert_eq!(desired.services.len(), 4);
}

#[test]
fn other_nodes_are_known_by_their_addresses_and_serve_by_themselves_where_the_policy_says_so() {
    let other = NODE
        .replace("name: node1", "name: node2")
        .replace("10.0.1.2", "10.0.1.3")
        .replace("fd00::2", "fd00::3");
    let (web, slice) = node_port("type: NodePort");
    let local = web.replace(
        "type: NodePort",
        "type: NodePort\n  externalTrafficPolicy: Local",
    );

    let shared = desired(&[NODE, &other, &web, &slice]);
    let alone = desired(&[NODE, &other, &local, &slice]);
    let config = "loadBalancer: {nodePortAddresses: [10.0.0.0/8]}";
    let narrowed = merge_texts(config, &[NODE, &other, &web, &slice]);

    let texts = |desired: &Desired| -> Vec<String> {
        desired
            .other_nodes
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(texts(&shared), ["10.0.1.3", "fd00::3"]);
    assert_eq!(texts(&narrowed), ["10.0.1.3"]);
    let at_others = |desired: &Desired| desired.services.keys().any(|at| at.addr.is_unspecified());
    assert!(at_others(&shared) && !at_others(&alone));
}
