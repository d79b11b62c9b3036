//! Who keeps whose routes when one side restarts (RFC 4724), with FRR.

use fairlead_bgp::{Event, GracefulRestart};

use super::*;

#[test]
fn frr_keeps_our_routes_while_we_restart_and_drops_what_we_do_not_announce_again() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        let mut config = peer();
        config.graceful_restart = Some(GracefulRestart {
            restart_time: Duration::from_mins(1),
            restarting: false,
            forwarding_preserved: true,
        });
        let ours = Ours::start();
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        ours.announce(&["192.0.2.1/32", "192.0.2.2/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        uses(&frr, "192.0.2.2/32", &["10.77.0.1"]);
        // FRR keeps routes only of a peer whose End-of-RIB it has seen.
        wait_for("FRR to see our End-of-RIB", 10, || {
            let text = frr.vtysh("show bgp neighbors 10.77.0.1")?;
            anyhow::ensure!(text.contains("End-of-RIB received"), "{text}");
            Ok(Some(()))
        })
        .unwrap();
        ours.stop().await;
        wait_for("FRR to notice", 10, || {
            let neighbors = frr.json("show bgp neighbors 10.77.0.1")?;
            let state = &neighbors["10.77.0.1"]["bgpState"];
            anyhow::ensure!(state != "Established", "{state}");
            Ok(Some(()))
        })
        .unwrap();
        assert_eq!(frr.next_hops("192.0.2.1/32").unwrap(), ["10.77.0.1"]);

        let again = Ours::start();
        if let Some(restart) = &mut config.graceful_restart {
            restart.restarting = true;
        }
        let mut events = again.handle.events();
        again.handle.set_peers(vec![config]).await.unwrap();
        let up = async { while !matches!(events.recv().await.unwrap(), Event::PeerUp { .. }) {} };
        tokio::time::timeout(Duration::from_secs(20), up)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            frr.next_hops("192.0.2.2/32").unwrap(),
            ["10.77.0.1"],
            "kept until we have said everything"
        );
        again.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.2/32", &[]);
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        again.stop().await;
    });
}

/// FRR is killed and starts again with one prefix less.
fn killed_and_started_again(link: &Link, frr: Frr, restart: &str) -> Frr {
    drop(frr);
    let frr = link.frr_with(
        65000,
        "frr-again",
        restart,
        " neighbor 10.77.0.1 peer-group us\n",
    );
    frr.configure(&[
        "router bgp 65000",
        "address-family ipv6 unicast",
        "no network 2001:db8:f::/48",
    ])
    .unwrap();
    frr
}

#[test]
fn routes_of_an_frr_that_is_killed_stay_when_both_restart_gracefully() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let preserve = " bgp graceful-restart preserve-fw-state\n";
        let restartable = " neighbor 10.77.0.1 peer-group us\n";
        let frr = link.frr_with(65000, "frr", preserve, restartable);
        let ours = Ours::start();
        let mut config = peer();
        config.graceful_restart = Some(GracefulRestart {
            restart_time: Duration::from_mins(1),
            restarting: false,
            forwarding_preserved: true,
        });
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.handle.withdraw_all().await.unwrap();
        let (v4, v6) = (
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        );
        ours.learns(&[v4, v6]).await;
        let mut learnt = ours.handle.learnt();
        learnt.mark_unchanged();
        let watched = tokio::spawn(async move {
            let mut lost = false;
            while learnt.changed().await.is_ok() {
                lost |= !learnt.borrow().contains_key(&net("203.0.113.0/24"));
                if !learnt.borrow().contains_key(&net("2001:db8:f::/48")) {
                    break;
                }
            }
            lost
        });
        let _frr = killed_and_started_again(&link, frr, preserve);
        ours.learns(&[v4]).await;
        assert!(
            !watched.await.unwrap(),
            "the IPv4 route was lost for a while"
        );
        ours.stop().await;
    });
}

#[test]
fn routes_of_an_frr_that_is_killed_go_and_come_back_without_graceful_restart() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.handle.withdraw_all().await.unwrap();
        let (v4, v6) = (
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        );
        ours.learns(&[v4, v6]).await;
        drop(frr);
        ours.learns(&[]).await;
        let _frr = link.frr_with(
            65000,
            "frr-again",
            "",
            " neighbor 10.77.0.1 peer-group us\n",
        );
        ours.learns(&[v4, v6]).await;
        ours.stop().await;
    });
}
