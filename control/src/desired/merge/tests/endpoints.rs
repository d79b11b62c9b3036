//! Who serves a frontend: homes, readiness, ports, families, topology.

use super::{NODE, SLICE, WEB, backend, desired, frontend, merge_texts, only, outside, said};
use std::collections::BTreeSet;

use crate::desired::{Backend, BackendAddr, Desired, Home, Scope};

/// The backends of the one service as `address:port home`.
fn homes(desired: &Desired) -> Vec<String> {
    let service = &desired.services[&frontend("192.0.2.10", 80)];
    let all = service.backends.iter();
    all.map(|(at, one)| format!("{at} {:?}", one.home))
        .collect()
}

fn slice(endpoints: &str) -> String {
    let (head, _) = SLICE.split_once("endpoints:").unwrap();
    format!("{head}endpoints:\n{endpoints}")
}

#[test]
fn a_backend_is_at_home_where_its_node_is() {
    let endpoints = "- {addresses: [10.1.1.1], nodeName: node1}
- {addresses: [10.1.2.1], nodeName: node2}
- {addresses: [10.1.3.1]}
- {addresses: [10.1.4.1], nodeName: ''}
- {addresses: [10.0.1.2]}
";

    let desired = desired(&[NODE, WEB, &slice(endpoints)]);

    assert_eq!(
        homes(&desired),
        [
            "10.0.1.2:80 Here",
            "10.1.1.1:80 Here",
            "10.1.2.1:80 Elsewhere",
            "10.1.3.1:80 Bare",
            "10.1.4.1:80 Bare",
        ]
    );
    assert_eq!(desired.conditions, []);
}

#[test]
fn backends_on_nodes_listen_on_any_port() {
    let slice = SLICE
        .replace("port: 80", "port: 8080")
        .replace("{addresses", "{nodeName: node1, addresses");

    let desired = desired(&[NODE, WEB, &slice]);

    assert_eq!(
        homes(&desired),
        [
            "10.1.1.10:8080 Here",
            "10.1.2.10:8080 Here",
            "10.1.3.10:8080 Here"
        ]
    );
    assert_eq!(desired.conditions, []);
}

#[test]
fn an_endpoint_is_ready_and_serving_as_kubernetes_reads_its_conditions() {
    for (conditions, ready, serving) in [
        ("", true, true),
        ("ready: true", true, true),
        ("ready: false", false, false),
        (
            "ready: false, serving: true, terminating: true",
            false,
            true,
        ),
        (
            "ready: false, serving: false, terminating: true",
            false,
            false,
        ),
        // A contradiction: kube-proxy does not use it either.
        ("ready: false, serving: true", false, false),
        ("ready: true, serving: true, terminating: true", true, true),
    ] {
        let one = format!("- {{addresses: [10.1.1.10], conditions: {{{conditions}}}}}\n");

        let desired = desired(&[NODE, WEB, &slice(&one)]);

        let service = &desired.services[&frontend("192.0.2.10", 80)];
        let found = service.backends[&backend("10.1.1.10")];
        assert_eq!(
            (found.ready, found.serving),
            (ready, serving),
            "{conditions}"
        );
    }
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_is_ready_when_one_says_so() {
    let other = slice("- {addresses: [10.1.3.10]}\n").replace("web-1", "web-2");

    let desired = desired(&[NODE, WEB, SLICE, &other]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert_eq!(service.backends.len(), 3);
    assert!(service.backends[&backend("10.1.3.10")].ready);
    assert_eq!(desired.conditions, []);
}

#[test]
fn an_endpoint_that_is_twice_in_a_slice_is_a_condition_and_counts_once() {
    let twice = slice("- {addresses: [10.1.1.10]}\n- {addresses: [10.1.1.10]}\n");

    let desired = desired(&[NODE, WEB, &twice]);

    assert_eq!(homes(&desired), ["10.1.1.10:80 Bare"]);
    assert_eq!(
        said(&desired, "DuplicateEndpoint"),
        ["10.1.1.10 is listed twice and counts once; remove one of the two"]
    );
}

#[test]
fn backends_of_the_other_family_are_reached_by_a_tunnel() {
    let v6 = slice("- {addresses: ['fd00::1']}\n").replace("IPv4", "IPv6");
    for (forwarding, is_served) in [
        ("auto", false),
        ("dsr-l2", false),
        ("dsr-ipip", true),
        ("dsr-gue", true),
    ] {
        let web = WEB.replace(
            "labels:",
            &format!("annotations: {{fairlead.io/forwarding: {forwarding}}}, labels:"),
        );

        let desired = desired(&[NODE, &web, &v6]);

        assert_eq!(
            homes(&desired).len(),
            usize::from(is_served),
            "{forwarding}"
        );
        let mismatches = said(&desired, "FamilyMismatch");
        // Said of both scopes.
        assert_eq!(mismatches.is_empty(), is_served, "{mismatches:?}");
    }
}

#[test]
fn the_other_family_is_used_only_where_the_own_has_no_endpoints() {
    let web = WEB.replace(
        "labels:",
        "annotations: {fairlead.io/forwarding: dsr-ipip}, labels:",
    );
    let v6 = slice("- {addresses: ['fd00::1']}\n")
        .replace("IPv4", "IPv6")
        .replace("web-1", "web-2");

    let desired = desired(&[NODE, &web, SLICE, &v6]);

    assert_eq!(homes(&desired).len(), 3);
}

#[test]
fn a_pod_of_the_other_family_is_out_of_reach() {
    let web = WEB.replace(
        "labels:",
        "annotations: {fairlead.io/forwarding: dsr-ipip}, labels:",
    );
    let v6 = slice("- {addresses: ['fd00::1'], nodeName: node2}\n").replace("IPv4", "IPv6");

    let desired = desired(&[NODE, &web, &v6]);

    assert!(homes(&desired).is_empty());
    assert_eq!(only(&desired).reason, "FamilyMismatch");
}

/// Weights of the backends of endpoints with these hints, in their order, for a node of zone `a`.
fn near(config: &str, endpoints: &[&str]) -> Vec<u32> {
    let node = NODE.replace("labels: {", "labels: {topology.kubernetes.io/zone: a, ");
    let lines: String = (1..)
        .zip(endpoints)
        .map(|(last, fields)| format!("- {{addresses: [10.1.1.{last}], {fields}}}\n"))
        .collect();
    let desired = merge_texts(config, &[&node, WEB, &slice(&lines)]);
    let (_, service) = outside(&desired).next().unwrap();
    service.backends.values().map(|one| one.weight).collect()
}

const ON: &str = "loadBalancer: {topologyAwareHints: true}";

#[test]
fn hints_are_not_followed_unless_configured() {
    let endpoints = [
        "hints: {forZones: [{name: a}]}",
        "hints: {forZones: [{name: b}]}",
    ];

    assert_eq!(near("", &endpoints), [1, 1]);
    assert_eq!(near(ON, &endpoints), [1, 0]);
}

#[test]
fn a_service_that_distributes_its_traffic_has_near_backends_for_clients_inside_only() {
    let node = NODE.replace("labels: {", "labels: {topology.kubernetes.io/zone: a, ");
    let lines = "- {addresses: [10.1.1.1], hints: {forZones: [{name: a}]}}\n\
                 - {addresses: [10.1.1.2], hints: {forZones: [{name: b}]}}\n";
    let web = WEB.replace("spec:", "spec:\n  trafficDistribution: PreferClose");

    let desired = desired(&[&node, &web, &slice(lines)]);

    let mut scopes = BTreeSet::new();
    for (frontend, service) in &desired.services {
        let weights: Vec<_> = service.backends.values().map(|one| one.weight).collect();
        let expected = match frontend.scope {
            Scope::Inside => [1, 0],
            Scope::Outside => [1, 1],
        };
        assert_eq!(weights, expected, "{frontend}");
        scopes.insert(frontend.scope);
    }
    assert_eq!(scopes.len(), 2);
}

#[test]
fn hints_count_only_when_every_ready_endpoint_has_them_and_one_is_near() {
    let table: [(&str, &[&str], &[u32]); 7] = [
        (
            "one has none",
            &["hints: {forZones: [{name: a}]}", "nodeName: node2"],
            &[1, 1],
        ),
        (
            "none is near",
            &[
                "hints: {forZones: [{name: b}]}",
                "hints: {forZones: [{name: c}]}",
            ],
            &[1, 1],
        ),
        (
            "one that is not ready has none",
            &[
                "hints: {forZones: [{name: a}]}",
                "conditions: {ready: false}",
            ],
            &[1, 1],
        ),
        (
            "one for both zones",
            &[
                "hints: {forZones: [{name: b}, {name: a}]}",
                "hints: {forZones: [{name: b}]}",
            ],
            &[1, 0],
        ),
        (
            "this node before its zone",
            &[
                "hints: {forNodes: [{name: node1}], forZones: [{name: a}]}",
                "hints: {forNodes: [{name: node2}], forZones: [{name: a}]}",
            ],
            &[1, 0],
        ),
        (
            "the zone where no hint names the node",
            &[
                "hints: {forNodes: [{name: node3}], forZones: [{name: a}]}",
                "hints: {forNodes: [{name: node2}], forZones: [{name: b}]}",
            ],
            &[1, 0],
        ),
        (
            "the near one is not ready",
            &[
                "hints: {forZones: [{name: a}]}, conditions: {ready: false, serving: true, terminating: true}",
                "hints: {forZones: [{name: b}]}",
            ],
            &[1, 1],
        ),
    ];
    for (what, endpoints, expected) in table {
        assert_eq!(near(ON, endpoints), expected, "{what}");
    }
}

#[test]
fn a_backend_that_is_not_near_still_serves_the_flows_it_has() {
    let far = Backend {
        ready: true,
        serving: true,
        weight: 0,
        home: Home::Bare,
    };
    let endpoints = "- {addresses: [10.1.1.1], hints: {forNodes: [{name: node1}]}}
- {addresses: [10.1.1.2], hints: {forNodes: [{name: node2}]}}
";

    let desired = merge_texts(ON, &[NODE, WEB, &slice(endpoints)]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    let at = BackendAddr {
        addr: "10.1.1.2".parse().unwrap(),
        port: 80,
    };
    assert_eq!(service.backends[&at], far);
}
