//! An agent whose peer is watched by BFD because a profile says so.

use std::time::{Duration, Instant};

use anyhow::ensure;
use fairlead_tests::lab::Lab;
use fairlead_tests::netns::wait_for;
use fairlead_tests::root;

const PROFILE: &str = "\
apiVersion: fairlead.io/v1alpha1
kind: BGPPeerProfile
metadata: { name: router }
spec:
  peers: [{ address: 10.0.1.0/24 }]
  bfd: { transmitIntervalMilliseconds: 100, receiveIntervalMilliseconds: 100 }
";

#[test]
fn a_profile_has_the_router_watched_and_a_cut_takes_its_routes_from_the_kernel() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-bfd").unwrap();
    let node = &lab.nodes[0];
    lab.frr
        .configure(&[
            "bfd",
            "peer 10.0.1.2",
            "transmit-interval 100",
            "receive-interval 100",
        ])
        .unwrap();
    node.put("profile.yaml", PROFILE).unwrap();
    wait_for("BFD to be up", 10, || {
        let bfd = node.ask(&["bgp", "bfd"])?;
        let session = &bfd["sessions"][0];
        ensure!(session["detectionTimeMs"] == 300, "{bfd}");
        ensure!(session["state"] == "up", "{bfd}");
        Ok(Some(()))
    })
    .unwrap();
    let table = node.dpctl(&["bgp", "peers"]).unwrap();
    assert!(table.contains("up"), "{table}");
    // The other node's router is watched by nobody: the profile names one link.
    let other = lab.nodes[1].ask(&["bgp", "bfd"]).unwrap();
    assert_eq!(other["sessions"], serde_json::json!([]));

    let has_routes = || {
        let routes = node.netns.run("ip route show proto 208")?;
        Ok::<_, anyhow::Error>(routes.contains("10.1.2.0/24"))
    };
    assert!(has_routes().unwrap());
    lab.router.cut().unwrap();
    #[expect(clippy::disallowed_methods, reason = "an edge: it times a real event")]
    let cut_at = Instant::now();
    wait_for("the learnt routes to go", 5, || {
        Ok((!has_routes()?).then_some(()))
    })
    .unwrap();
    // The hold time is 9 s; what a busy machine adds is not told from it otherwise.
    assert!(
        cut_at.elapsed() < Duration::from_secs(3),
        "{:?}",
        cut_at.elapsed()
    );
    let peers = node.ask(&["bgp", "peers"]).unwrap();
    assert_eq!(
        peers[0]["lastError"], "sent 6/9 Hard Reset: 6/10 BFD Down",
        "{peers}"
    );

    lab.router.heal().unwrap();
    wait_for("the learnt routes to come back", 20, || {
        Ok(has_routes()?.then_some(()))
    })
    .unwrap();

    // Without the profile the session stays, and is not watched.
    node.put("profile.yaml", "").unwrap();
    wait_for("BFD to end", 5, || {
        let bfd = node.ask(&["bgp", "bfd"])?;
        ensure!(bfd["sessions"] == serde_json::json!([]), "{bfd}");
        Ok(Some(()))
    })
    .unwrap();
    assert!(has_routes().unwrap());
}
