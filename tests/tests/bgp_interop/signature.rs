//! TCP MD5 (RFC 2385) with FRR: the same password, another one, none.

use fairlead_bgp::Password;
use fairlead_control::bgp_io::Md5Drops;

use super::*;

async fn stays_down(ours: &Ours, seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let peers = ours.handle.peers().await.unwrap();
    assert_eq!(peers[0].established_count, 0, "{peers:?}");
}

fn with_password(password: &[u8]) -> PeerConfig {
    let mut config = peer();
    config.password = Some(Password::new(password).unwrap());
    config
}

#[test]
fn frr_with_the_same_password_is_signed_with_whoever_dials() {
    if !is_root() {
        return;
    }
    for (family, neighbor, theirs) in [
        ("IPv4", "10.77.0.1", IpAddr::from(THEIR_V4)),
        ("IPv6", "fd77::1", IpAddr::from(THEIR_V6)),
    ] {
        for (dials, passive) in [("it", true), ("we", false)] {
            let link = Link::new();
            link.run(|| async {
                let frr = link.frr(&format!(
                    " neighbor {neighbor} peer-group us\n neighbor us password sEcret-1\n{}",
                    if passive {
                        ""
                    } else {
                        " neighbor us passive\n"
                    }
                ));
                let ours = Ours::start();
                let mut config = with_password(b"sEcret-1");
                config.address = theirs;
                config.next_hop_v4 = Some(OUR_V4);
                config.passive = passive;
                ours.handle.set_peers(vec![config]).await.unwrap();
                ours.announce(&["192.0.2.1/32"]).await;
                uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
                assert_eq!(
                    Md5Drops::read().unwrap().mismatched,
                    0,
                    "over {family}, {dials} dials"
                );
                ours.stop().await;
            });
        }
    }
}

#[test]
fn another_password_or_none_gives_no_session_and_is_counted() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n neighbor us password sEcret-1\n");
        let ours = Ours::start();
        ours.handle
            .set_peers(vec![with_password(b"sEcret-2")])
            .await
            .unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        stays_down(&ours, 4).await;
        assert!(Md5Drops::read().unwrap().mismatched > 0);

        ours.handle.set_peers(vec![peer()]).await.unwrap();
        stays_down(&ours, 4).await;
        assert!(Md5Drops::read().unwrap().unexpected > 0);

        // At no moment do both have the same, or none.
        ours.handle
            .set_peers(vec![with_password(b"sEcret-2")])
            .await
            .unwrap();
        frr.configure(&["router bgp 65000", "no neighbor us password"])
            .unwrap();
        stays_down(&ours, 4).await;
        assert!(Md5Drops::read().unwrap().unsigned > 0);

        ours.handle
            .set_peers(vec![with_password(b"sEcret-1")])
            .await
            .unwrap();
        frr.configure(&["router bgp 65000", "neighbor us password sEcret-1"])
            .unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);

        // A password that goes away takes its session with it.
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        uses(&frr, "192.0.2.1/32", &[]);
        ours.stop().await;
    });
}
