//! Peer profiles: which peers they select, and what they add to them.

use fairlead_bgp::bfd::Hops;
use fairlead_bgp::{BfdConfig, Role, bfd::Timing};

use super::*;

fn profile(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: fairlead.io/v1alpha1\nkind: BGPPeerProfile\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn bfd_of(desired: &Desired) -> Option<BfdConfig> {
    let neighbors = desired.routers.values().flat_map(|r| r.neighbors.values());
    neighbors
        .map(|neighbor| neighbor.profile.bfd)
        .next()
        .unwrap()
}

#[test]
fn a_profile_adds_bfd_to_the_peers_that_it_selects_and_to_no_other() {
    for (spec, is_watched) in [
        ("{bfd: {}}", true),
        ("{peers: [{address: 10.0.0.1}], bfd: {}}", true),
        ("{peers: [{address: 10.0.0.0/24}], bfd: {}}", true),
        (
            "{peers: [{asn: 65010, address: 10.0.0.0/8}], bfd: {}}",
            true,
        ),
        ("{peers: [{asn: 1}, {asn: 65010}], bfd: {}}", true),
        ("{peers: [{address: 10.0.1.0/24}], bfd: {}}", false),
        ("{peers: [{asn: 1, address: 10.0.0.0/8}], bfd: {}}", false),
        ("{}", false),
    ] {
        let desired = desired(&[NODE, POLICY, &profile("tor", spec)]);
        let expected = is_watched.then_some(BfdConfig {
            timing: Timing::default(),
            hops: Hops::Single,
            strict: false,
        });
        assert_eq!(bfd_of(&desired), expected, "{spec}");
    }
    let elsewhere = "{nodeSelector: {matchLabels: {rack: rack1}}, bfd: {}}";
    let desired = desired(&[NODE, POLICY, &profile("tor", elsewhere)]);
    assert_eq!(desired.conditions, []);
    assert_eq!(bfd_of(&desired), None);
}

#[test]
fn bfd_is_multihop_where_the_peer_is_or_where_it_is_said() {
    let far = POLICY.replace("peerASN: 65010}", "peerASN: 65000, eBGPMultihopTTL: 3}");
    for (policy, bfd, hops) in [
        (&far, "{}", Hops::Multi),
        (&far, "{multihop: false}", Hops::Single),
        (&POLICY.to_owned(), "{multihop: true}", Hops::Multi),
    ] {
        let spec = format!("{{bfd: {bfd}}}");
        let desired = desired(&[NODE, policy, &profile("tor", &spec)]);
        assert_eq!(bfd_of(&desired).unwrap().hops, hops);
    }
}

#[test]
fn of_two_profiles_for_a_peer_the_first_counts_and_one_for_no_peer_says_so() {
    let first = profile("a", "{bfd: {detectMultiplier: 4}}");
    let second = profile("b", "{bfd: {detectMultiplier: 5}}");
    let both = desired(&[NODE, POLICY, &second, &first]);
    assert_eq!(bfd_of(&both).unwrap().timing.multiplier, 4);
    let conflict = only(&both);
    assert_eq!(
        (&*conflict.object, &*conflict.reason),
        ("BGPPeerProfile b", "PeerConflict")
    );
    assert_eq!(
        conflict.message,
        "peer 10.0.0.1: BGPPeerProfile a selects it as well, and is in force; narrow `peers` of one of the two"
    );

    let none = desired(&[NODE, POLICY, &profile("a", "{peers: [{asn: 7}], bfd: {}}")]);
    assert_eq!(only(&none).reason, "NoPeerSelected");
    assert_eq!(
        only(&none).message,
        "it selects none of the BGP peers of node node1; `dpctl bgp peers` lists them"
    );
}

#[test]
fn a_role_is_for_a_peer_of_another_as_and_strictness_needs_one() {
    let role_of = |spec: &str, policy: &str| {
        let desired = desired(&[NODE, policy, &profile("tor", spec)]);
        let router = desired.routers.values().next().unwrap();
        let profile = &router.neighbors.values().next().unwrap().profile;
        (profile.role, profile.role_strict, desired.conditions)
    };
    for (name, role) in [
        ("provider", Role::Provider),
        ("rs-server", Role::RsServer),
        ("rs-client", Role::RsClient),
        ("customer", Role::Customer),
        ("peer", Role::Peer),
    ] {
        let spec = format!("{{role: {name}, roleStrict: true}}");
        let external = POLICY.replace("peerASN: 65010", "peerASN: 65000");
        assert_eq!(role_of(&spec, &external), (Some(role), true, vec![]));
    }
    let (role, _, conditions) = role_of("{role: peer}", POLICY);
    assert_eq!((role, conditions.len()), (None, 1));
    assert_eq!(conditions[0].reason, "FieldUnsupported");

    let desired = desired(&[NODE, POLICY, &profile("tor", "{roleStrict: true}")]);
    assert!(
        only(&desired).message.contains("needs a role"),
        "{:?}",
        only(&desired)
    );
}

#[test]
fn routes_outlive_the_restart_time_of_a_peer_that_restarts_gracefully_only() {
    let spec = "{longLivedStaleSeconds: 3600, addPath: true}";
    let restarting = POLICY.replace(
        "peerASN: 65010}",
        "peerASN: 65010, gracefulRestart: {enabled: true}}",
    );
    for (policy, expected) in [(&restarting[..], Some(3600)), (POLICY, None)] {
        let desired = desired(&[NODE, policy, &profile("tor", spec)]);
        let router = desired.routers.values().next().unwrap();
        let profile = &router.neighbors.values().next().unwrap().profile;
        let expected = expected.map(std::time::Duration::from_secs);
        assert_eq!(profile.long_lived_stale_time, expected);
        assert!(profile.add_path);
        let reasons: Vec<_> = desired.conditions.iter().map(|c| &*c.reason).collect();
        let said: &[&str] = if expected.is_some() {
            &[]
        } else {
            &["NoGracefulRestart"]
        };
        assert_eq!(reasons, said);
    }
}

#[test]
fn a_range_makes_a_peer_stand_for_all_who_dial_from_there() {
    let policy = POLICY.replace("10.0.0.1/32", "10.0.0.0/32");
    let range_of = |desired: &Desired| {
        let router = desired.routers.values().next().unwrap();
        let neighbor = router.neighbors.values().next().unwrap();
        neighbor.profile.range.clone().unwrap()
    };
    let plain = desired(&[
        NODE,
        &policy,
        &profile("pods", "{range: {prefixLength: 24}}"),
    ]);
    assert_eq!(plain.conditions, []);
    let range = range_of(&plain);
    assert_eq!(range.prefix.to_string(), "10.0.0.0/24");
    assert_eq!(
        (range.asns, range.limit),
        ([65010].into(), 32),
        "the peer's own AS"
    );
    let chosen = "{range: {prefixLength: 30, asns: [64512, 64513], limit: 2}, bfd: {}}";
    let chosen = desired(&[NODE, &policy, &profile("pods", chosen)]);
    let range = range_of(&chosen);
    assert_eq!((range.asns, range.limit), ([64512, 64513].into(), 2));
    assert_eq!(bfd_of(&chosen), None);
    assert_eq!(only(&chosen).reason, "FieldUnsupported");
}

#[test]
fn a_range_that_cannot_be_is_no_peer_and_says_why() {
    for (length, why) in [
        (16, "give the peer the address 10.0.0.0"),
        (
            33,
            "range.prefixLength 33 is more than its address has bits",
        ),
    ] {
        let spec = format!("{{range: {{prefixLength: {length}}}}}");
        let desired = desired(&[NODE, POLICY, &profile("pods", &spec)]);
        let said = only(&desired);
        assert_eq!(said.reason, "RangeImpossible");
        assert!(said.message.contains(why), "{}", said.message);
        let router = desired.routers.values().next().unwrap();
        assert!(router.neighbors.is_empty(), "nobody is let in");
    }
}
