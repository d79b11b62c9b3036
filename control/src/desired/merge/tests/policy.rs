//! What services ask for: traffic policies, affinity, source ranges, annotations.

use std::time::Duration;

use super::{NODE, SLICE, WEB, desired, frontend, only, said};
use crate::desired::{Desired, Forwarding, Frontend, Scope, Service};

/// Backends of this node, of another one, and of none.
const SPREAD: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
- {addresses: [10.1.1.10], nodeName: node1}
- {addresses: [10.1.2.10], nodeName: node2}
- {addresses: [10.1.3.10]}
";

fn web(fields: &str) -> String {
    format!("{WEB}  clusterIP: 10.96.0.1\n  {fields}\n")
}

fn at(addr: &str, scope: Scope) -> Frontend {
    Frontend {
        scope,
        ..frontend(addr, 80)
    }
}

/// The addresses of a frontend's backends.
fn backends(desired: &Desired, addr: &str, scope: Scope) -> Vec<String> {
    let service = &desired.services[&at(addr, scope)];
    service
        .backends
        .keys()
        .map(|at| at.addr.to_string())
        .collect()
}

const ALL: [&str; 3] = ["10.1.1.10", "10.1.2.10", "10.1.3.10"];

#[test]
fn external_policy_local_keeps_clients_outside_on_this_nodes_backends() {
    let desired = desired(&[NODE, &web("externalTrafficPolicy: Local"), SPREAD]);

    assert_eq!(
        backends(&desired, "192.0.2.10", Scope::Outside),
        ["10.1.1.10"]
    );
    assert_eq!(backends(&desired, "192.0.2.10", Scope::Inside), ALL);
    assert_eq!(backends(&desired, "10.96.0.1", Scope::Inside), ALL);
    assert_eq!(desired.conditions, []);
}

#[test]
fn internal_policy_local_keeps_clients_of_the_cluster_address_on_this_nodes_backends() {
    let desired = desired(&[NODE, &web("internalTrafficPolicy: Local"), SPREAD]);

    assert_eq!(
        backends(&desired, "10.96.0.1", Scope::Inside),
        ["10.1.1.10"]
    );
    assert_eq!(backends(&desired, "192.0.2.10", Scope::Inside), ALL);
    assert_eq!(backends(&desired, "192.0.2.10", Scope::Outside), ALL);
}

#[test]
fn a_node_without_a_backend_of_a_local_service_has_the_row_and_no_backend() {
    let slice = SPREAD.replace("node1", "node3");

    let desired = desired(&[NODE, &web("externalTrafficPolicy: Local"), &slice]);

    assert!(backends(&desired, "192.0.2.10", Scope::Outside).is_empty());
}

#[test]
fn a_health_check_port_counts_this_nodes_ready_backends() {
    let web = web("externalTrafficPolicy: Local\n  healthCheckNodePort: 32000");
    let count = |slice: &str| {
        let desired = desired(&[NODE, &web, slice]);
        let check = &desired.health_checks[&32000];
        assert_eq!(check.object.to_string(), "default/web");
        check.local_endpoints
    };

    assert_eq!(count(SPREAD), 1);
    assert_eq!(count(&SPREAD.replace("node1", "node3")), 0);
    let draining = SPREAD.replace(
        "nodeName: node1",
        "nodeName: node1, conditions: {ready: false, serving: true, terminating: true}",
    );
    assert_eq!(count(&draining), 0);
}

#[test]
fn only_local_load_balancers_are_asked_for_their_health() {
    for fields in [
        "healthCheckNodePort: 32000",
        "externalTrafficPolicy: Cluster\n  healthCheckNodePort: 32000",
        "externalTrafficPolicy: Local\n  healthCheckNodePort: 0",
    ] {
        let desired = desired(&[NODE, &web(fields), SPREAD]);

        assert!(desired.health_checks.is_empty(), "{fields}");
    }
}

#[test]
fn a_health_check_port_belongs_to_one_service() {
    let web = web("externalTrafficPolicy: Local\n  healthCheckNodePort: 32000");
    let other = web
        .replace("name: web", "name: zweb")
        .replace("192.0.2.10", "192.0.2.11")
        .replace("10.96.0.1", "10.96.0.2");
    let others = super::endpoints_of("zweb");

    let desired = desired(&[NODE, &web, SPREAD, &other, &others]);

    assert_eq!(desired.health_checks[&32000].object.name, "web");
    assert_eq!(only(&desired).reason, "HealthCheckConflict");
}

fn one(fields: &str) -> (Service, Desired) {
    let desired = desired(&[NODE, &web(fields), SLICE]);
    let service = desired.services[&at("192.0.2.10", Scope::Outside)].clone();
    (Service::clone(&service), desired)
}

#[test]
fn affinity_is_of_the_client_with_kubernetes_default_of_three_hours() {
    for (fields, expected) in [
        ("sessionAffinity: None", None),
        ("sessionAffinity: ClientIP", Some(10800)),
        (
            "sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            Some(60),
        ),
        (
            "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            None,
        ),
    ] {
        let (service, desired) = one(fields);

        assert_eq!(
            service.affinity,
            expected.map(Duration::from_secs),
            "{fields}"
        );
        assert_eq!(desired.conditions, []);
    }
}

fn ranges(service: &Service) -> Option<Vec<String>> {
    let ranges = service.source_ranges.as_ref()?;
    Some(ranges.iter().map(ToString::to_string).collect())
}

#[test]
fn source_ranges_are_for_clients_of_the_balancers_address() {
    let web =
        web("externalIPs: [192.0.2.11]\n  loadBalancerSourceRanges: [10.1.2.3/8, ' fd00::/8']");

    let desired = desired(&[NODE, &web, SLICE]);

    for (frontend, service) in &desired.services {
        let is_filtered = frontend.addr == at("192.0.2.10", Scope::Outside).addr;
        let expected = is_filtered.then(|| vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()]);
        assert_eq!(ranges(service), expected, "{frontend}");
    }
}

#[test]
fn a_range_that_is_not_understood_lets_nobody_in_and_the_others_hold() {
    let (service, desired) = one("loadBalancerSourceRanges: [10.0.0.0/8, anyone]");
    assert_eq!(ranges(&service), Some(vec!["10.0.0.0/8".to_owned()]));
    assert_eq!(only(&desired).reason, "SourceRangeUnreadable");
    assert!(
        only(&desired).message.starts_with(
            "spec.loadBalancerSourceRanges: \"anyone\" is not a prefix such as 10.0.0.0/8"
        ),
        "{:?}",
        desired.conditions
    );

    let (service, _) = one("loadBalancerSourceRanges: [anyone]");
    assert_eq!(ranges(&service), Some(Vec::new()));
    let (service, _) = one("loadBalancerSourceRanges: []");
    assert_eq!(ranges(&service), None);
}

fn annotated(annotation: &str) -> Desired {
    let web = WEB.replace(
        "labels: {app: web}",
        &format!("labels: {{app: web}}, annotations: {{{annotation}}}"),
    );
    assert_ne!(web, WEB);
    desired(&[NODE, &web, SLICE])
}

#[test]
fn forwarding_is_chosen_by_annotation() {
    for (text, expected) in [
        ("auto", Forwarding::Auto),
        ("dsr-l2", Forwarding::DsrL2),
        ("dsr-ipip", Forwarding::DsrIpip),
        ("dsr-gue", Forwarding::DsrGue),
        ("nat", Forwarding::Nat),
    ] {
        let desired = annotated(&format!("fairlead.io/forwarding: {text}"));

        assert!(
            desired
                .services
                .values()
                .all(|one| one.forwarding == expected)
        );
        assert_eq!(desired.conditions, []);
    }
}

#[test]
fn a_forwarding_that_is_not_known_leaves_the_default_in_force() {
    let desired = annotated("fairlead.io/forwarding: ipip");

    assert!(
        desired
            .services
            .values()
            .all(|one| one.forwarding == Forwarding::Auto)
    );
    assert_eq!(
        said(&desired, "ForwardingUnknown"),
        [
            "annotation fairlead.io/forwarding: unknown variant `ipip`, expected one of `auto`, `dsr-l2`, `dsr-ipip`, `dsr-gue`, `nat`; auto is in force"
        ]
    );
}

#[test]
fn weights_are_given_by_address() {
    let desired = annotated("fairlead.io/weights: '10.1.1.10=3, 10.1.2.10=0'");

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    let weights: Vec<_> = service.backends.values().map(|one| one.weight).collect();
    assert_eq!(weights, [3, 0, 1]);
    assert_eq!(desired.conditions, []);
}

#[test]
fn a_weight_that_cannot_be_read_has_no_effect_and_the_others_have() {
    for wrong in ["10.1.2.10", "10.1.2.10=-1", "10.1.2.10=65536", "web=3"] {
        let desired = annotated(&format!("fairlead.io/weights: '{wrong},10.1.1.10=3'"));

        let service = &desired.services[&frontend("192.0.2.10", 80)];
        let weights: Vec<_> = service.backends.values().map(|one| one.weight).collect();
        assert_eq!(weights, [3, 1, 1], "{wrong}");
        assert!(
            only(&desired).message.starts_with(&format!(
                "annotation fairlead.io/weights: {wrong:?} is not ADDRESS=WEIGHT"
            )),
            "{:?}",
            desired.conditions
        );
    }
}
