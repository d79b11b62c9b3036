use std::net::Ipv4Addr;
use std::time::Duration;

use fairlead_common::addr::Proto;

use super::*;
use crate::desired::{AddressKind, Backend, BackendAddr, Family, Frontend};
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
    merge(&join(readings), &config, "node1")
}

fn desired(texts: &[&str]) -> Desired {
    merge_texts("", texts)
}

fn frontend(addr: &str, port: u16) -> Frontend {
    Frontend {
        addr: addr.parse().unwrap(),
        port,
        proto: Proto::TCP,
    }
}

fn backend(addr: &str) -> BackendAddr {
    BackendAddr {
        addr: addr.parse().unwrap(),
        port: 80,
    }
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
    assert_eq!(desired.services.len(), 1);
}

#[test]
fn a_service_has_the_backends_of_its_slices_with_kubernetes_defaults() {
    let desired = desired(&[NODE, WEB, SLICE]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert_eq!(service.object.to_string(), "default/web");
    assert_eq!(
        service.address_kinds,
        BTreeSet::from([AddressKind::LoadBalancer])
    );
    let state = |ready, serving| Backend {
        ready,
        serving,
        weight: 1,
    };
    assert_eq!(
        service.backends,
        BTreeMap::from([
            (backend("10.1.1.10"), state(true, true)),
            (backend("10.1.2.10"), state(false, true)),
            (backend("10.1.3.10"), state(false, false)),
        ])
    );
    assert_eq!(desired.conditions, []);
}

#[test]
fn not_ready_addresses_are_published_where_the_service_wants_it() {
    let web = format!("{WEB}  publishNotReadyAddresses: true\n");

    let desired = desired(&[NODE, &web, SLICE]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert!(service.backends.values().all(|backend| backend.ready));
}

#[test]
fn every_kind_of_address_is_served_and_known() {
    let web = WEB.replace(
        "  loadBalancerIP: 192.0.2.10\n",
        "  loadBalancerIP: 192.0.2.10\n  externalIPs: [192.0.2.11, 'fd00::11']\n",
    ) + "status: {loadBalancer: {ingress: [{ip: 192.0.2.12}, {ip: 192.0.2.11}, {hostname: x}]}}\n";

    let desired = desired(&[NODE, &web]);

    let kinds: Vec<_> = desired
        .services
        .iter()
        .map(|(at, service)| {
            (
                at.addr.to_string(),
                service.address_kinds.iter().copied().collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            ("192.0.2.10".to_owned(), vec![AddressKind::LoadBalancer]),
            (
                "192.0.2.11".to_owned(),
                vec![AddressKind::LoadBalancer, AddressKind::External]
            ),
            ("192.0.2.12".to_owned(), vec![AddressKind::LoadBalancer]),
            ("fd00::11".to_owned(), vec![AddressKind::External]),
        ]
    );
}

#[test]
fn external_addresses_are_served_for_any_type_and_balancer_addresses_only_for_theirs() {
    let web = WEB.replace(
        "type: LoadBalancer",
        "type: ClusterIP\n  externalIPs: [192.0.2.11]",
    );

    let desired = desired(&[NODE, &web]);

    assert_eq!(
        desired.services.keys().copied().collect::<Vec<_>>(),
        [frontend("192.0.2.11", 80)]
    );
}

#[test]
fn services_of_others_are_left_alone() {
    for (from, to) in [
        (
            "  type: LoadBalancer",
            "  type: LoadBalancer\n  loadBalancerClass: example.com/other",
        ),
        (
            "  type: LoadBalancer",
            "  type: LoadBalancer\n  clusterIP: None",
        ),
        (
            "  type: LoadBalancer",
            "  type: ExternalName\n  externalIPs: [192.0.2.11]",
        ),
        (
            "{app: web}",
            "{service.kubernetes.io/service-proxy-name: other}",
        ),
    ] {
        let web = WEB.replace(from, to);
        assert_ne!(web, WEB);

        let desired = desired(&[NODE, &web, SLICE]);

        assert!(desired.services.is_empty(), "{to}");
        assert_eq!(desired.conditions, [], "{to}");
    }
    let ours = WEB.replace(
        "  type: LoadBalancer",
        "  type: LoadBalancer\n  loadBalancerClass: io.cilium/bgp-control-plane",
    );
    assert_eq!(desired(&[NODE, &ours]).services.len(), 1);
}

#[test]
fn a_service_that_must_filter_its_clients_is_not_opened_to_all() {
    let web = format!("{WEB}  loadBalancerSourceRanges: [10.0.0.0/8]\n");

    let desired = desired(&[NODE, &web]);

    assert!(desired.services.is_empty());
    assert_eq!(only(&desired).reason, "SourceRangesUnsupported");
    assert_eq!(only(&desired).origin, "1.yaml:2");
}

#[test]
fn what_is_not_acted_on_is_said() {
    for (field, says) in [
        (
            "sessionAffinity: ClientIP",
            "spec.sessionAffinity ClientIP is not acted on yet: connections of one client go to several backends",
        ),
        (
            "externalTrafficPolicy: Local",
            "spec.externalTrafficPolicy Local is not acted on yet: backends of all nodes are used",
        ),
    ] {
        let desired = desired(&[NODE, &format!("{WEB}  {field}\n")]);

        assert_eq!(desired.services.len(), 1);
        assert!(
            only(&desired).message.starts_with(says),
            "{:?}",
            desired.conditions
        );
    }
}

#[test]
fn a_protocol_that_is_not_balanced_leaves_the_other_ports() {
    let web = WEB.replace("{name: http, port: 80}", "{name: http, port: 80}, {name: s, port: 81, protocol: SCTP}, {name: u, port: 80, protocol: UDP}");

    let desired = desired(&[NODE, &web]);

    let frontends: Vec<_> = desired.services.keys().map(ToString::to_string).collect();
    assert_eq!(frontends, ["192.0.2.10:80/tcp", "192.0.2.10:80/udp"]);
    assert_eq!(
        only(&desired).message,
        "port 81: SCTP is not balanced; use TCP or UDP"
    );
}

#[test]
fn a_backend_on_another_port_is_left_out() {
    let slice = SLICE.replace("port: 80", "port: 8080");

    let desired = desired(&[NODE, WEB, &slice]);

    assert!(
        desired.services[&frontend("192.0.2.10", 80)]
            .backends
            .is_empty()
    );
    assert_eq!(only(&desired).object, "EndpointSlice default/web-1");
    assert_eq!(only(&desired).reason, "PortRemapUnsupported");
    assert_eq!(only(&desired).origin, "2.yaml:2");
    assert!(
        only(&desired)
            .message
            .starts_with("its port 8080 differs from port 80 of Service default/web: "),
        "{:?}",
        desired.conditions
    );
}

#[test]
fn ports_are_matched_by_name_and_slices_by_namespace() {
    let renamed = SLICE.replace("name: http", "name: other");
    let elsewhere = SLICE.replace("name: web-1", "name: web-1, namespace: prod");
    for slice in [renamed, elsewhere] {
        let desired = desired(&[NODE, WEB, &slice]);

        assert!(
            desired.services[&frontend("192.0.2.10", 80)]
                .backends
                .is_empty()
        );
    }
}

#[test]
fn backends_of_the_other_family_are_a_condition() {
    let slice = SLICE
        .replace("IPv4", "IPv6")
        .replace("10.1.1.10", "'fd00::1'")
        .replace("10.1.2.10", "'fd00::2'")
        .replace("10.1.3.10", "'fd00::3'");

    let desired = desired(&[NODE, WEB, &slice]);

    assert!(
        desired.services[&frontend("192.0.2.10", 80)]
            .backends
            .is_empty()
    );
    assert_eq!(only(&desired).reason, "FamilyMismatch");
    assert!(
        only(&desired)
            .message
            .starts_with("192.0.2.10:80/tcp: its backends are all of the other address family")
    );
}

#[test]
fn a_slice_without_a_service_or_addresses_is_a_condition() {
    let orphan = SLICE.replace("labels: {kubernetes.io/service-name: web}", "labels: {}");
    assert_eq!(
        only(&desired(&[NODE, &orphan])).message,
        "the label kubernetes.io/service-name is missing, so it belongs to no service; add it"
    );
    let names = SLICE.replace("IPv4", "FQDN");
    assert_eq!(
        only(&desired(&[NODE, WEB, &names])).message,
        "addressType FQDN names no addresses; use IPv4 or IPv6"
    );
}

#[test]
fn the_older_of_two_services_with_one_address_wins() {
    let old = WEB.replace(
        "name: web,",
        "name: z-old, creationTimestamp: '2024-01-01T00:00:00Z',",
    );
    let new = WEB.replace(
        "name: web,",
        "name: a-new, creationTimestamp: '2025-01-01T00:00:00Z',",
    );

    let desired = desired(&[NODE, &new, &old]);

    assert_eq!(
        desired.services[&frontend("192.0.2.10", 80)].object.name,
        "z-old"
    );
    assert_eq!(only(&desired).object, "Service default/a-new");
    assert_eq!(
        only(&desired).message,
        "192.0.2.10:80/tcp belongs to Service default/z-old, which is older or comes first by name; give one of them another address or port"
    );
}

#[test]
fn of_two_services_of_one_age_the_first_by_name_wins() {
    let desired = desired(&[
        NODE,
        &WEB.replace("name: web", "name: b"),
        &WEB.replace("name: web", "name: a"),
    ]);

    assert_eq!(
        desired.services[&frontend("192.0.2.10", 80)].object.name,
        "a"
    );
    assert_eq!(only(&desired).reason, "AddressConflict");
}

#[test]
fn a_policy_that_selects_the_node_makes_its_routers() {
    let other = POLICY
        .replace("name: rack0", "name: rack1")
        .replace("rack: rack0", "rack: rack1");

    let desired = desired(&[NODE, POLICY, &other]);

    assert_eq!(desired.conditions, []);
    let router = &desired.routers[&65010];
    assert!(router.export_pod_cidr);
    assert_eq!((router.router_id, router.local_port), (None, None));
    let neighbor = &router.neighbors[&("10.0.0.1".parse().unwrap(), 179)];
    assert_eq!(neighbor.asn, 65010);
    assert_eq!(neighbor.hold, Duration::from_secs(90));
    assert_eq!(
        neighbor.families,
        BTreeSet::from([Family::Ipv4, Family::Ipv6])
    );
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

    let router = &desired.routers[&65010];
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

    assert_eq!(desired.routers[&65010].local_port, Some(179));
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
        "peerASN: 65010}, {peerAddress: 10.0.0.1/32, peerASN: 1}",
    );
    for (policy, peers, says) in [
        (
            with("authSecretRef: s"),
            0,
            "virtual router 65010: peer 10.0.0.1: the password in Secret s cannot be used yet, so there is no session",
        ),
        (
            with("families: [{afi: l2vpn, safi: evpn}]"),
            0,
            "peer 10.0.0.1: l2vpn evpn is not spoken; use ipv4 unicast and ipv6 unicast",
        ),
        (
            with("advertisedPathAttributes: [{selectorType: PodCIDR}]"),
            1,
            "peer 10.0.0.1: advertisedPathAttributes is not acted on yet",
        ),
        (
            routers("podIPPoolSelector: {}"),
            1,
            "podIPPoolSelector is not acted on yet",
        ),
        (
            routers("serviceAdvertisements: [ClusterIP]"),
            1,
            "serviceAdvertisements ClusterIP is not acted on yet",
        ),
        (
            twice,
            1,
            "peer 10.0.0.1 port 179 is listed twice; the first is used",
        ),
    ] {
        let desired = desired(&[NODE, &policy]);

        assert_eq!(desired.routers[&65010].neighbors.len(), peers);
        assert!(
            only(&desired).message.contains(says),
            "{:?}",
            desired.conditions
        );
        assert_eq!(only(&desired).origin, "1.yaml:2");
    }
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

#[test]
fn values_that_the_api_server_would_refuse_are_refused_with_their_line() {
    for (text, from, to, origin, says) in [
        (
            WEB,
            "192.0.2.10",
            "192.0.2.999",
            "1.yaml:7",
            "spec.loadBalancerIP: \"192.0.2.999\" is not an IP address",
        ),
        (
            WEB,
            "port: 80",
            "port: 0",
            "1.yaml:8",
            "spec.ports[0].port: 0 is not within 1 to 65535",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  externalIPs: [a]",
            "1.yaml:6",
            "spec.externalIPs[0]: \"a\" is not an IP address",
        ),
        (
            WEB,
            "spec:\n",
            "status: {loadBalancer: {ingress: [{ip: b}]}}\nspec:\n",
            "1.yaml:5",
            "status.loadBalancer.ingress[0].ip: \"b\" is not an IP address",
        ),
        (
            SLICE,
            "10.1.1.10",
            "web.example",
            "1.yaml:8",
            "endpoints[0].addresses[0]: \"web.example\" is not an IP address",
        ),
        (
            SLICE,
            "10.1.1.10",
            "'fd00::1'",
            "1.yaml:8",
            "endpoints[0].addresses[0]: fd00::1 is not of addressType IPv4; use a slice per family",
        ),
        (
            SLICE,
            "IPv4",
            "IPv5",
            "1.yaml:5",
            "addressType: \"IPv5\" is not one of IPv4, IPv6 and FQDN",
        ),
        (
            SLICE,
            "port: 80",
            "port: 65536",
            "1.yaml:6",
            "ports[0].port: 65536 is not within 1 to 65535",
        ),
        (
            &NODE.replace("node1", "node2"),
            "podCIDR: 10.1.1.0/24",
            "podCIDR: pods",
            "1.yaml:5",
            "spec.podCIDR: \"pods\" is not a prefix such as 10.1.0.0/24",
        ),
        (
            &NODE.replace("node1", "node2"),
            "10.0.1.2",
            "n1",
            "1.yaml:6",
            "status.addresses[1].address: \"n1\" is not an IP address",
        ),
    ] {
        let broken = text.replace(from, to);
        assert_ne!(broken, text);

        let desired = desired(&[NODE, &broken]);

        assert_eq!(only(&desired).reason, "Unreadable");
        assert_eq!(only(&desired).origin, origin);
        assert_eq!(only(&desired).message, says);
    }
}
