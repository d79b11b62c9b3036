//! Cilium's BGP objects of version 2, and our own beside them.

use super::*;

const CLUSTER_CONFIG: &str = r"apiVersion: cilium.io/v2
kind: CiliumBGPClusterConfig
metadata: {name: c}
spec:
  bgpInstances:
  - name: a
    localASN: 4294967295
    peers:
    - name: tor
      peerAddress: 10.0.0.1
";

const PEER_CONFIG: &str = r"apiVersion: cilium.io/v2
kind: CiliumBGPPeerConfig
metadata: {name: p}
spec:
  timers: {holdTimeSeconds: 9, keepAliveTimeSeconds: 3}
  ebgpMultihop: 2
  families:
  - {afi: ipv4, safi: unicast, advertisements: {matchLabels: {a: b}}}
";

const ADVERTISEMENT: &str = r"apiVersion: cilium.io/v2alpha1
kind: CiliumBGPAdvertisement
metadata: {name: a, labels: {a: b}}
spec:
  advertisements:
  - advertisementType: Service
    selector: {matchLabels: {a: b}}
    service: {addresses: [LoadBalancerIP], aggregationLengthIPv4: 31, aggregationLengthIPv6: 127}
";

const OVERRIDE: &str = r"apiVersion: cilium.io/v2
kind: CiliumBGPNodeConfigOverride
metadata: {name: node1}
spec:
  bgpInstances:
  - {name: a, routerID: 10.0.0.1, peers: [{name: tor, localPort: 1024}]}
";

#[test]
fn objects_of_ciliums_second_version_are_held_to_its_limits() {
    for text in [CLUSTER_CONFIG, PEER_CONFIG, ADVERTISEMENT, OVERRIDE] {
        let reading = read_one(text);
        assert_eq!(reading.conditions, []);
        assert_eq!(reading.objects.len(), 1);
    }
    for (text, from, to, says) in [
        (
            CLUSTER_CONFIG,
            "localASN: 4294967295",
            "localASN: 0",
            "spec.bgpInstances[0].localASN: 0 is not within 1 to 4294967295",
        ),
        (
            CLUSTER_CONFIG,
            "      peerAddress: 10.0.0.1\n",
            "",
            "spec.bgpInstances[0].peers[0].peerAddress: is missing; write it, or autoDiscovery",
        ),
        (
            CLUSTER_CONFIG,
            "peerAddress: 10.0.0.1\n",
            "autoDiscovery: {mode: Unnumbered}\n",
            "spec.bgpInstances[0].peers[0].autoDiscovery.unnumbered: is missing; its mode needs it",
        ),
        (
            CLUSTER_CONFIG,
            "peerAddress: 10.0.0.1",
            "peerAddress: 10.0.0.1/32",
            "spec.bgpInstances[0].peers[0].peerAddress: invalid IP address syntax",
        ),
        (
            CLUSTER_CONFIG,
            "      peerAddress: 10.0.0.1\n",
            "      peerAddress: 10.0.0.1\n    - {name: tor, peerAddress: 10.0.0.2}\n",
            "spec.bgpInstances[0].peers[1].name: \"tor\" is taken in this list; give each entry its own",
        ),
        (
            CLUSTER_CONFIG,
            "      peerAddress: 10.0.0.1\n",
            "      peerAddress: 10.0.0.1\n  - {name: a, localASN: 1}\n",
            "spec.bgpInstances[1].name: \"a\" is taken in this list; give each entry its own",
        ),
        (
            PEER_CONFIG,
            "keepAliveTimeSeconds: 3",
            "keepAliveTimeSeconds: 10",
            "spec.timers.keepAliveTimeSeconds: 10 is longer than holdTimeSeconds, which is 9; choose at most a third of it",
        ),
        (
            PEER_CONFIG,
            "holdTimeSeconds: 9",
            "holdTimeSeconds: 2",
            "spec.timers.holdTimeSeconds: 2 is not within 3 to 65535",
        ),
        (
            PEER_CONFIG,
            "ebgpMultihop: 2",
            "ebgpMultihop: 0",
            "spec.ebgpMultihop: 0 is not within 1 to 255",
        ),
        (
            ADVERTISEMENT,
            "aggregationLengthIPv4: 31",
            "aggregationLengthIPv4: 32",
            "spec.advertisements[0].service.aggregationLengthIPv4: 32 is not within 0 to 31",
        ),
        (
            ADVERTISEMENT,
            "aggregationLengthIPv6: 127",
            "aggregationLengthIPv6: 128",
            "spec.advertisements[0].service.aggregationLengthIPv6: 128 is not within 0 to 127",
        ),
        (
            ADVERTISEMENT,
            "advertisementType: Service",
            "advertisementType: PodCIDR",
            "spec.advertisements[0].selector: does not go with PodCIDR; leave it out",
        ),
        (
            ADVERTISEMENT,
            "addresses: [LoadBalancerIP]",
            "addresses: []",
            "spec.advertisements[0].service: says no addresses; write addresses: [LoadBalancerIP]",
        ),
        (
            OVERRIDE,
            "routerID: 10.0.0.1",
            "routerID: 0.0.0.0",
            "spec.bgpInstances[0].routerID: 0.0.0.0 identifies nobody; choose an address of the node",
        ),
        (
            OVERRIDE,
            "localPort: 1024",
            "localPort: 65536",
            "spec.bgpInstances[0].peers[0].localPort: 65536 is not within 1 to 65535",
        ),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        assert_eq!(only_condition(&changed).message, says);
    }
    let empty = CLUSTER_CONFIG.split_once("  bgpInstances").unwrap().0;
    assert_eq!(
        only_condition(&format!("{empty}  bgpInstances: []\n")).message,
        "spec.bgpInstances: has 0 entries; list 1 to 16"
    );
    // A field of a later version is named, and the rest holds.
    let later = CLUSTER_CONFIG.replace(
        "      peerAddress",
        "      peerColour: red\n      peerAddress",
    );
    let reading = read_one(&later);
    assert_eq!(reading.objects.len(), 1);
    assert_eq!(
        reading.conditions[0].message,
        "spec.bgpInstances[0].peers[0].peerColour: is not a field that Fairlead knows; it has no effect"
    );
}

/// Every field of a peer profile.
const PROFILE: &str = r"apiVersion: fairlead.io/v1alpha1
kind: BGPPeerProfile
metadata: {name: tor}
spec:
  nodeSelector: {matchLabels: {rack: rack0}}
  peers:
  - address: 10.0.0.0/24
    asn: 65000
  bfd:
    detectMultiplier: 5
    transmitIntervalMilliseconds: 50
    receiveIntervalMilliseconds: 60
    multihop: true
    strict: true
";

#[test]
fn a_peer_profile_is_read_with_its_defaults_and_held_to_its_limits() {
    let Resource::PeerProfile(full) = &read_one(PROFILE).objects[0].object else {
        panic!("{:?}", read_one(PROFILE));
    };
    let bfd = full.spec.bfd.clone().unwrap();
    assert_eq!((bfd.detect_multiplier, bfd.strict), (5, true));
    let peer = &full.spec.peers[0];
    assert_eq!(peer.address, Some("10.0.0.0/24".parse().unwrap()));

    let (bare, _) = PROFILE.split_once("  bfd:").unwrap();
    let reading = read_one(&format!("{bare}  bfd: {{}}\n"));
    assert_eq!(reading.conditions, []);
    let Resource::PeerProfile(bare) = &reading.objects[0].object else {
        panic!("{reading:?}");
    };
    let bfd = bare.spec.bfd.clone().unwrap();
    assert_eq!(
        (
            bfd.detect_multiplier,
            bfd.transmit_interval_milliseconds,
            bfd.receive_interval_milliseconds
        ),
        (3, 300, 300)
    );
    assert_eq!((bfd.multihop, bfd.strict), (None, false));

    for (from, to, line, says) in [
        (
            "detectMultiplier: 5",
            "detectMultiplier: 1",
            10,
            "spec.bfd.detectMultiplier: 1 is not within 2 to 255",
        ),
        (
            "transmitIntervalMilliseconds: 50",
            "transmitIntervalMilliseconds: 9",
            11,
            "spec.bfd.transmitIntervalMilliseconds: 9 is not within 10 to 60000",
        ),
        (
            "- address: 10.0.0.0/24\n    asn: 65000",
            "- {}",
            7,
            "spec.peers[0]: says nothing; leave `peers` out to select all",
        ),
        (
            "address: 10.0.0.0/24",
            "address: tor0",
            7,
            "spec.peers[0].address: ",
        ),
    ] {
        let condition = only_condition(&PROFILE.replace(from, to));
        assert!(condition.message.starts_with(says), "{condition:?}");
        assert_eq!(condition.origin, format!("m.yaml:{line}"), "{condition:?}");
    }
}
