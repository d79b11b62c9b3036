//! GTSM (RFC 5082), shutdowns with a text (RFC 9003) and graceful ones (RFC 8326), with FRR.

use super::*;

#[test]
fn frr_with_ttl_security_and_we_accept_each_other_whoever_dials() {
    if !is_root() {
        return;
    }
    for (neighbor, theirs) in [
        ("10.77.0.1", IpAddr::from(THEIR_V4)),
        ("fd77::1", IpAddr::from(THEIR_V6)),
    ] {
        for (passive, line) in [(true, ""), (false, " neighbor us passive\n")] {
            let link = Link::new();
            link.run(|| async {
                let frr = link.frr(&format!(
                    " neighbor {neighbor} peer-group us\n neighbor us ttl-security hops 1\n{line}"
                ));
                let ours = Ours::start();
                let mut config = peer();
                config.address = theirs;
                config.next_hop_v4 = Some(OUR_V4);
                config.passive = passive;
                config.ttl_security = Some(1);
                ours.handle.set_peers(vec![config]).await.unwrap();
                ours.announce(&["192.0.2.1/32"]).await;
                uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
                ours.stop().await;
            });
        }
    }
}

#[test]
fn one_that_does_not_guard_itself_is_not_taken_for_near() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        // Its packets have TTL 1: they may have come from anywhere.
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        let ours = Ours::start();
        let mut config = peer();
        config.ttl_security = Some(1);
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let peers = ours.handle.peers().await.unwrap();
        assert_eq!(peers[0].established_count, 0, "{peers:?}");
        let why = peers[0].last_error.clone().unwrap_or_default();
        assert!(why.contains("its TTL is 1 and ttlSecurityHops"), "{why}");

        frr.configure(&["router bgp 65000", "neighbor us ttl-security hops 1"])
            .unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        ours.stop().await;
    });
}

#[test]
fn frr_shows_why_we_shut_down_and_that_paths_are_about_to_go() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n bgp log-neighbor-changes\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);

        let mut draining = peer();
        draining.graceful_shutdown = true;
        ours.handle.set_peers(vec![draining]).await.unwrap();
        wait_for("FRR to see that the path is about to go", 10, || {
            let route = frr.json("show bgp ipv4 unicast 192.0.2.1/32")?;
            let communities = &route["paths"][0]["community"]["string"];
            anyhow::ensure!(communities == "graceful-shutdown", "{communities}");
            Ok(Some(()))
        })
        .unwrap();
        let peers = ours.handle.peers().await.unwrap();
        assert_eq!(peers[0].established_count, 1);

        let mut closed = peer();
        closed.shutdown = Some("rack moves to row 7".to_owned());
        ours.handle.set_peers(vec![closed]).await.unwrap();
        let log = link.dir.path().join("frr/bgpd.log");
        wait_for("FRR to log the text", 10, || {
            let text = std::fs::read_to_string(&log)?;
            anyhow::ensure!(text.contains("rack moves to row 7"), "{text}");
            Ok(Some(()))
        })
        .unwrap();
        uses(&frr, "192.0.2.1/32", &[]);
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        ours.stop().await;
    });
}
