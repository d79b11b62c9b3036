//! A peer of raw bytes.

use std::collections::BTreeSet;

use super::*;
use crate::wire::{self, Message, Open};

pub(super) struct Raw {
    pub(super) speaker: Speaker,
    pub(super) connection: ConnectionId,
    pub(super) now: Instant,
}

impl Raw {
    /// A speaker that accepted our connection and sent its OPEN.
    pub(super) fn connected() -> Self {
        let now = network::origin();
        let mut speaker = Speaker::new(config(1, 65001), 1);
        let mut peer = toward(2, 65002);
        peer.passive = true;
        speaker.set_peer(peer, now);
        let local = SocketAddr::new(address(1), 179);
        let remote = SocketAddr::new(address(2), 50_000);
        let accepted = speaker.handle_incoming(local, remote, now).unwrap();
        assert_eq!(
            accepted.distance.ttl,
            Some(1),
            "an external peer on the link"
        );
        let mut raw = Self {
            speaker,
            connection: accepted.connection,
            now,
        };
        assert!(matches!(raw.answers()[..], [Message::Open(_)]));
        raw
    }

    pub(super) fn established() -> Self {
        let mut raw = Self::connected();
        raw.send(&wire::encode_open(&open()));
        raw.send(&wire::encode_keepalive());
        assert!(matches!(raw.answers()[..], [Message::Keepalive]));
        assert_eq!(raw.speaker.peers(raw.now)[0].state, State::Established);
        raw
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.speaker.handle_bytes(self.connection, bytes, self.now);
    }

    pub(super) fn answers(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.speaker.poll_transmit())
            .map(|transmit| wire::decode(transmit.bytes).unwrap())
            .collect()
    }

    /// All octets of our answers.
    pub(super) fn answers_all(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.speaker.poll_transmit())
            .flat_map(|transmit| transmit.bytes)
            .collect()
    }

    /// The one NOTIFICATION that was sent, after which the connection was closed.
    pub(super) fn refusal(&mut self) -> (u8, u8, Vec<u8>) {
        let answers = self.answers();
        let [Message::Notification(notification)] = &answers[..] else {
            panic!("{answers:?}");
        };
        let closed = std::iter::from_fn(|| self.speaker.poll_connection()).any(|request| {
            request
                == ConnectionRequest::Close {
                    connection: self.connection,
                }
        });
        assert!(closed);
        assert_eq!(self.speaker.peers(self.now)[0].state, State::Idle);
        (
            notification.code,
            notification.subcode,
            notification.data.clone(),
        )
    }

    pub(super) fn faults(&mut self) -> usize {
        std::iter::from_fn(|| self.speaker.poll_event())
            .filter(|event| matches!(event, Event::UpdateFaults { .. }))
            .count()
    }
}

pub(super) fn open() -> Open {
    Open {
        families: BTreeSet::from(Family::ALL),
        four_octet_as: true,
        route_refresh: true,
        ..Open::bare(65002, 90, Ipv4Addr::new(10, 255, 0, 2))
    }
}

/// An UPDATE of raw sections.
pub(super) fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = 23 + withdrawn.len() + attributes.len() + nlri.len();
    let mut bytes = vec![0xFF; 16];
    bytes.extend((length as u16).to_be_bytes());
    bytes.push(2);
    bytes.extend((withdrawn.len() as u16).to_be_bytes());
    bytes.extend(withdrawn);
    bytes.extend((attributes.len() as u16).to_be_bytes());
    bytes.extend(attributes);
    bytes.extend(nlri);
    bytes
}

pub(super) const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
pub(super) const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xFD, 0xEA];
pub(super) const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 2];
pub(super) const TEN_SLASH_EIGHT: &[u8] = &[8, 10];

pub(super) fn with(extra: &[u8]) -> Vec<u8> {
    update(
        &[],
        &[ORIGIN, AS_PATH, NEXT_HOP, extra].concat(),
        TEN_SLASH_EIGHT,
    )
}
