//! From ExaBGP through us to GoBGP: what we do not act upon arrives.

use fairlead_tests::peer::ExaBgp;
use serde_json::Value;

use super::*;

const HEIR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);

const GOBGP: &str = "[global.config]\nas = 65003\nrouter-id = \"10.77.0.3\"\n\
    [[neighbors]]\n[neighbors.config]\nneighbor-address = \"10.77.0.1\"\npeer-as = 65001\n\
    [neighbors.timers.config]\nconnect-retry = 5\nhold-time = 9\nkeepalive-interval = 3\n\
    [neighbors.transport.config]\npassive-mode = true\n\
    [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n\
    [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv6-unicast\"\n";

const EXTRA: &str = "extended-community [ target:65000:7 ] large-community [ 65000:1:2 ] \
    aggregator ( 65000:10.9.9.9 ) atomic-aggregate attribute [ 0xc8 0xc0 0x010203 ]";

/// The attributes of GoBGP's path to a prefix.
fn attributes(gobgp: &GoBgp, family: &str, prefix: &str) -> Vec<Value> {
    wait_for(&format!("GoBGP to learn {prefix}"), 20, || {
        let shown = gobgp.ask(&format!("global rib -a {family} -j"))?;
        let shown: Value = serde_json::from_str(&shown)?;
        let attrs = shown[prefix][0]["attrs"].as_array();
        let attrs = attrs.ok_or_else(|| anyhow::anyhow!("{shown}"))?;
        Ok(Some(attrs.clone()))
    })
    .unwrap()
}

#[test]
fn communities_of_all_kinds_the_aggregator_and_an_unknown_attribute_pass_through_us() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.theirs
        .ip(&format!("addr add {HEIR}/24 dev eth0"))
        .unwrap();
    link.run(|| async {
        let gobgp = GoBgp::start(&link.theirs, &link.dir.path().join("gobgp"), GOBGP).unwrap();
        let ours = Ours::start();
        let mut teller = peer();
        // GoBGP listens at every address of the namespace.
        teller.passive = true;
        let mut heir = PeerConfig::new("heir", HEIR.into(), 65003);
        heir.connect_retry_time = Duration::from_secs(1);
        heir.next_hop_v6 = Some(OUR_V6);
        heir.transit = true;
        ours.handle.set_peers(vec![teller, heir]).await.unwrap();
        ours.announce(&[]).await;
        let lines = format!(
            " router-id {THEIR_V4};\n local-address {THEIR_V4};\n local-as 65000;\n peer-as 65001;\n hold-time 9;\n\
             \x20family {{ ipv4 unicast; ipv6 unicast; }}\n\
             \x20static {{\n\
             \x20 route 203.0.113.0/24 next-hop {THEIR_V4} {EXTRA};\n\
             \x20 route 2001:db8:f::/48 next-hop {THEIR_V6} {EXTRA};\n }}\n"
        );
        let dir = link.dir.path().join("exabgp");
        let _exabgp = ExaBgp::start(&link.theirs, &dir, &OUR_V4.to_string(), &lines).unwrap();

        for (family, prefix) in [("ipv4", "203.0.113.0/24"), ("ipv6", "2001:db8:f::/48")] {
            let told = attributes(&gobgp, family, prefix);
            let of = |code: u64| {
                let found = told.iter().find(|attribute| attribute["type"] == code);
                found.unwrap_or_else(|| panic!("{code} is not in {told:?}")).clone()
            };
            assert_eq!(of(2)["as_paths"][0]["asns"], serde_json::json!([65001, 65000]));
            of(6);
            assert_eq!((&of(7)["as"], &of(7)["address"]), (&65000.into(), &"10.9.9.9".into()));
            assert_eq!(of(16)["value"][0]["value"], "65000:7");
            assert_eq!(of(32)["value"][0].to_string().matches("65000").count(), 1);
            // Optional, transitive, and partial: we did not know it either. The value is base64.
            assert_eq!((&of(200)["flags"], &of(200)["value"]), (&0xE0.into(), &"AQID".into()));
        }
        ours.stop().await;
    });
}
