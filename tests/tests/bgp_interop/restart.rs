//! Who keeps whose routes when one side restarts (RFC 4724, RFC 8538), with FRR.

use fairlead_bgp::{Event, GracefulRestart, Speaker};

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

/// Both sides keep routes over a restart, and over a NOTIFICATION.
fn graceful() -> PeerConfig {
    let mut config = peer();
    config.graceful_restart = Some(GracefulRestart {
        restart_time: Duration::from_mins(1),
        restarting: false,
        forwarding_preserved: true,
    });
    config
}

/// What was said last, once somebody said something.
async fn last_notification(ours: &Ours) -> fairlead_bgp::Notification {
    let said = async {
        loop {
            let peer = ours.handle.peers().await.unwrap().remove(0);
            if let Some(said) = peer.last_notification {
                break said.notification;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), said)
        .await
        .unwrap()
}

/// Whether FRR loses a route of ours while it is asked again and again, for some seconds.
fn loses(frr: &Frr, prefix: &str) -> bool {
    (0..200).any(|_| frr.next_hops(prefix).unwrap().is_empty())
}

#[test]
fn frr_and_we_keep_each_others_routes_over_a_notification_and_not_over_a_hard_reset() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let notification =
            " bgp graceful-restart notification\n bgp graceful-restart preserve-fw-state\n no bgp hard-administrative-reset\n";
        let frr = link.frr_with(65000, "frr", notification, " neighbor 10.77.0.1 peer-group us\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![graceful()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        let theirs = [
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        ];
        ours.learns(&theirs).await;
        let mut learnt = ours.handle.learnt();
        learnt.mark_unchanged();
        let neighbor = ours.handle.peers().await.unwrap().remove(0);
        let heard = neighbor.heard.unwrap().graceful_restart.unwrap();
        assert!(heard.notification, "FRR has the N bit");

        // It resets the session, softly: nothing we learnt changes.
        frr.vtysh("clear bgp 10.77.0.1").unwrap();
        let said = last_notification(&ours).await;
        assert_eq!((said.code, said.subcode), (6, 4));
        back(&ours, 2).await;
        assert!(!learnt.has_changed().unwrap(), "{:?}", *learnt.borrow());

        // We do: nothing that FRR learnt changes.
        let mut config = graceful();
        config.hold_time = Duration::from_secs(12);
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        assert!(!loses(&frr, "192.0.2.1/32"), "FRR let go of our route");
        back(&ours, 3).await;

        // We leave for good.
        config.shutdown = Some("rack moves".to_owned());
        ours.handle.set_peers(vec![config]).await.unwrap();
        uses(&frr, "192.0.2.1/32", &[]);
        ours.learns(&[]).await;
        let shown = frr.json("show bgp neighbors 10.77.0.1").unwrap();
        let neighbor = &shown["10.77.0.1"];
        assert_eq!(neighbor["lastNotificationHardReset"], true, "{neighbor}");
        assert_eq!(neighbor["lastErrorCodeSubcode"], "0602", "{neighbor}");
        assert_eq!(neighbor["lastShutdownDescription"], "rack moves");
        ours.stop().await;
    });
}

/// Waits until the session has been established this many times.
async fn back(ours: &Ours, times: u64) {
    let up = async {
        loop {
            let peer = ours.handle.peers().await.unwrap().remove(0);
            if peer.established_count == times && peer.state == State::Established {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), up)
        .await
        .unwrap();
}

#[test]
fn bird_keeps_our_routes_marked_while_we_are_long_away_and_lets_go_of_them_in_the_end() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let session = "graceful restart aware; long lived graceful restart aware;";
        let v6 = "};\n ipv6 { import all; export none;";
        let bird = extensions::bird(&link, session, v6, "route 203.0.113.0/24 blackhole;");
        let ours = Ours::start();
        let mut config = graceful();
        if let Some(restart) = &mut config.graceful_restart {
            restart.restart_time = Duration::from_secs(2);
        }
        config.long_lived_stale_time = Some(Duration::from_secs(6));
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
        extensions::says(&bird, "show route 192.0.2.1/32", "192.0.2.1/32");
        extensions::says(&bird, "show route 2001:db8:1::/64", "2001:db8:1::/64");
        let has_ended = async {
            let sent =
                |speaker: &Speaker, now| speaker.neighbor("peer", now).unwrap().end_of_rib_sent;
            while !ours.handle.look(sent).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), has_ended)
            .await
            .unwrap();
        ours.stop().await;

        for prefix in ["192.0.2.1/32", "2001:db8:1::/64"] {
            let what = format!("BIRD to mark {prefix}");
            wait_for(&what, 10, || {
                // LLGR_STALE is 65535:6.
                let shown = bird.ask(&format!("show route {prefix} all"))?;
                anyhow::ensure!(shown.contains("(65535,6)"), "{shown}");
                Ok(Some(()))
            })
            .unwrap();
        }
        for prefix in ["192.0.2.1/32", "2001:db8:1::/64"] {
            wait_for(&format!("BIRD to let go of {prefix}"), 15, || {
                let shown = bird.ask("show route")?;
                anyhow::ensure!(!shown.contains(prefix), "{shown}");
                Ok(Some(()))
            })
            .unwrap();
        }
    });
}
