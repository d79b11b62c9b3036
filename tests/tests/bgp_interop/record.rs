//! A session with FRR, recorded, comes to the same routes when it is told again.

use fairlead_bgp::Password;
use fairlead_bgp::snapshot::RouteSnapshot;
use fairlead_control::bgp_io::record;

use super::*;

/// What the only speaker of a recording knows.
fn replayed(file: &std::path::Path) -> Vec<RouteSnapshot> {
    let replay = record::replay(file).unwrap();
    assert_eq!(replay.speakers.len(), 1);
    let speaker = replay.speakers.values().next().unwrap();
    let peers = speaker.peers(replay.now);
    assert_eq!(peers[0].state, State::Established, "{peers:?}");
    speaker.loc_rib()
}

#[test]
fn a_recorded_session_with_frr_comes_to_the_same_routes_again() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr =
            link.frr(" neighbor 10.77.0.1 peer-group us\n neighbor 10.77.0.1 password sEcret-2\n");
        let file = link.dir.path().join("record.jsonl");
        let recorder = Recorder::create(&file).unwrap();
        let ours = Ours::start_with(Some(&recorder));
        let mut config = peer();
        config.password = Some(Password::new(b"sEcret-1").unwrap());
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
        // The recording has changes of every kind in it: passwords, sessions, routes, announcements.
        tokio::time::sleep(Duration::from_secs(2)).await;
        config.password = Some(Password::new(b"sEcret-2").unwrap());
        ours.handle.set_peers(vec![config.clone()]).await.unwrap();
        let all = [
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        ];
        ours.learns(&all).await;
        frr.vtysh("clear bgp *").unwrap();
        ours.learns(&[]).await;
        ours.learns(&all).await;
        frr.configure(&[
            "router bgp 65000",
            "address-family ipv4 unicast",
            "network 198.51.100.0/24",
            "no network 203.0.113.0/24",
        ])
        .unwrap();
        ours.learns(&[("198.51.100.0/24", THEIR_V4.into()), all[1]])
            .await;
        config.import = ImportPolicy::Nothing;
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.learns(&[]).await;
        ours.announce(&["192.0.2.1/32"]).await;

        // FRR tells us our own back, and takes that back in its own time.
        let withdrawn = net("2001:db8:1::/64");
        let begin = tokio::time::Instant::now();
        let live = loop {
            let live = ours
                .handle
                .look(|speaker, _| speaker.loc_rib())
                .await
                .unwrap();
            if live.iter().all(|route| route.prefix != withdrawn) {
                break live;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{live:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(live.len(), 3, "two refused paths and our own: {live:?}");
        assert_eq!(replayed(&file), live);
        ours.stop().await;
        assert_eq!(replayed(&file), live, "as it was when the process ended");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("sEcret"), "{text}");
        assert!(
            text.contains("\"written\"") && text.contains("\"timeout\""),
            "{text}"
        );

        // What a killed process did not write to its end is left out; other damage is said with its line.
        std::fs::write(&file, &text[..text.len() - 2]).unwrap();
        assert_eq!(replayed(&file), live);
        std::fs::write(&file, text.replacen("\"begin\"", "\"beginning\"", 1)).unwrap();
        let error = format!("{:#}", record::replay(&file).unwrap_err());
        assert!(
            error.contains("record.jsonl line 1: this is no recording"),
            "{error}"
        );
        let (_, rest) = text.split_once('\n').unwrap();
        std::fs::write(&file, rest).unwrap();
        let error = format!("{:#}", record::replay(&file).unwrap_err());
        assert!(error.contains("lacks its beginning"), "{error}");
    });
}
