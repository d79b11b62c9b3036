//! A merge that looks at what has changed comes to what one that looks at everything comes to.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A document of a small world: what it is called, and one of several things that it may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Node,
    Policy,
    Service(u8),
    Slice(u8),
}

fn text(name: Name, variant: u8) -> String {
    match name {
        Name::Node if variant.is_multiple_of(2) => NODE.to_owned(),
        // Its pods are elsewhere, and so are its node ports.
        Name::Node => NODE.replace("10.0.1.2", "10.0.1.3"),
        Name::Policy => POLICY.replace("exportPodCIDR: true", "exportPodCIDR: false"),
        Name::Service(n) => {
            let age = match variant % 3 {
                0 => String::new(),
                age => format!(", creationTimestamp: '2026-0{age}-01T00:00:00Z'"),
            };
            // Two addresses and two ports, so that services meet.
            let (address, port) = (10 + variant / 3 % 2, 80 + variant / 6 % 2);
            let labels = if variant / 12 % 4 == 3 {
                ", labels: {service.kubernetes.io/service-proxy-name: other}"
            } else {
                ""
            };
            let twice = if variant / 48 % 4 == 3 {
                format!(", {{name: again, port: {port}}}")
            } else {
                String::new()
            };
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}{age}{labels}}}\nspec:\n  type: LoadBalancer\n  loadBalancerIP: 192.0.2.{address}\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {}\n  ports: [{{name: http, port: {port}, nodePort: {}}}{twice}]\n",
                31000 + u16::from(variant % 2),
                30000 + u16::from(variant / 3 % 2),
            )
        }
        Name::Slice(n) => {
            let owner = match variant % 6 {
                5 => String::new(),
                owner => format!(", labels: {{kubernetes.io/service-name: s{}}}", owner % 4),
            };
            let family = if variant / 6 % 5 == 4 { "FQDN" } else { "IPv4" };
            let first = variant / 30;
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{n}{owner}}}\naddressType: {family}\nports: [{{name: http, port: 80}}, {{name: again, port: 80}}]\nendpoints: [{{addresses: [10.1.1.{first}], nodeName: node1}}, {{addresses: [10.1.1.{}]}}]\n",
                first + n,
            )
        }
    }
}

/// A document says something else, or is no more.
fn change() -> impl Strategy<Value = (Name, Option<u8>)> {
    let name = prop_oneof![
        1 => Just(Name::Node),
        1 => Just(Name::Policy),
        6 => (0_u8..4).prop_map(Name::Service),
        6 => (0_u8..4).prop_map(Name::Slice),
    ];
    (name, prop::option::weighted(0.8, any::<u8>()))
}

proptest! {
    #[test]
    fn what_was_merged_before_makes_no_difference(
        rounds in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..12),
    ) {
        let config = Document::default();
        let mut memory = Memory::default();
        let mut documents = BTreeMap::new();
        let mut before = Desired::default();
        for round in rounds {
            for (name, variant) in round {
                match variant {
                    Some(variant) => documents.insert(name, text(name, variant)),
                    None => documents.remove(&name),
                };
            }
            let readings = documents.values().map(|text| read("all.yaml", text).unwrap());
            let resources = join(readings);

            let desired = merge_since(&mut memory, &resources, &config, "node1", None);

            prop_assert_eq!(&desired, &merge(&resources, &config, "node1", None));
            for (frontend, service) in &desired.services {
                if let Some(known) = before.services.get(frontend) {
                    prop_assert_eq!(known == service, Arc::ptr_eq(known, service), "{}", frontend);
                }
            }
            before = desired;
        }
    }
}
