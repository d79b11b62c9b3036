//! Cilium's objects of version 2: which instances they make on this node, and what they do not get.

use std::net::IpAddr;

use fairlead_bgp::bfd::Hops;

use super::*;
use crate::desired::{AddressKind, Neighbor, VirtualRouter};

const CLUSTER: &str = "
apiVersion: cilium.io/v2
kind: CiliumBGPClusterConfig
metadata: {name: cilium-bgp}
spec:
  nodeSelector: {matchLabels: {rack: rack0}}
  bgpInstances:
  - name: instance-65000
    localASN: 65000
    localPort: 179
    peers:
    - {name: tor0, peerASN: 65010, peerAddress: 10.0.0.1, peerConfigRef: {name: tor}}
    - {name: tor1, peerAddress: 'fd00::1', peerConfigRef: {group: cilium.io, kind: CiliumBGPPeerConfig, name: tor}}
";

const PEER: &str = "
apiVersion: cilium.io/v2
kind: CiliumBGPPeerConfig
metadata: {name: tor}
spec:
  transport: {peerPort: 1790}
  timers: {connectRetryTimeSeconds: 5, holdTimeSeconds: 9, keepAliveTimeSeconds: 3}
  gracefulRestart: {enabled: true, restartTimeSeconds: 15}
  ebgpMultihop: 4
  families:
  - {afi: ipv4, safi: unicast, advertisements: {matchLabels: {advertise: bgp}}}
  - {afi: ipv6, safi: unicast}
";

const ADVERTISEMENT: &str = "
apiVersion: cilium.io/v2
kind: CiliumBGPAdvertisement
metadata: {name: all, labels: {advertise: bgp}}
spec:
  advertisements:
  - advertisementType: PodCIDR
    attributes: {communities: {standard: ['65000:99']}, localPreference: 99}
  - advertisementType: Service
    service: {addresses: [LoadBalancerIP, ExternalIP], aggregationLengthIPv4: 24}
    selector: {matchExpressions: [{key: app, operator: In, values: [web]}]}
";

fn instance(desired: &Desired) -> &VirtualRouter {
    &desired.routers["instance-65000"]
}

fn tor0(desired: &Desired) -> &Neighbor {
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    &instance(desired).neighbors[&(address, 1790)]
}

#[test]
fn a_cluster_configuration_makes_instances_whose_peers_are_told_what_advertisements_say() {
    for version in ["cilium.io/v2", "cilium.io/v2alpha1"] {
        let texts = [CLUSTER, PEER, ADVERTISEMENT].map(|t| t.replace("cilium.io/v2", version));
        let [cluster, peer, advertisement] = &texts;
        let desired = desired(&[NODE, cluster, peer, advertisement]);

        assert_eq!(desired.conditions, []);
        let router = instance(&desired);
        assert_eq!((router.local_asn, router.local_port), (65000, Some(179)));
        assert_eq!(router.object, "CiliumBGPClusterConfig cilium-bgp");
        assert_eq!(router.neighbors.len(), 2);
        let tor = tor0(&desired);
        assert_eq!((tor.asn, tor.ebgp_multihop_ttl), (65010, 4));
        assert_eq!(tor.name.as_deref(), Some("tor0"));
        assert_eq!(tor.connect_retry, Duration::from_secs(5));
        assert_eq!(tor.hold, Duration::from_secs(9));
        assert_eq!(tor.keepalive, Duration::from_secs(3));
        assert_eq!(tor.graceful_restart, Some(Duration::from_secs(15)));
        let [pods, services] = &tor.advertised[&Family::Ipv4][..] else {
            panic!("{:?}", tor.advertised);
        };
        assert_eq!(pods.what, What::PodCidrs);
        assert_eq!(pods.attributes.communities, [0xFDE8_0063].into());
        assert_eq!(pods.attributes.local_preference, Some(99));
        let What::Services {
            kinds,
            aggregate_v4,
            aggregate_v6,
            ..
        } = &services.what
        else {
            panic!("{services:?}");
        };
        assert_eq!(
            *kinds,
            [AddressKind::LoadBalancer, AddressKind::External].into()
        );
        assert_eq!((*aggregate_v4, *aggregate_v6), (Some(24), None));
        // Without a selector of advertisements a family is spoken and nothing told in it.
        assert_eq!(tor.advertised[&Family::Ipv6], []);
    }
}

#[test]
fn a_peer_without_a_configuration_has_the_defaults_and_is_told_nothing() {
    let cluster = CLUSTER.replace(", peerConfigRef: {name: tor}", "");
    let desired = desired(&[NODE, &cluster, PEER, ADVERTISEMENT]);

    assert_eq!(desired.conditions, []);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let tor = &instance(&desired).neighbors[&(address, 179)];
    assert_eq!(tor.connect_retry, Duration::from_mins(2));
    assert_eq!(tor.hold, Duration::from_secs(90));
    assert_eq!(tor.graceful_restart, None);
    assert_eq!(tor.advertised.len(), 2);
    assert!(tor.advertised.values().all(Vec::is_empty));
}

#[test]
fn an_override_changes_what_it_names_on_its_node_and_says_what_is_not_there() {
    let own = |node: &str, instance: &str, peer: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumBGPNodeConfigOverride\nmetadata: {{name: {node}}}\nspec:\n  bgpInstances:\n  - name: {instance}\n    routerID: 10.9.9.9\n    localPort: 1179\n    localASN: 65001\n    peers: [{{name: {peer}, localAddress: 10.0.0.9, localPort: 40000}}]\n"
        )
    };
    let with = |own: &str| desired(&[NODE, CLUSTER, PEER, ADVERTISEMENT, own]);

    let changed = with(&own("node1", "instance-65000", "tor0"));
    assert_eq!(changed.conditions, []);
    let router = instance(&changed);
    assert_eq!((router.local_asn, router.local_port), (65001, Some(1179)));
    assert_eq!(router.router_id, Some(Ipv4Addr::new(10, 9, 9, 9)));
    let tor = tor0(&changed);
    assert_eq!(tor.local_address, Some("10.0.0.9".parse().unwrap()));
    assert_eq!(tor.local_port, Some(40000));

    let elsewhere = with(&own("node2", "instance-65000", "tor0"));
    assert_eq!(elsewhere.conditions, []);
    assert_eq!(instance(&elsewhere).local_asn, 65000);

    for (own, says) in [
        (
            own("node1", "instance-1", "tor0"),
            "the CiliumBGPClusterConfig of this node has no instance \"instance-1\"; it has no effect",
        ),
        (
            own("node1", "instance-65000", "tor9"),
            "the CiliumBGPClusterConfig of this node has no peer \"tor9\" of instance \"instance-65000\"; it has no effect",
        ),
    ] {
        let desired = with(&own);
        assert_eq!(only(&desired).reason, "NothingOverridden");
        assert_eq!(only(&desired).message, says);
    }
}

#[test]
fn what_stands_in_the_way_is_a_condition_as_cilium_names_it() {
    let everything = |cluster: &str, peer: &str, advertisement: &str| {
        desired(&[NODE, cluster, peer, advertisement])
    };
    for (cluster, peer, advertisement, kind, reason, says, peers) in [
        (
            CLUSTER.replace(
                "peerAddress: 10.0.0.1, peerConfigRef: {name: tor}",
                "peerAddress: 10.0.0.1, peerConfigRef: {name: x}",
            ),
            PEER.to_owned(),
            ADVERTISEMENT.to_owned(),
            "CiliumBGPClusterConfig cilium-bgp",
            "MissingPeerConfigs",
            "instance instance-65000, peer tor0: CiliumBGPPeerConfig x is not there; there is no session without it",
            1,
        ),
        (
            CLUSTER.replace("'fd00::1'", "10.0.0.1"),
            PEER.to_owned(),
            ADVERTISEMENT.to_owned(),
            "CiliumBGPClusterConfig cilium-bgp",
            "Duplicate",
            "peer tor1: another peer has address 10.0.0.1; the first is used",
            1,
        ),
        (
            CLUSTER.to_owned(),
            format!("{PEER}  authSecretRef: bgp\n"),
            ADVERTISEMENT.to_owned(),
            "CiliumBGPPeerConfig tor",
            "MissingAuthSecret",
            "Secret kube-system/bgp is not there; there is no session without its password",
            0,
        ),
        (
            CLUSTER.to_owned(),
            PEER.to_owned(),
            format!("{ADVERTISEMENT}  - {{advertisementType: CiliumPodIPPool}}\n"),
            "CiliumBGPAdvertisement all",
            "CiliumNodeMissing",
            "CiliumPodIPPool: there is no CiliumNode node1",
            2,
        ),
    ] {
        let desired = everything(&cluster, &peer, &advertisement);
        assert_eq!(only(&desired).object, kind);
        assert_eq!(only(&desired).reason, reason);
        assert!(
            only(&desired).message.contains(says),
            "{:?}",
            only(&desired)
        );
        assert_eq!(instance(&desired).neighbors.len(), peers, "{says}");
    }
}

#[test]
fn of_two_configurations_one_is_in_force_and_a_policy_goes_before_both() {
    let other = CLUSTER
        .replace("name: cilium-bgp", "name: zz")
        .replace("65000", "65099");
    let two = desired(&[NODE, &other, CLUSTER, PEER, ADVERTISEMENT]);
    assert_eq!(two.routers.keys().collect::<Vec<_>>(), ["instance-65000"]);
    assert_eq!(only(&two).object, "CiliumBGPClusterConfig zz");
    assert_eq!(only(&two).reason, "ConflictingClusterConfig");

    let both = desired(&[NODE, CLUSTER, PEER, ADVERTISEMENT, POLICY]);
    assert_eq!(both.routers.keys().collect::<Vec<_>>(), ["65010"]);
    assert_eq!(only(&both).reason, "ConflictingClusterConfig");
    assert!(only(&both).message.contains("goes before it"));

    let nowhere = CLUSTER.replace("rack: rack0", "rack: rack7");
    let none = desired(&[NODE, &nowhere, PEER, ADVERTISEMENT]);
    assert!(none.routers.is_empty());
    assert_eq!(only(&none).reason, "NoMatchingNode");
}

#[test]
fn a_profile_selects_peers_by_their_configuration() {
    let profile = |name: &str| {
        format!(
            "apiVersion: fairlead.io/v1alpha1\nkind: BGPPeerProfile\nmetadata: {{name: a}}\nspec: {{peers: [{{peerConfig: {name}}}], bfd: {{}}}}\n"
        )
    };
    let with = |name: &str| desired(&[NODE, CLUSTER, PEER, ADVERTISEMENT, &profile(name)]);
    let watched = with("tor");
    assert_eq!(watched.conditions, []);
    assert_eq!(tor0(&watched).profile.bfd.unwrap().hops, Hops::Multi);
    assert_eq!(only(&with("other")).reason, "NoPeerSelected");
}

/// The configuration with its first peer found in another way.
fn found(how: &str) -> Desired {
    let cluster = CLUSTER.replace("peerAddress: 10.0.0.1", how);
    desired(&[NODE, &cluster, PEER, ADVERTISEMENT])
}

#[test]
fn a_peer_is_found_at_the_default_gateway_or_at_the_other_end_of_a_link() {
    for (how, address, interface) in [
        (
            "autoDiscovery: {mode: DefaultGateway, defaultGateway: {addressFamily: ipv4}}",
            "192.0.2.1",
            None,
        ),
        (
            "autoDiscovery: {mode: DefaultGateway, defaultGateway: {addressFamily: ipv6}}",
            "fe80::1",
            Some(2),
        ),
        (
            "autoDiscovery: {mode: Unnumbered, unnumbered: {interface: eth0}}",
            "fe80::1",
            Some(2),
        ),
        (
            "peerAddress: 'fe80::9', peerInterface: eth1",
            "fe80::9",
            Some(3),
        ),
    ] {
        let desired = found(how);
        assert_eq!(desired.conditions, [], "{how}");
        let router = instance(&desired);
        let at = router
            .neighbors
            .iter()
            .find(|((at, _), _)| at.to_string() == address);
        assert_eq!(at.expect(how).1.interface, interface, "{how}");
        let is_sought = how.contains("Unnumbered");
        assert_eq!(router.links.contains("eth0"), is_sought, "{how}");
    }
}

#[test]
fn a_peer_that_is_not_found_is_a_condition_and_the_others_stay() {
    for (how, reason, says) in [
        (
            "autoDiscovery: {mode: Unnumbered, unnumbered: {interface: eth2}}",
            "NeighbourUnknown",
            "no router has advertised itself on eth2 yet (RFC 4861 §6.2)",
        ),
        (
            "autoDiscovery: {mode: Unnumbered, unnumbered: {interface: eth1}}",
            "NeighbourAmbiguous",
            "routers [fe80::1, fe80::2] advertise themselves on eth1: write the peerAddress of one, and peerInterface",
        ),
        (
            "autoDiscovery: {mode: Unnumbered, unnumbered: {interface: eth9}}",
            "InterfaceUnknown",
            "this host has no device eth9",
        ),
        (
            "peerAddress: 'fe80::9'",
            "InterfaceMissing",
            "fe80::9 is link-local: say on which link, by peerInterface",
        ),
    ] {
        let desired = found(how);
        let only = only(&desired);
        assert_eq!(only.reason, reason);
        let message = format!("instance instance-65000, peer tor0: {says}");
        assert_eq!(only.message, message);
        assert_eq!(instance(&desired).neighbors.len(), 1);
    }
}

#[test]
fn an_interface_advertisement_tells_the_addresses_of_its_device_or_says_why_it_has_none() {
    let of = |device: &str| {
        let told = format!(
            "{ADVERTISEMENT}  - {{advertisementType: Interface, interface: {{name: {device}}}}}\n"
        );
        desired(&[NODE, CLUSTER, PEER, &told])
    };
    let interface = |desired: &Desired| {
        let told = tor0(desired).advertised[&Family::Ipv4].last();
        let What::Interface { name, addresses } = &told.unwrap().what else {
            panic!("{told:?}");
        };
        (name.clone(), addresses.clone())
    };
    let found = of("eth2");
    assert_eq!(found.conditions, []);
    let addresses = ["192.0.2.8", "192.0.2.9", "2001:db8::8"].map(|text| text.parse().unwrap());
    assert_eq!(interface(&found), ("eth2".to_owned(), addresses.into()));
    for (device, reason, says) in [
        (
            "eth9",
            "InterfaceUnknown",
            "interface: this host has no device eth9; nothing of it is advertised",
        ),
        (
            "eth0",
            "NoInterfaceAddress",
            "interface: eth0 is off, or has no global address",
        ),
    ] {
        let desired = of(device);
        assert_eq!(only(&desired).reason, reason);
        assert!(
            only(&desired).message.contains(says),
            "{}",
            only(&desired).message
        );
        assert_eq!(interface(&desired).1, BTreeSet::new());
    }
}

#[test]
fn a_source_interface_gives_its_address_of_the_peers_family_or_says_why_the_host_chooses() {
    let v4 = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let tor1 = ("fd00::1".parse::<IpAddr>().unwrap(), 1790);
    for (device, sources, said) in [
        ("eth2", [v4("192.0.2.8"), v4("2001:db8::8")], vec![]),
        (
            "eth1",
            [None, v4("2001:db8::7")],
            vec![("NoSourceAddress", "eth1 has no global IPv4 address")],
        ),
        (
            "eth9",
            [None, None],
            vec![
                (
                    "InterfaceUnknown",
                    "peer tor0: transport.sourceInterface: this host has no device eth9; the host chooses",
                ),
                ("InterfaceUnknown", "peer tor1"),
            ],
        ),
    ] {
        let named = format!("transport: {{sourceInterface: {device}, ");
        let peer = PEER.replace("transport: {", &named);
        let desired = desired(&[NODE, CLUSTER, &peer, ADVERTISEMENT]);

        let neighbors = &instance(&desired).neighbors;
        let found = [tor0(&desired), &neighbors[&tor1]].map(|neighbor| neighbor.local_address);
        assert_eq!(found, sources, "{device}");
        assert_eq!(
            desired.conditions.len(),
            said.len(),
            "{:?}",
            desired.conditions
        );
        for (condition, (reason, message)) in desired.conditions.iter().zip(said) {
            assert_eq!(condition.reason, reason);
            assert!(condition.message.contains(message), "{}", condition.message);
        }
    }
}
