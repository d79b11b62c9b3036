mod bgp;

use std::net::IpAddr;

use super::peering_policy::ServiceAdvertisement;
use super::*;

/// Seeds S1 and S4, as users wrote them.
const RACK0: &str = r#"
apiVersion: "cilium.io/v2alpha1"
kind: CiliumBGPPeeringPolicy
metadata:
  name: rack0
spec:
  nodeSelector:
    matchLabels:
      rack: rack0
  virtualRouters:
  - localASN: 65010
    exportPodCIDR: true # 自动宣告 Pod CIDR
    neighbors:
    - peerAddress: "10.0.0.1/32" # tor0 的 IP 地址
      peerASN: 65010
---
apiVersion: "cilium.io/v2alpha1"
kind: CiliumBGPPeeringPolicy
metadata:
  name: rack1
spec:
  nodeSelector:
    matchLabels:
      rack: rack1
  virtualRouters:
  - localASN: 65011
    exportPodCIDR: true
    neighbors:
    - peerAddress: "10.0.0.2/32" # tor1 的 IP 地址
      peerASN: 65011
"#;

/// Every field of a peering policy.
const FULL: &str = r"apiVersion: cilium.io/v2alpha1
kind: CiliumBGPPeeringPolicy
metadata:
  name: full
spec:
  virtualRouters:
  - localASN: 4200000000
    podIPPoolSelector: {matchLabels: {pool: a}}
    serviceSelector:
      matchExpressions:
      - {key: app, operator: In, values: [web]}
    serviceAdvertisements: [LoadBalancerIP, ExternalIP]
    neighbors:
    - peerAddress: fd00::1/128
      peerPort: 1790
      peerASN: 65000
      authSecretRef: bgp
      eBGPMultihopTTL: 3
      connectRetryTimeSeconds: 12
      holdTimeSeconds: 9
      keepAliveTimeSeconds: 3
      gracefulRestart: {enabled: true, restartTimeSeconds: 60}
      families:
      - {afi: ipv6, safi: unicast}
      advertisedPathAttributes:
      - selectorType: PodCIDR
        selector: {matchLabels: {a: b}}
        communities: {standard: ['64512:1'], wellKnown: [no-export], large: ['1:2:3']}
        localPreference: 200
";

fn read_one(text: &str) -> Reading {
    read("m.yaml", text).unwrap()
}

fn policies(text: &str) -> Vec<PeeringPolicy> {
    let reading = read_one(text);
    assert_eq!(reading.conditions, []);
    reading
        .objects
        .into_iter()
        .map(|sourced| {
            let Resource::PeeringPolicy(policy) = sourced.object else {
                panic!("{:?}", sourced.object)
            };
            *policy
        })
        .collect()
}

fn only_condition(text: &str) -> Condition {
    let mut reading = read_one(text);
    assert_eq!(reading.conditions.len(), 1, "{:?}", reading.conditions);
    reading.conditions.remove(0)
}

#[test]
fn the_policies_of_the_seeds_are_accepted_as_they_are() {
    let policies = policies(RACK0);

    let router = &policies[0].spec.virtual_routers[0];
    let neighbor = &router.neighbors[0];
    assert_eq!(policies.len(), 2);
    assert_eq!(router.local_asn, 65010);
    assert!(router.export_pod_cidr);
    assert_eq!(neighbor.peer_address, IpAddr::from([10, 0, 0, 1]));
}

#[test]
fn a_silent_policy_has_ciliums_defaults() {
    let policies = policies(RACK0);

    let router = &policies[0].spec.virtual_routers[0];
    let neighbor = &router.neighbors[0];
    assert_eq!(
        router.service_advertisements,
        [ServiceAdvertisement::LoadBalancerIP]
    );
    assert_eq!(neighbor.peer_port, 179);
    assert_eq!(neighbor.ebgp_multihop_ttl, 1);
    assert_eq!(neighbor.connect_retry_time_seconds, 120);
    assert_eq!(neighbor.hold_time_seconds, 90);
    assert_eq!(neighbor.keep_alive_time_seconds, 30);
    assert_eq!(neighbor.graceful_restart, None);
}

#[test]
fn every_field_of_a_policy_is_known() {
    let policies = policies(FULL);

    let neighbor = &policies[0].spec.virtual_routers[0].neighbors[0];
    assert_eq!(neighbor.ebgp_multihop_ttl, 3);
    assert_eq!(
        neighbor.advertised_path_attributes[0].local_preference,
        Some(200)
    );
}

#[test]
fn a_field_that_cannot_be_read_rejects_its_object_and_names_file_and_line() {
    for (from, to, line, says) in [
        (
            "fd00::1/128",
            "fd00::1",
            14,
            "spec.virtualRouters[0].neighbors[0].peerAddress: fd00::1 must be written as a prefix: fd00::1/128",
        ),
        (
            "fd00::1/128",
            "tor0",
            14,
            "\"tor0\" is not an address in prefix form, such as 10.0.0.1/32",
        ),
        (
            "eBGPMultihopTTL: 3",
            "eBGPMultihopTTL: 256",
            18,
            "eBGPMultihopTTL: 256 is not within 1 to 255",
        ),
        (
            "holdTimeSeconds: 9",
            "holdTimeSeconds: 2",
            20,
            "holdTimeSeconds: 2 is not within 3 to 65535",
        ),
        (
            "keepAliveTimeSeconds: 3",
            "keepAliveTimeSeconds: 10",
            21,
            "keepAliveTimeSeconds: 10 is longer than holdTimeSeconds, which is 9; choose at most a third of it",
        ),
        (
            "peerPort: 1790",
            "peerPort: 0",
            15,
            "peerPort: 0 is not within 1 to 65535",
        ),
        (
            "restartTimeSeconds: 60",
            "restartTimeSeconds: 4096",
            22,
            "gracefulRestart.restartTimeSeconds: 4096 is not within 1 to 4095",
        ),
        (
            "connectRetryTimeSeconds: 12",
            "connectRetryTimeSeconds: 0",
            19,
            "connectRetryTimeSeconds: 0 is not within 1 to 2147483647",
        ),
        (
            "localASN: 4200000000",
            "localASN: 5000000000",
            7,
            "localASN: invalid value: integer `5000000000`",
        ),
        (
            "operator: In",
            "operator: Is",
            9,
            "serviceSelector: Is is no operator; use In, NotIn, Exists or DoesNotExist",
        ),
        (
            "values: [web]",
            "values: []",
            9,
            "serviceSelector: In app: needs values",
        ),
        (
            "operator: In",
            "operator: Exists",
            9,
            "serviceSelector: Exists app: takes no values",
        ),
        (
            "LoadBalancerIP,",
            "Load,",
            12,
            "serviceAdvertisements[0]: unknown variant `Load`",
        ),
        (
            "peerASN: 65000",
            "peerASN: six",
            16,
            "peerASN: invalid type: string \"six\", expected u32",
        ),
        ("      peerASN: 65000\n", "", 14, "missing field `peerASN`"),
    ] {
        let text = FULL.replace(from, to);
        assert_ne!(text, FULL, "{from}");

        let condition = only_condition(&text);

        assert_eq!(condition.object, "CiliumBGPPeeringPolicy full");
        assert_eq!(condition.reason, "Unreadable");
        assert!(condition.message.contains(says), "{condition:?}");
        assert_eq!(condition.origin, format!("m.yaml:{line}"), "{condition:?}");
        assert!(read_one(&text).objects.is_empty());
    }
}

#[test]
fn a_policy_lists_routers_and_peers_and_each_as_once() {
    let policy = |routers: &str| {
        format!(
            "apiVersion: cilium.io/v2alpha1\nkind: CiliumBGPPeeringPolicy\nmetadata: {{name: a}}\nspec:\n  virtualRouters: {routers}\n"
        )
    };
    let peer = "neighbors: [{peerAddress: 10.0.0.1/32, peerASN: 1}]";
    for (routers, says) in [
        (
            "[]".to_owned(),
            "spec.virtualRouters: is empty; list at least one",
        ),
        (
            "[{localASN: 1, neighbors: []}]".to_owned(),
            "spec.virtualRouters[0].neighbors: is empty; list at least one",
        ),
        (
            format!("[{{localASN: 1, {peer}}}, {{localASN: 1, {peer}}}]"),
            "spec.virtualRouters[1].localASN: 1 is that of virtualRouters[0] already; join the two",
        ),
    ] {
        assert_eq!(only_condition(&policy(&routers)).message, says);
    }
}

#[test]
fn an_unknown_field_is_a_condition_and_the_object_stays() {
    let text = FULL.replace(
        "      peerPort: 1790\n",
        "      peerPort: 1790\n      bfdProfile: fast\n",
    );

    let reading = read_one(&text);

    assert_eq!(reading.objects.len(), 1);
    assert_eq!(reading.conditions.len(), 1);
    let condition = &reading.conditions[0];
    assert_eq!(condition.reason, "UnknownField");
    assert_eq!(condition.origin, "m.yaml:16");
    assert_eq!(
        condition.message,
        "spec.virtualRouters[0].neighbors[0].bfdProfile: is not a field that Fairlead knows; it has no effect"
    );
}

#[test]
fn an_unknown_field_of_a_kubernetes_type_is_found_as_well() {
    let condition = only_condition(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: 80\n    portt: 81\n",
    );

    assert_eq!(condition.origin, "m.yaml:7");
    assert_eq!(
        condition.message,
        "spec.ports[0].portt: is not a field that Fairlead knows; it has no effect"
    );
}

#[test]
fn one_bad_object_does_not_stop_the_others() {
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: n}}\nspec: {{podCIDR: 1}}\n---{RACK0}"
    );

    let reading = read_one(&text);

    assert_eq!(reading.objects.len(), 2);
    assert_eq!(reading.conditions[0].origin, "m.yaml:4");
    assert_eq!(
        reading.conditions[0].message,
        "spec.podCIDR: invalid type: integer `1`, expected a string"
    );
}

#[test]
fn an_unknown_kind_is_named_and_ignored() {
    let condition =
        only_condition("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\n");

    assert_eq!(condition.object, "Pod b/a");
    assert_eq!(condition.reason, "UnknownKind");
    assert_eq!(condition.origin, "m.yaml:1");
    assert_eq!(
        condition.message,
        "v1 Pod is not a kind that Fairlead reads; it is ignored"
    );
}

#[test]
fn what_is_no_object_says_what_is_missing() {
    assert_eq!(
        only_condition("just: text\n").message,
        "no Kubernetes object: apiVersion and kind are missing"
    );
    assert_eq!(
        only_condition("apiVersion: v1\nkind: Node\nmetadata:\n  labels: {}\n").message,
        "metadata.name: is missing; give the object a name"
    );
    assert_eq!(
        only_condition("apiVersion: v1\nkind: List\nitems: 3\n").message,
        "items: expected a list of objects"
    );
}

#[test]
fn a_text_that_is_no_yaml_names_its_line() {
    let condition = read("m.yaml", "a: 1\nb: [\n").unwrap_err();

    assert_eq!(condition.reason, "Unparsable");
    assert!(condition.origin.starts_with("m.yaml:"), "{condition:?}");
    assert!(!condition.message.is_empty());
}

#[test]
fn lists_and_json_are_read_like_documents() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
      {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}},
      {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b", "namespace": "c"}}]}"#;
    let typed = "apiVersion: v1\nkind: NodeList\nmetadata: {}\nitems:\n- metadata: {name: d}\n";

    let titles: Vec<_> = [list, typed]
        .iter()
        .flat_map(|text| read_one(text).objects)
        .map(|sourced| sourced.object.title())
        .collect();

    assert_eq!(titles, ["Node a", "Service c/b", "Node d"]);
}

#[test]
fn of_an_object_that_stands_twice_the_first_counts() {
    let one = read(
        "a.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {from: a}}\n",
    );
    let two = read(
        "b.yaml",
        "\napiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {from: b}}\n",
    );

    let resources = join([one.unwrap(), two.unwrap()]);

    let node = resources.nodes.values().next().unwrap();
    assert_eq!(node.object.metadata.labels.as_ref().unwrap()["from"], "a");
    assert_eq!(resources.conditions[0].reason, "Duplicate");
    assert_eq!(resources.conditions[0].origin, "b.yaml:2");
    assert_eq!(
        resources.conditions[0].message,
        "Node n stands at a.yaml:1 already, which is in force; remove one of the two"
    );
}

#[test]
fn a_secret_that_cannot_be_read_does_not_show_its_value() {
    for content in [
        "stringData: {password: 123456}",
        "data: {password: 'not!base64'}",
        "data: hunter2",
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp, namespace: kube-system}}\n{content}\n"
        );
        let condition = only_condition(&text);
        assert_eq!(condition.object, "Secret kube-system/bgp");
        assert!(
            condition
                .message
                .ends_with("cannot be read; data holds base64, stringData holds text"),
            "{condition:?}"
        );
    }
}
