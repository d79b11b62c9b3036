//! No bytes and no order of events make a speaker panic, or keep two of them apart for ever.

use proptest::prelude::*;

use super::restart::restartable;
use super::*;
use crate::wire;

#[derive(Debug, Clone)]
enum Disturbance {
    Reset,
    Cut,
    Heal,
    Announce(u8, Vec<u8>),
    Wait(u16),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        Just(Disturbance::Reset),
        Just(Disturbance::Cut),
        Just(Disturbance::Heal),
        (1..=2_u8, proptest::collection::vec(any::<u8>(), 0..6))
            .prop_map(|(node, thirds)| Disturbance::Announce(node, thirds)),
        any::<u16>().prop_map(Disturbance::Wait),
        // The length of a handshake.
        (0..40_u16).prop_map(Disturbance::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_speakers_agree_whatever_happened_before(
        disturbances in proptest::collection::vec(disturbance(), 0..20),
        graceful in any::<bool>(),
        internal in any::<bool>(),
    ) {
        let as_2 = if internal { 65001 } else { 65002 };
        let mut network = pair(65001, as_2, |peer| if graceful { restartable(peer) });
        for disturbance in disturbances {
            let now = network.now();
            match disturbance {
                Disturbance::Reset => network.reset_connections(),
                Disturbance::Cut => network.cut(),
                Disturbance::Heal => network.heal(),
                Disturbance::Announce(node, thirds) => {
                    let announcements = thirds
                        .iter()
                        .map(|third| (net(&format!("10.{node}.{third}.0/24")), Announcement::default()))
                        .collect();
                    network.speaker(node).set_announcements(announcements, now);
                }
                Disturbance::Wait(ms) => network.run(Duration::from_millis(ms.into())),
            }
        }
        network.heal();
        network.run(600 * SECOND);
        for (node, other) in [(1, 2), (2, 1)] {
            prop_assert_eq!(state(&mut network, node), State::Established);
            let told: Vec<_> = network
                .speaker(other)
                .loc_rib()
                .into_iter()
                .filter(|route| route.paths.iter().any(|path| path.peer.is_none()))
                .map(|route| route.prefix)
                .collect();
            let heard: Vec<_> = hops(&mut network, node).into_keys().collect();
            prop_assert_eq!(told, heard);
        }
        prop_assert_eq!(network.open_connections(), 1);
    }

    #[test]
    fn no_bytes_make_a_speaker_panic(
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        split in 1_usize..64,
    ) {
        let now = network::origin();
        let mut speaker = Speaker::new(config(1, 65001), 1);
        speaker.set_peer(toward(2, 65002), now);
        let mut attributes = crate::wire::Attributes::local(address(2));
        attributes.as_path = vec![65002];
        attributes.communities = vec![1, 2];
        let open = crate::session::our_open(&config(2, 65002), &toward(1, 65001), true);
        let mut bytes = wire::encode_open(&open).to_vec();
        let spared = bytes.len() + 19;
        bytes.extend(wire::encode_keepalive());
        for packed in wire::pack_announcements(&attributes, Family::Ipv4Unicast, &[net("10.0.0.0/8")], wire::Encoding::PLAIN).unwrap() {
            bytes.extend(packed);
        }
        attributes.next_hop = "fd00::1".parse().unwrap();
        for packed in wire::pack_announcements(&attributes, Family::Ipv6Unicast, &[net("2001:db8::/32")], wire::Encoding::PLAIN).unwrap() {
            bytes.extend(packed);
        }
        bytes.extend(wire::encode_route_refresh(Family::Ipv4Unicast, wire::Refresh::Ask));
        for (at, value) in flips {
            let from = spared + 18;
            let index = from + at % (bytes.len() - from);
            bytes[index] = value;
        }
        bytes.extend(tail);
        let local = SocketAddr::new(address(1), 179);
        let remote = SocketAddr::new(address(2), 50_000);
        let connection = speaker.handle_incoming(local, remote, now).unwrap().connection;
        for chunk in bytes.chunks(split) {
            speaker.handle_bytes(connection, chunk, now);
        }
        let established = std::iter::from_fn(|| speaker.poll_event())
            .any(|event| matches!(event, Event::PeerUp { .. }));
        prop_assert!(established, "the disturbance begins after the session is up");
        speaker.loc_rib();
        speaker.handle_closed(connection, "test", now);
        speaker.handle_timeout(now + 600 * SECOND);
    }
}
