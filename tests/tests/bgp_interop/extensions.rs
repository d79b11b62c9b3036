//! What both sides must offer before it is done, with BIRD.

use std::collections::BTreeSet;

use fairlead_bgp::config::Announcements;
use fairlead_bgp::{Event, GracefulRestart, Role};

use super::*;

/// A BIRD with routes of its own, and lines about its session with us.
pub(super) fn bird(link: &Link, session: &str, channel: &str, routes: &str) -> Bird {
    let config = format!(
        "router id 10.77.0.2;\n\
         protocol device {{}}\n\
         protocol static s4 {{ ipv4; {routes} }}\n\
         protocol bgp fairlead {{\n\
           local 10.77.0.2 as 65000; neighbor 10.77.0.1 as 65001; hold time 9; connect delay time 1; error wait time 1, 2;\n\
           {session}\n\
           ipv4 {{ import all; export where source = RTS_STATIC; {channel} }};\n\
         }}\n"
    );
    Bird::start(&link.theirs, &link.dir.path().join("bird"), &config).unwrap()
}

/// Waits until BIRD's words on this command hold a text.
pub(super) fn says(bird: &Bird, command: &str, text: &str) {
    wait_for(&format!("BIRD to say {text}"), 20, || {
        let shown = bird.ask(command)?;
        anyhow::ensure!(shown.contains(text), "{shown}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn bird_and_we_exchange_messages_of_more_than_4096_octets() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let communities: String = (0..1500)
            .map(|n| format!("bgp_community.add((65000,{n})); "))
            .collect();
        let routes = format!("route 203.0.113.0/24 blackhole {{ {communities} }};");
        let bird = bird(&link, "enable extended messages yes;", "", &routes);
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        let announcement = Announcement {
            communities: (0..1500).map(|n| 65001 << 16 | n).collect(),
            ..Announcement::default()
        };
        let announcements = Announcements::unit(net("192.0.2.1/32"), announcement);
        ours.handle.set_announcements(announcements).await.unwrap();
        says(&bird, "show route 192.0.2.1/32 all", "(65001,1499)");
        ours.learns(&[("203.0.113.0/24", THEIR_V4.into())]).await;
        let snapshot = ours.handle.snapshot().await.unwrap();
        let theirs = net("203.0.113.0/24");
        let theirs = snapshot.routes.iter().find(|route| route.prefix == theirs);
        let communities = &theirs.unwrap().paths[0].attributes.communities;
        assert_eq!(communities.len(), 1500);
        ours.stop().await;
    });
}

#[test]
fn bird_and_we_mark_where_routes_told_again_begin_and_end() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let bird = bird(&link, "", "", "route 203.0.113.0/24 blackhole;");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        ours.learns(&[("203.0.113.0/24", THEIR_V4.into())]).await;
        says(&bird, "show route 192.0.2.1/32", "192.0.2.1/32");
        let refreshes = async |received: u64, sent: u64| {
            let marked = async {
                loop {
                    let peer = ours.handle.peers().await.unwrap().remove(0);
                    let seen = peer.counters.received.route_refreshes;
                    let said = peer.counters.sent.route_refreshes;
                    if (seen, said) == (received, sent) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let marked = tokio::time::timeout(Duration::from_secs(10), marked).await;
            assert!(
                marked.is_ok(),
                "{:?}",
                ours.handle.peers().await.unwrap()[0].counters
            );
        };
        let mut events = ours.handle.events();
        let asked = ours.handle.refresh("peer", Family::Ipv4Unicast).await;
        assert_eq!(asked, Ok(true));
        refreshes(2, 1).await;
        let over = async {
            loop {
                if let Event::RefreshOver { dropped, .. } = events.recv().await.unwrap() {
                    return dropped;
                }
            }
        };
        let dropped = tokio::time::timeout(Duration::from_secs(5), over).await;
        assert_eq!(dropped.unwrap(), 0);
        bird.order("reload in fairlead").unwrap();
        refreshes(3, 3).await;
        says(&bird, "show route 192.0.2.1/32", "192.0.2.1/32");
        says(&bird, "show protocols all fairlead", "Enhanced refresh");
        ours.stop().await;
    });
}

/// What we are to a peer, and whether it must say what it is.
fn with_role(role: Role, strict: bool) -> PeerConfig {
    let mut config = peer();
    (config.role, config.role_strict) = (Some(role), strict);
    config
}

#[test]
fn a_role_that_does_not_fit_birds_is_refused_and_what_a_provider_tells_is_for_customers_only() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let session = "local role provider; require roles yes;";
        let bird = bird(&link, session, "", "route 203.0.113.0/24 blackhole;");
        let ours = Ours::start();
        ours.announce(&["192.0.2.1/32"]).await;
        ours.handle
            .set_peers(vec![with_role(Role::Peer, false)])
            .await
            .unwrap();
        let refused = async {
            loop {
                let peer = ours.handle.peers().await.unwrap().remove(0);
                if let Some(said) = peer.last_notification {
                    break (said.notification.code, said.notification.subcode);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
        assert_eq!(refused.unwrap(), (2, 11));

        let customer = with_role(Role::Customer, true);
        ours.handle.set_peers(vec![customer]).await.unwrap();
        ours.learns(&[("203.0.113.0/24", THEIR_V4.into())]).await;
        let snapshot = ours.handle.snapshot().await.unwrap();
        let theirs = net("203.0.113.0/24");
        let theirs = snapshot.routes.iter().find(|route| route.prefix == theirs);
        let attributes = &theirs.unwrap().paths[0].attributes;
        assert_eq!(attributes.rare().only_to_customer, Some(65000));
        says(&bird, "show route 192.0.2.1/32", "192.0.2.1/32");
        ours.stop().await;
    });
}

#[test]
fn frr_and_we_agree_on_roles() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(
            " neighbor 10.77.0.1 peer-group us\n neighbor 10.77.0.1 local-role customer strict-mode\n",
        );
        let ours = Ours::start();
        let provider = with_role(Role::Provider, true);
        ours.handle.set_peers(vec![provider]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        let shown = frr.json("show bgp ipv4 unicast 192.0.2.1/32").unwrap();
        assert_eq!(shown["paths"][0]["otc"], 65001, "{shown}");
        ours.stop().await;
    });
}

#[test]
fn several_paths_that_bird_tells_of_a_prefix_are_used_together_and_lost_one_by_one() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let sources = "route 203.0.113.0/24 via 10.77.0.3; }\n\
             protocol static s5 { ipv4; route 203.0.113.0/24 via 10.77.0.4;";
        let bird = bird(&link, "", "add paths tx;", sources);
        let ours = Ours::start();
        let mut config = peer();
        config.add_path = true;
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.handle.withdraw_all().await.unwrap();
        let uses = async |last: &[u8]| {
            let wanted: BTreeSet<_> = last.iter().map(|n| IpAddr::from([10, 77, 0, *n])).collect();
            let mut learnt = ours.handle.learnt();
            let found = learnt.wait_for(|table| {
                let paths = table.get(&net("203.0.113.0/24"));
                let paths = paths.into_iter().flat_map(|paths| paths.iter());
                let hops: BTreeSet<_> = paths.map(|path| path.next_hop).collect();
                hops == wanted
            });
            let found = tokio::time::timeout(Duration::from_secs(20), found).await;
            let is_there = found.is_ok();
            let routes = ours.handle.snapshot().await.unwrap().routes;
            assert!(is_there, "{wanted:?}: {routes:#?}");
        };
        uses(&[3, 4]).await;
        bird.order("disable s4").unwrap();
        uses(&[4]).await;
        bird.order("enable s4").unwrap();
        uses(&[3, 4]).await;
        ours.stop().await;
    });
}

#[test]
fn routes_of_a_bird_that_is_long_away_are_kept_marked_for_its_long_lived_time() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let session = "graceful restart on; graceful restart time 2;\n\
             long lived graceful restart on; long lived stale time 4;";
        let bird = bird(&link, session, "", "route 203.0.113.0/24 blackhole;");
        let ours = Ours::start();
        let mut config = peer();
        config.graceful_restart = Some(GracefulRestart {
            restart_time: Duration::from_secs(2),
            restarting: false,
            forwarding_preserved: true,
        });
        config.long_lived_stale_time = Some(Duration::from_mins(10));
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.handle.withdraw_all().await.unwrap();
        ours.learns(&[("203.0.113.0/24", THEIR_V4.into())]).await;
        let mut events = ours.handle.events();
        drop(bird);
        let outlive = async {
            loop {
                if let Event::RoutesOutlive {
                    family: Family::Ipv4Unicast,
                    stale_time,
                    ..
                } = events.recv().await.unwrap()
                {
                    return stale_time;
                }
            }
        };
        let stale_time = tokio::time::timeout(Duration::from_secs(10), outlive).await;
        assert_eq!(stale_time.unwrap(), Duration::from_secs(4));
        let routes = ours.handle.snapshot().await.unwrap().routes;
        let path = &routes[0].paths[0];
        assert_eq!(path.attributes.communities, [0xFFFF_0006]);
        assert!(path.used, "there is no other");
        ours.learns(&[]).await;
        ours.stop().await;
    });
}
