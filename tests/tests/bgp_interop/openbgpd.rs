//! With OpenBGPD: both families over a session of either, withdrawals, refreshes.
//!
//! It tells of the family of its session alone: for the other one it has no next hop on Linux but loopback.
//! Nor are there passwords: it lets nobody in who signs there. Asked for its routes again it counts the request
//! and says nothing (7.7 on Linux; to BIRD no more than to us), so what is held against us is the request.

use fairlead_tests::peer::OpenBgpd;

use super::*;

/// What it tells over a session with us at this address.
const fn theirs(us: IpAddr) -> (&'static str, IpAddr) {
    match us {
        IpAddr::V4(_) => ("203.0.113.0/24", IpAddr::V4(THEIR_V4)),
        IpAddr::V6(_) => ("2001:db8:f::/48", IpAddr::V6(THEIR_V6)),
    }
}

/// Starts it with lines about us.
fn start(link: &Link, us: IpAddr) -> OpenBgpd {
    let config = format!(
        "AS 65000\nrouter-id {THEIR_V4}\nholdtime 9\nfib-update no\n\
         network {}\n\
         neighbor {us} {{\n remote-as 65001\n announce IPv4 unicast\n announce IPv6 unicast\n}}\n\
         allow from any\nallow to any\n",
        theirs(us).0
    );
    OpenBgpd::start(&link.theirs, &link.dir.path().join("openbgpd"), &config).unwrap()
}

fn shows(openbgpd: &OpenBgpd, prefix: &str, next_hop: Option<&str>) {
    wait_for(
        &format!("OpenBGPD to have {prefix} by {next_hop:?}"),
        20,
        || {
            let shown = openbgpd.ask(&format!("show rib {prefix}"))?;
            let row = shown.lines().find(|line| line.contains(prefix));
            let is_so = match (row, next_hop) {
                (Some(row), Some(next_hop)) => row.contains(next_hop) && row.contains("65001"),
                (row, next_hop) => row.is_none() && next_hop.is_none(),
            };
            anyhow::ensure!(is_so, "{shown}");
            Ok(Some(()))
        },
    )
    .unwrap();
}

#[test]
fn openbgpd_and_we_exchange_routes_over_either_family() {
    if !is_root() {
        return;
    }
    for (us, them) in [
        (IpAddr::from(OUR_V4), IpAddr::from(THEIR_V4)),
        (OUR_V6.into(), THEIR_V6.into()),
    ] {
        let link = Link::new();
        link.run(|| async {
            let openbgpd = start(&link, us);
            let ours = Ours::start();
            let mut config = peer();
            config.address = them;
            config.next_hop_v4 = Some(OUR_V4);
            ours.handle.set_peers(vec![config]).await.unwrap();
            ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
            shows(&openbgpd, "192.0.2.1/32", Some("10.77.0.1"));
            shows(&openbgpd, "2001:db8:1::/64", Some("fd77::1"));
            let told = theirs(us);
            ours.learns(&[told]).await;

            ours.announce(&["192.0.2.1/32"]).await;
            shows(&openbgpd, "2001:db8:1::/64", None);
            openbgpd.ask(&format!("network delete {}", told.0)).unwrap();
            ours.learns(&[]).await;
            openbgpd.ask(&format!("network add {}", told.0)).unwrap();
            ours.learns(&[told]).await;

            ours.handle.withdraw_all().await.unwrap();
            shows(&openbgpd, "192.0.2.1/32", None);
            ours.stop().await;
        });
    }
}

#[test]
fn openbgpd_is_told_again_on_request_and_takes_ours() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let openbgpd = start(&link, OUR_V4.into());
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        shows(&openbgpd, "192.0.2.1/32", Some("10.77.0.1"));
        let before = ours.handle.peers().await.unwrap()[0].counters;
        assert!(
            ours.handle
                .refresh("peer", Family::Ipv4Unicast)
                .await
                .unwrap()
        );
        openbgpd.ask(&format!("neighbor {OUR_V4} refresh")).unwrap();
        let begin = tokio::time::Instant::now();
        loop {
            let after = ours.handle.peers().await.unwrap()[0].counters;
            let shown = openbgpd.ask(&format!("show neighbor {OUR_V4}")).unwrap();
            // Sent and received, of messages.
            let requests = shown.lines().find(|line| {
                line.split_whitespace().collect::<Vec<_>>() == ["Route", "Refresh", "2", "1"]
            });
            if requests.is_some() && after.sent.updates > before.sent.updates {
                break;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "{before:?}, {after:?}, {shown}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        shows(&openbgpd, "192.0.2.1/32", Some("10.77.0.1"));
        ours.learns(&[theirs(OUR_V4.into())]).await;
        assert_eq!(ours.handle.peers().await.unwrap()[0].established_count, 1);
        ours.stop().await;
    });
}
