//! Two drivers on the loopback: real sockets, real time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fairlead_bgp::{Announcement, ImportPolicy, State};
use ipnetwork::IpNetwork;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Node {
    handle: BgpHandle,
    task: JoinHandle<()>,
    cancel: CancellationToken,
    port: u16,
}

async fn node(index: u8) -> Node {
    let cancel = CancellationToken::new();
    let config = SpeakerConfig {
        local_as: 65000 + u32::from(index),
        router_id: Ipv4Addr::new(10, 0, 0, index),
        hostname: None,
        multipath_limit: 1,
    };
    // Port 0 lets the kernel choose.
    let (handle, task) = start(config, u64::from(index), Some(0), None, cancel.clone()).unwrap();
    let port = handle.snapshot().await.unwrap().listening[0].port();
    Node {
        handle,
        task,
        cancel,
        port,
    }
}

fn peer(index: u8, address: IpAddr, port: u16, passive: bool) -> PeerConfig {
    let mut peer = PeerConfig::new(format!("node{index}"), address, 65000 + u32::from(index));
    peer.port = port;
    peer.passive = passive;
    peer.import = ImportPolicy::All;
    peer.connect_retry_time = Duration::from_millis(200);
    peer.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 3 - index));
    peer.next_hop_v6 = Some(Ipv6Addr::new(
        0x2001,
        0xdb8,
        0,
        0,
        0,
        0,
        0,
        (3 - index).into(),
    ));
    peer
}

async fn pair(address: IpAddr) -> (Node, Node) {
    let (one, two) = (node(1).await, node(2).await);
    one.handle
        .set_peers(vec![peer(2, address, two.port, false)])
        .await
        .unwrap();
    two.handle
        .set_peers(vec![peer(1, address, one.port, true)])
        .await
        .unwrap();
    (one, two)
}

async fn learns(node: &Node, prefixes: &[&str]) {
    let prefixes: Vec<IpNetwork> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
    let mut learnt = node.handle.learnt();
    let wanted = learnt.wait_for(|table| table.keys().eq(prefixes.iter().copied()));
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .unwrap()
        .unwrap();
}

fn announce(prefixes: &[&str]) -> Announcements {
    prefixes
        .iter()
        .map(|prefix| {
            (
                prefix.parse::<IpNetwork>().unwrap(),
                Announcement::default(),
            )
        })
        .collect()
}

#[tokio::test]
async fn two_drivers_exchange_routes_over_either_family() {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let (one, two) = pair(address).await;
        one.handle
            .set_announcements(announce(&["10.1.0.0/24", "2001:db8:1::/64"]))
            .await
            .unwrap();
        learns(&two, &["10.1.0.0/24", "2001:db8:1::/64"]).await;
        one.handle
            .set_announcements(announce(&["10.1.0.0/24"]))
            .await
            .unwrap();
        learns(&two, &["10.1.0.0/24"]).await;
        one.handle.withdraw_all().await.unwrap();
        learns(&two, &[]).await;
        let snapshot = two.handle.snapshot().await.unwrap();
        assert_eq!(snapshot.peers[0].state, State::Established);
    }
}

#[tokio::test]
async fn who_hears_that_all_routes_were_told_finds_them_in_the_table() {
    let (one, two) = (node(1).await, node(2).await);
    let prefixes = ["10.1.0.0/24", "10.2.0.0/24", "2001:db8:1::/64"];
    one.handle
        .set_announcements(announce(&prefixes))
        .await
        .unwrap();
    let mut events = two.handle.events();
    let address = Ipv4Addr::LOCALHOST.into();
    one.handle
        .set_peers(vec![peer(2, address, two.port, false)])
        .await
        .unwrap();
    two.handle
        .set_peers(vec![peer(1, address, one.port, true)])
        .await
        .unwrap();

    for _ in 0..2 {
        let told = async {
            loop {
                if let Event::EndOfRib { family, .. } = events.recv().await.unwrap() {
                    return family;
                }
            }
        };
        let family = tokio::time::timeout(PATIENCE, told).await.unwrap();

        let learnt = two.handle.learnt().borrow().clone();
        let known = learnt.keys().filter(|prefix| match family {
            Family::Ipv4Unicast => prefix.is_ipv4(),
            Family::Ipv6Unicast => prefix.is_ipv6(),
        });
        let all = if family == Family::Ipv4Unicast { 2 } else { 1 };
        assert_eq!(known.count(), all, "{family}: {learnt:?}");
    }
}

#[tokio::test]
async fn cancelling_closes_the_connection_without_a_word() {
    let (one, two) = pair(Ipv4Addr::LOCALHOST.into()).await;
    one.handle
        .set_announcements(announce(&["10.1.0.0/24"]))
        .await
        .unwrap();
    learns(&two, &["10.1.0.0/24"]).await;
    one.cancel.cancel();
    one.task.await.unwrap();
    learns(&two, &[]).await;
    let peers = two.handle.peers().await.unwrap();
    let error = peers[0].last_error.clone().unwrap();
    assert!(error.starts_with("connection: "), "{error}");
    assert_eq!(one.handle.peers().await, Err(Stopped));
}

#[tokio::test]
async fn a_shutdown_is_told_before_it_returns() {
    let (one, two) = pair(Ipv4Addr::LOCALHOST.into()).await;
    one.handle
        .set_announcements(announce(&["10.1.0.0/24"]))
        .await
        .unwrap();
    learns(&two, &["10.1.0.0/24"]).await;
    one.handle.shutdown("node drains").await.unwrap();
    one.cancel.cancel();
    learns(&two, &[]).await;
    let peers = two.handle.peers().await.unwrap();
    assert_eq!(
        peers[0].last_error.as_deref(),
        Some("received 6/2 Administrative Shutdown (\"node drains\")")
    );
}

#[tokio::test]
async fn garbage_is_answered_with_a_notification_and_the_driver_goes_on() {
    let node = node(1).await;
    let mut config = peer(2, Ipv4Addr::LOCALHOST.into(), 1, true);
    config.ebgp_multihop_ttl = 64;
    node.handle.set_peers(vec![config]).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, node.port))
        .await
        .unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    let notification = &answer[answer.len() - 21..];
    assert_eq!(notification[18..], [3, 1, 1], "NOTIFICATION 1/1 comes last");
    let peers = node.handle.peers().await.unwrap();
    assert_eq!(
        peers[0].last_error.as_deref(),
        Some("sent 1/1 Connection Not Synchronized")
    );
}

#[tokio::test]
async fn a_refresh_can_be_asked_of_an_established_peer_only() {
    let (one, two) = pair(Ipv4Addr::LOCALHOST.into()).await;
    one.handle
        .set_announcements(announce(&["10.1.0.0/24"]))
        .await
        .unwrap();
    learns(&two, &["10.1.0.0/24"]).await;
    assert_eq!(
        two.handle.refresh("node1", Family::Ipv4Unicast).await,
        Ok(true)
    );
    assert_eq!(
        two.handle.refresh("nobody", Family::Ipv4Unicast).await,
        Ok(false)
    );
}

/// Opens a session with a hold time of 3 s, and says for so long what a peer says while all is well. Then it is
/// silent, until the other end closes the connection.
fn talk(port: u16, speaking: Duration) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut say = |words: &[u8]| {
        let message = [&[0xFF; 16], words].concat();
        // The other end may have given us up.
        let _ = stream.write_all(&message);
    };
    say(&[0, 29, 1, 4, 0xFD, 0xEA, 0, 3, 10, 0, 0, 2, 0]);
    for _ in 0..speaking.as_secs() * 2 {
        // A KEEPALIVE.
        say(&[0, 19, 4]);
        std::thread::sleep(Duration::from_millis(500));
    }
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn a_peer_that_has_spoken_while_the_driver_was_held_up_is_not_given_up() {
    // With one thread its words lie in the socket meanwhile, with more they are taken and wait.
    let alone = tokio::runtime::Builder::new_current_thread();
    let mut among_others = tokio::runtime::Builder::new_multi_thread();
    among_others.worker_threads(2);
    let story = |mut builder: tokio::runtime::Builder| {
        let story = async {
            let node = node(1).await;
            let mut config = peer(2, Ipv4Addr::LOCALHOST.into(), 1, true);
            config.hold_time = Duration::from_secs(3);
            node.handle.set_peers(vec![config]).await.unwrap();
            let port = node.port;
            let peer = std::thread::spawn(move || talk(port, Duration::from_secs(6)));
            let mut events = node.handle.events();
            let up = tokio::time::timeout(PATIENCE, events.recv()).await;
            assert!(matches!(up, Ok(Ok(Event::PeerUp { .. }))), "{up:?}");

            let hold_up = |_: &Speaker, _| std::thread::sleep(Duration::from_secs(4));
            node.handle.look(hold_up).await.unwrap();

            tokio::time::sleep(Duration::from_millis(700)).await;
            let peers = node.handle.peers().await.unwrap();
            assert_eq!(
                peers[0].state,
                State::Established,
                "{:?}",
                peers[0].last_error
            );
            // Silent from now on, it is given up.
            match tokio::time::timeout(PATIENCE, events.recv()).await {
                Ok(Ok(Event::PeerDown { reason, .. })) => {
                    assert_eq!(reason.to_string(), "sent 4/0 Hold Timer Expired");
                }
                other => panic!("{other:?}"),
            }
            peer
        };
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(story).join().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| story(alone));
        scope.spawn(|| story(among_others));
    });
}
