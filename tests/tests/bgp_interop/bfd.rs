//! BFD (RFC 5880 to 5883) with FRR's bfdd and BIRD: who detects what how fast, and what is no failure.

use fairlead_bgp::bfd::{Hops, Snapshot, State as Reach, Timing};
use fairlead_bgp::{BfdConfig, DownReason, Event, GracefulRestart};

use super::*;
use fairlead_control::bgp_io::bfd::Bfd;

/// Three packets at 50 ms, and what a busy machine adds to it in a test.
const DETECTED_WITHIN: Duration = Duration::from_millis(150 + 250);

/// FRR's 50 ms x 3. It stands last in the file, which all daemons read: bgpd does not know it.
const FAST: &str = "bfd\n\
    \x20profile fast\n\
    \x20 detect-multiplier 3\n\
    \x20 receive-interval 50\n\
    \x20 transmit-interval 50\n";

fn watched() -> PeerConfig {
    let mut config = peer();
    let interval = Duration::from_millis(50);
    config.bfd = Some(BfdConfig {
        timing: Timing {
            min_transmit: interval,
            min_receive: interval,
            multiplier: 3,
        },
        hops: Hops::Single,
        strict: false,
    });
    config
}

fn frr_watching(link: &Link, neighbor: &str) -> Frr {
    let config = format!("{}{FAST}", Link::frr_config(65000, "", neighbor));
    Frr::start_with_bfd(&link.theirs, &link.dir.path().join("frr"), &config).unwrap()
}

/// A driver whose peers BFD watches.
async fn watching() -> (Ours, Bfd) {
    let ours = Ours::start();
    let bfd = Bfd::start().unwrap();
    ours.handle.set_bfd(Some(bfd.watch())).await.unwrap();
    (ours, bfd)
}

/// Ends as an agent ends that is told to stop.
async fn stop(ours: Ours, bfd: Bfd) {
    ours.stop().await;
    bfd.stop().await;
}

/// Our only session; none before the thread has heard of it.
async fn session(bfd: &Bfd) -> Option<Snapshot> {
    bfd.snapshot().await.sessions.pop()
}

/// Waits until our end is up and has agreed on its final timing.
async fn comes_up(bfd: &Bfd, detection: Duration) -> Snapshot {
    for _ in 0..200 {
        let found = session(bfd).await;
        if let Some(found) = found
            && found.standing.state == Reach::Up
            && found.detection_time == detection
        {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("BFD stays {:?}", session(bfd).await);
}

/// Cuts the link; how long it takes until our speaker has ended the session for BFD.
async fn detection(link: &Link, ours: &Ours) -> Duration {
    let mut events = ours.handle.events();
    link.theirs.cut().unwrap();
    #[expect(clippy::disallowed_methods, reason = "an edge: it times a real event")]
    let cut_at = std::time::Instant::now();
    let down = async {
        loop {
            if let Event::PeerDown { reason, .. } = events.recv().await.unwrap() {
                return reason;
            }
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(5), down)
        .await
        .unwrap();
    let took = cut_at.elapsed();
    let DownReason::Sent(notification) = reason else {
        panic!("{reason:?}")
    };
    let cause = notification.cause();
    assert_eq!((cause.code, cause.subcode), (6, 10));
    took
}

/// Cuts a running session: both ends lose their routes at once, and have them again when the link is back.
async fn cut_and_heal(link: &Link, ours: &Ours, theirs: (&str, Ipv4Addr)) {
    let (prefix, next_hop) = theirs;
    let learns = async |next_hop: Option<IpAddr>| {
        let mut learnt = ours.handle.learnt();
        let wanted = learnt.wait_for(|table| {
            let paths = table.get(&net(prefix));
            paths.map(|paths| paths[0].next_hop) == next_hop
        });
        let outcome = tokio::time::timeout(Duration::from_secs(20), wanted).await;
        outcome.unwrap().map(drop).unwrap();
    };
    learns(Some(next_hop.into())).await;
    let took = detection(link, ours).await;
    assert!(took < DETECTED_WITHIN, "{took:?}");
    learns(None).await;
    link.theirs.heal().unwrap();
    learns(Some(next_hop.into())).await;
}

#[test]
fn frr_and_we_miss_each_other_within_three_packets() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = frr_watching(
            &link,
            " neighbor 10.77.0.1 peer-group us\n neighbor us bfd profile fast\n",
        );
        let (ours, bfd) = watching().await;
        let mut config = watched();
        // Kept over a restart of the peer, not over a failure.
        config.graceful_restart = Some(GracefulRestart {
            restart_time: Duration::from_mins(1),
            restarting: false,
            forwarding_preserved: true,
        });
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        let found = comes_up(&bfd, Duration::from_millis(150)).await;
        assert_eq!(found.transmit_interval, Duration::from_millis(50));
        assert_eq!(found.remote_multiplier, 3);

        cut_and_heal(&link, &ours, ("203.0.113.0/24", THEIR_V4)).await;
        comes_up(&bfd, Duration::from_millis(150)).await;
        let peers = frr.json("show bfd peers").unwrap();
        assert_eq!(peers[0]["status"], "up", "{peers}");
        assert_eq!(peers[0]["remote-detect-multiplier"], 3, "{peers}");
        assert_eq!(peers[0]["remote-transmit-interval"], 50, "{peers}");
        assert!(session(&bfd).await.unwrap().failures >= 1);
        stop(ours, bfd).await;
    });
}

#[test]
fn frr_over_ipv6_sees_other_timing_without_a_flap_and_an_end_that_is_shut_is_no_failure() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = frr_watching(
            &link,
            " neighbor fd77::1 peer-group us\n neighbor us bfd profile fast\n",
        );
        let (ours, bfd) = watching().await;
        let mut config = watched();
        config.address = THEIR_V6.into();
        config.next_hop_v4 = Some(OUR_V4);
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        ours.announce(&["2001:db8:1::/64"]).await;
        uses(&frr, "2001:db8:1::/64", &["fd77::1"]);
        comes_up(&bfd, Duration::from_millis(150)).await;

        if let Some(bfd) = &mut config.bfd {
            bfd.timing.min_transmit = Duration::from_millis(200);
            bfd.timing.min_receive = Duration::from_millis(300);
            bfd.timing.multiplier = 5;
        }
        ours.handle.set_peers(vec![config]).await.unwrap();
        comes_up(&bfd, Duration::from_millis(900)).await;
        wait_for("FRR to see our timing", 10, || {
            let peers = frr.json("show bfd peers")?;
            let seen = (
                &peers[0]["remote-detect-multiplier"],
                &peers[0]["remote-transmit-interval"],
                &peers[0]["remote-receive-interval"],
            );
            anyhow::ensure!(seen == (&5.into(), &200.into(), &300.into()), "{peers}");
            Ok(Some(()))
        })
        .unwrap();

        // At 50 ms a busy machine may have kept FRR from sending in time.
        let sessions = async || ours.handle.peers().await.unwrap()[0].established_count;
        let before = sessions().await;
        frr.configure(&["bfd", "profile fast", "shutdown"]).unwrap();
        let mut left = false;
        for _ in 0..100 {
            let standing = session(&bfd).await.unwrap().standing;
            left = standing.state == Reach::Down && standing.peer_admin_down;
            if left {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(left, "{:?}", session(&bfd).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let peers = ours.handle.peers().await.unwrap();
        assert_eq!(peers[0].state, State::Established);
        assert_eq!(peers[0].established_count, before);

        frr.configure(&["bfd", "profile fast", "no shutdown"])
            .unwrap();
        comes_up(&bfd, Duration::from_millis(900)).await;
        stop(ours, bfd).await;
    });
}

#[test]
fn frr_keeps_our_routes_while_we_restart_though_it_watches_us() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = frr_watching(
            &link,
            " neighbor 10.77.0.1 peer-group us\n\
             \x20neighbor us bfd profile fast\n\
             \x20neighbor us bfd check-control-plane-failure\n",
        );
        let mut config = watched();
        config.graceful_restart = Some(GracefulRestart {
            restart_time: Duration::from_mins(1),
            restarting: false,
            forwarding_preserved: true,
        });
        let (ours, bfd) = watching().await;
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        comes_up(&bfd, Duration::from_millis(150)).await;
        wait_for("FRR to see our End-of-RIB", 10, || {
            let text = frr.vtysh("show bgp neighbors 10.77.0.1")?;
            anyhow::ensure!(text.contains("End-of-RIB received"), "{text}");
            Ok(Some(()))
        })
        .unwrap();
        stop(ours, bfd).await;
        // Longer than its detection time.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let peers = frr.json("show bfd peers").unwrap();
        assert_eq!(peers[0]["status"], "down", "{peers}");
        assert_eq!(frr.next_hops("192.0.2.1/32").unwrap(), ["10.77.0.1"]);

        let (again, bfd) = watching().await;
        if let Some(restart) = &mut config.graceful_restart {
            restart.restarting = true;
        }
        again.handle.set_peers(vec![config]).await.unwrap();
        again.announce(&["192.0.2.1/32"]).await;
        comes_up(&bfd, Duration::from_millis(150)).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        stop(again, bfd).await;
    });
}

#[test]
fn a_strict_session_waits_until_frr_answers_bfd() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = frr_watching(&link, " neighbor 10.77.0.1 peer-group us\n");
        let (ours, bfd) = watching().await;
        let mut config = watched();
        if let Some(bfd) = &mut config.bfd {
            bfd.strict = true;
        }
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let peers = ours.handle.peers().await.unwrap();
        assert_eq!(peers[0].state, State::Idle, "{peers:?}");
        assert!(peers[0].waits_for_bfd);

        frr.configure(&["bfd", "peer 10.77.0.1", "profile fast"])
            .unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        stop(ours, bfd).await;
    });
}

#[test]
fn bird_and_we_miss_each_other_within_three_packets() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let bird = Bird::start(
            &link.theirs,
            &link.dir.path().join("bird"),
            "router id 10.77.0.2;\n\
             protocol device {}\n\
             protocol static { ipv4; route 203.0.113.0/24 blackhole; }\n\
             protocol bfd { interface \"*\" { interval 50 ms; multiplier 3; }; }\n\
             protocol bgp fairlead {\n\
             \x20 local 10.77.0.2 as 65000;\n\
             \x20 neighbor 10.77.0.1 as 65001;\n\
             \x20 connect retry time 1; error wait time 1, 2;\n\
             \x20 bfd on;\n\
             \x20 ipv4 { import all; export all; };\n\
             }\n",
        )
        .unwrap();
        let (ours, bfd) = watching().await;
        ours.handle.set_peers(vec![watched()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        ours.learns(&[("203.0.113.0/24", THEIR_V4.into())]).await;
        comes_up(&bfd, Duration::from_millis(150)).await;
        cut_and_heal(&link, &ours, ("203.0.113.0/24", THEIR_V4)).await;
        comes_up(&bfd, Duration::from_millis(150)).await;
        let sessions = bird.ask("show bfd sessions").unwrap();
        assert!(sessions.contains("Up"), "{sessions}");

        stop(ours, bfd).await;
    });
}

#[test]
fn frr_behind_a_hop_is_watched_by_a_multihop_session() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    // Between addresses that are on no common link.
    link.ours.ip("addr add 10.99.0.1/32 dev lo").unwrap();
    link.theirs.ip("addr add 10.99.0.2/32 dev lo").unwrap();
    link.ours.ip("route add 10.99.0.2 via 10.77.0.2").unwrap();
    link.theirs.ip("route add 10.99.0.1 via 10.77.0.1").unwrap();
    link.run(|| async {
        let frr = frr_watching(
            &link,
            " neighbor 10.99.0.1 peer-group us\n\
             \x20neighbor us ebgp-multihop 3\n\
             \x20neighbor us update-source 10.99.0.2\n\
             \x20neighbor us bfd profile fast\n",
        );
        let (ours, bfd) = watching().await;
        let mut config = watched();
        config.address = [10, 99, 0, 2].into();
        config.local_address = Some([10, 99, 0, 1].into());
        config.ebgp_multihop_ttl = 3;
        if let Some(bfd) = &mut config.bfd {
            bfd.hops = Hops::Multi;
        }
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.99.0.1"]);
        comes_up(&bfd, Duration::from_millis(150)).await;
        let took = detection(&link, &ours).await;
        assert!(took < DETECTED_WITHIN, "{took:?}");
        stop(ours, bfd).await;
    });
}
