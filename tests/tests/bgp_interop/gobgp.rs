//! With GoBGP: both families.

use super::*;

#[test]
fn gobgp_and_we_exchange_routes() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let config = "[global.config]\nas = 65000\nrouter-id = \"10.77.0.2\"\n\
            [[neighbors]]\n[neighbors.config]\nneighbor-address = \"10.77.0.1\"\npeer-as = 65001\n\
            [neighbors.timers.config]\nconnect-retry = 5\nhold-time = 9\nkeepalive-interval = 3\n\
            [neighbors.transport.config]\npassive-mode = true\n\
            [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n\
            [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv6-unicast\"\n";
        let gobgp = GoBgp::start(&link.theirs, &link.dir.path().join("gobgp"), config).unwrap();
        gobgp
            .ask("global rib add 203.0.113.0/24 nexthop 10.77.0.2")
            .unwrap();
        gobgp
            .ask("global rib add -a ipv6 2001:db8:f::/48 nexthop fd77::2")
            .unwrap();
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
        ours.learns(&[
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        ])
        .await;
        wait_for("GoBGP to learn", 10, || {
            let v4 = gobgp.ask("global rib -a ipv4")?;
            let v6 = gobgp.ask("global rib -a ipv6")?;
            anyhow::ensure!(v4.contains("192.0.2.1/32"), "{v4}");
            anyhow::ensure!(v6.contains("2001:db8:1::/64") && v6.contains("fd77::1"), "{v6}");
            Ok(Some(()))
        })
        .unwrap();
        let snapshot = ours.handle.snapshot().await.unwrap();
        assert_eq!(snapshot.peers[0].state, State::Established);
        ours.stop().await;
    });
}
