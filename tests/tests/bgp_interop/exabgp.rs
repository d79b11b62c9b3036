//! With ExaBGP: both families over a session of either, withdrawals, refreshes, passwords.

use fairlead_bgp::Password;
use fairlead_tests::peer::ExaBgp;

use super::*;

fn start(link: &Link, us: IpAddr, them: IpAddr, lines: &str) -> ExaBgp {
    let lines = format!(
        " router-id {THEIR_V4};\n local-address {them};\n local-as 65000;\n peer-as 65001;\n hold-time 9;\n\
         {lines}\
         \x20capability {{ route-refresh enable; }}\n\
         \x20family {{ ipv4 unicast; ipv6 unicast; }}\n\
         \x20static {{\n  route 203.0.113.0/24 next-hop {THEIR_V4};\n  route 2001:db8:f::/48 next-hop {THEIR_V6};\n }}\n"
    );
    let dir = link.dir.path().join("exabgp");
    ExaBgp::start(&link.theirs, &dir, &us.to_string(), &lines).unwrap()
}

/// How often it heard of a prefix in this way.
fn times(exabgp: &ExaBgp, what: &str, prefix: &str) -> usize {
    let heard = exabgp.heard().unwrap();
    let lines = heard
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter(|line| {
            let update = &line["neighbor"]["message"]["update"][what];
            update.to_string().contains(&format!("\"{prefix}\""))
        })
        .count()
}

fn hears(exabgp: &ExaBgp, what: &str, prefix: &str, often: usize) {
    wait_for(
        &format!("ExaBGP to hear {what} {prefix} {often} times"),
        20,
        || {
            anyhow::ensure!(times(exabgp, what, prefix) >= often, "{}", exabgp.heard()?);
            Ok(Some(()))
        },
    )
    .unwrap();
}

#[test]
fn exabgp_and_we_exchange_routes_over_either_family() {
    if !is_root() {
        return;
    }
    for (us, them) in [
        (IpAddr::from(OUR_V4), IpAddr::from(THEIR_V4)),
        (OUR_V6.into(), THEIR_V6.into()),
    ] {
        let link = Link::new();
        link.run(|| async {
            let ours = Ours::start();
            let mut config = peer();
            config.address = them;
            config.next_hop_v4 = Some(OUR_V4);
            ours.handle.set_peers(vec![config]).await.unwrap();
            ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
            let exabgp = start(&link, us, them, "");
            let all = [
                ("203.0.113.0/24", THEIR_V4.into()),
                ("2001:db8:f::/48", THEIR_V6.into()),
            ];
            ours.learns(&all).await;
            hears(&exabgp, "announce", "192.0.2.1/32", 1);
            hears(&exabgp, "announce", "2001:db8:1::/64", 1);

            ours.announce(&["192.0.2.1/32"]).await;
            hears(&exabgp, "withdraw", "2001:db8:1::/64", 1);
            exabgp
                .tell(&format!(
                    "withdraw route 203.0.113.0/24 next-hop {THEIR_V4}"
                ))
                .unwrap();
            ours.learns(&all[1..]).await;
            exabgp
                .tell(&format!(
                    "announce route 203.0.113.0/24 next-hop {THEIR_V4}"
                ))
                .unwrap();
            ours.learns(&all).await;

            ours.handle.withdraw_all().await.unwrap();
            hears(&exabgp, "withdraw", "192.0.2.1/32", 1);
            ours.stop().await;
        });
    }
}

#[test]
fn exabgp_and_we_tell_each_other_again_on_request() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        let exabgp = start(&link, OUR_V4.into(), THEIR_V4.into(), "");
        hears(&exabgp, "announce", "192.0.2.1/32", 1);
        exabgp.tell("announce route-refresh ipv4 unicast").unwrap();
        hears(&exabgp, "announce", "192.0.2.1/32", 2);

        let before = ours.handle.peers().await.unwrap()[0].counters;
        assert!(
            ours.handle
                .refresh("peer", Family::Ipv4Unicast)
                .await
                .unwrap()
        );
        let begin = tokio::time::Instant::now();
        while ours.handle.peers().await.unwrap()[0]
            .counters
            .received
            .updates
            == before.received.updates
        {
            assert!(begin.elapsed() < Duration::from_secs(10), "{before:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ours.stop().await;
    });
}

#[test]
fn exabgp_is_signed_with_and_another_password_gives_no_session() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let ours = Ours::start();
        let mut config = peer();
        config.password = Some(Password::new(b"another").unwrap());
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        let exabgp = start(
            &link,
            OUR_V4.into(),
            THEIR_V4.into(),
            " md5-password sEcret-1;\n",
        );
        tokio::time::sleep(Duration::from_secs(3)).await;
        let peers = ours.handle.peers().await.unwrap();
        assert_eq!(peers[0].established_count, 0, "{peers:?}");

        config.password = Some(Password::new(b"sEcret-1").unwrap());
        ours.handle.set_peers(vec![config]).await.unwrap();
        hears(&exabgp, "announce", "192.0.2.1/32", 1);
        ours.stop().await;
    });
}
