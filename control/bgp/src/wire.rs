//! Bytes to values and back: a thin room over the codec crate `rustbgpd-wire`.
//!
//! The rest of this crate never sees a type of the codec. A message that ends the session comes
//! back as the [`Notification`] that says so; attribute faults that RFC 7606 lets us survive are
//! listed in [`Update::faults`] with what was done about them.
//!
//! Not for: whether a message is welcome now (`fsm`), or a route wanted (`policy`).
//!
//! # Why a codec of others
//! It alone knows the RFC 7606 disposition of each attribute together with the right code,
//! subcode and data. Its version is pinned exactly; `UpdateMessage::build` panics and is not
//! used, `try_build` is. What a full table has some hundred thousand of is written without it: the frame of
//! an announcement, prefixes in its body, and the attributes that nearly all paths have ([`Attributes`]). Tests hold
//! these attributes to what the codec writes, and whole messages to what it and another codec read.

mod attributes;
mod families;
mod notification;
mod open;
mod role;
mod update;

use std::fmt;

use bytes::Bytes;
use ipnetwork::IpNetwork;
use rustbgpd_wire::{
    Afi, DecodeError, RouteRefreshMessage, RouteRefreshSubtype, Safi, peek_message_length,
};
use serde::{Deserialize, Serialize};

pub use attributes::{
    Aggregator, Attributes, ExtendedCommunity, LargeCommunity, Origin, RareAttributes,
    UnknownAttribute,
};
pub use notification::Notification;
pub(crate) use open::AS_TRANS;
pub use open::{GracefulRestartOffer, LongLived, Open};
pub use role::Role;
#[cfg(test)]
pub(crate) use update::pack_announcements;
pub use update::{
    Fault, FaultAction, Reach, TooLong, Update, pack_withdrawals, write_announcements,
};
pub(crate) use update::{Reading, decode_update, end_of_rib};

/// Octets of marker, length and type.
const HEADER_LEN: usize = 19;

/// The longest message (RFC 4271 §4.1).
pub const MAX_MESSAGE_LEN: u16 = rustbgpd_wire::MAX_MESSAGE_LEN;
/// The longest message of a session with extended messages (RFC 8654 §4), OPEN and KEEPALIVE aside.
pub const EXTENDED_MESSAGE_LEN: u16 = rustbgpd_wire::EXTENDED_MAX_MESSAGE_LEN;

/// How UPDATEs of a session are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// AS numbers take four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The longest message: [`MAX_MESSAGE_LEN`] or [`EXTENDED_MESSAGE_LEN`].
    pub longest: u16,
}

impl Encoding {
    /// That of a session whose sides both know RFC 6793, and nothing newer.
    pub const PLAIN: Self = Self {
        four_octet_as: true,
        longest: MAX_MESSAGE_LEN,
    };
}

/// An address family that we speak: unicast of one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Every family, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];
    const SAFI: Safi = Safi::Unicast;

    /// The family that a prefix belongs to.
    pub const fn of(prefix: &IpNetwork) -> Self {
        match prefix {
            IpNetwork::V4(_) => Self::Ipv4Unicast,
            IpNetwork::V6(_) => Self::Ipv6Unicast,
        }
    }

    /// AFI and SAFI (RFC 4760 §3).
    const fn numbers(self) -> (u16, u8) {
        match self {
            Self::Ipv4Unicast => (1, 1),
            Self::Ipv6Unicast => (2, 1),
        }
    }

    const fn afi(self) -> Afi {
        match self {
            Self::Ipv4Unicast => Afi::Ipv4,
            Self::Ipv6Unicast => Afi::Ipv6,
        }
    }

    fn from_codec(afi: Afi, safi: Safi) -> Option<Self> {
        match (afi, safi) {
            (Afi::Ipv4, Safi::Unicast) => Some(Self::Ipv4Unicast),
            (Afi::Ipv6, Safi::Unicast) => Some(Self::Ipv6Unicast),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ipv4Unicast => "ipv4-unicast",
            Self::Ipv6Unicast => "ipv6-unicast",
        })
    }
}

/// A message, decoded as far as the session's state does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Who the peer is.
    Open(Open),
    /// Routes; decoded by [`decode_update`] once the session's context is known.
    Update(RawUpdate),
    /// Why the peer leaves.
    Notification(Notification),
    /// The peer lives.
    Keepalive,
    /// A ROUTE-REFRESH; `None` for a family that we do not speak, or a kind that we do not know.
    RouteRefresh(Option<Family>, Option<Refresh>),
}

/// What a ROUTE-REFRESH is (RFC 2918, RFC 7313 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// The sender wants the other side's routes again.
    Ask,
    /// The sender begins to tell its routes again (BoRR).
    Begin,
    /// It has told them all (EoRR).
    End,
}

impl Refresh {
    const fn from_codec(subtype: RouteRefreshSubtype) -> Option<Self> {
        match subtype {
            RouteRefreshSubtype::Normal => Some(Self::Ask),
            RouteRefreshSubtype::BoRR => Some(Self::Begin),
            RouteRefreshSubtype::EoRR => Some(Self::End),
            RouteRefreshSubtype::Unknown(_) | _ => None,
        }
    }

    const fn subtype(self) -> RouteRefreshSubtype {
        match self {
            Self::Ask => RouteRefreshSubtype::Normal,
            Self::Begin => RouteRefreshSubtype::BoRR,
            Self::End => RouteRefreshSubtype::EoRR,
        }
    }
}

/// An UPDATE whose three sections are found but not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawUpdate(rustbgpd_wire::UpdateMessage);

/// Length of the message that begins `bytes`, or `None` when its header is not yet complete. `longest` is the
/// most that the session allows: [`MAX_MESSAGE_LEN`] or [`EXTENDED_MESSAGE_LEN`].
///
/// # Errors
/// The NOTIFICATION to send when this cannot be the beginning of a message: wrong marker (seen
/// from the first wrong octet, not only after 19), impossible length, unknown type.
pub fn message_length(bytes: &[u8], longest: u16) -> Result<Option<usize>, Notification> {
    let marker = &bytes[..bytes.len().min(16)];
    if marker.iter().any(|octet| *octet != 0xFF) {
        return Err(Notification::bare(1, 1));
    }
    let Some(length) =
        peek_message_length(bytes, longest).map_err(|error| notification_of(&error))?
    else {
        return Ok(None);
    };
    let kind = bytes[HEADER_LEN - 1];
    if length_fits(kind, length) {
        return Ok(Some(usize::from(length)));
    }
    Err(Notification {
        code: 1,
        subcode: 2,
        data: length.to_be_bytes().to_vec(),
    })
}

/// RFC 4271 §6.1: least lengths of OPEN, UPDATE, NOTIFICATION; the exact one of KEEPALIVE. That of ROUTE-REFRESH
/// is [`decode`]'s to judge. RFC 8654 §4: no OPEN is extended.
fn length_fits(kind: u8, length: u16) -> bool {
    match kind {
        1 => (29..=MAX_MESSAGE_LEN).contains(&length),
        2 => length >= 23,
        3 => length >= 21,
        4 => length == 19,
        5 => true,
        _ => false,
    }
}

/// Decodes one whole message, as long as [`message_length`] said.
///
/// # Errors
/// The NOTIFICATION to send; the session ends.
pub fn decode(mut bytes: Bytes) -> Result<Message, Notification> {
    use rustbgpd_wire::Message as Codec;
    // RFC 7313 §5; there is no longer one, as we negotiate no ORF.
    if bytes.get(HEADER_LEN - 1) == Some(&5) && bytes.len() != HEADER_LEN + 4 {
        return Err(Notification {
            code: 7,
            subcode: 1,
            data: bytes.to_vec(),
        });
    }
    let message = rustbgpd_wire::decode_message(&mut bytes, EXTENDED_MESSAGE_LEN)
        .map_err(|error| notification_of(&error))?;
    Ok(match message {
        Codec::Open(open) => Message::Open(Open::from_codec(&open)),
        Codec::Update(update) => Message::Update(RawUpdate(update)),
        Codec::Notification(notification) => Message::Notification(Notification::from_codec(
            notification.code,
            notification.subcode,
            &notification.data,
        )),
        Codec::Keepalive => Message::Keepalive,
        Codec::RouteRefresh(refresh) => Message::RouteRefresh(
            refresh
                .afi()
                .zip(refresh.safi())
                .and_then(|(afi, safi)| Family::from_codec(afi, safi)),
            Refresh::from_codec(refresh.subtype()),
        ),
        other => {
            let kind = other.message_type().as_u8();
            return Err(Notification {
                code: 1,
                subcode: 3,
                data: vec![kind],
            });
        }
    })
}

/// Encodes an OPEN. Its capabilities are bounded, so it always fits.
pub fn encode_open(open: &Open) -> Bytes {
    encode(&rustbgpd_wire::Message::Open(open.to_codec()))
}

/// Encodes a KEEPALIVE.
pub fn encode_keepalive() -> Bytes {
    encode(&rustbgpd_wire::Message::Keepalive)
}

/// Encodes a NOTIFICATION.
pub fn encode_notification(notification: &Notification) -> Bytes {
    encode(&rustbgpd_wire::Message::Notification(
        notification.to_codec(),
    ))
}

/// Encodes a ROUTE-REFRESH.
pub fn encode_route_refresh(family: Family, refresh: Refresh) -> Bytes {
    encode(&rustbgpd_wire::Message::RouteRefresh(
        RouteRefreshMessage::new_with_subtype(family.afi(), Family::SAFI, refresh.subtype()),
    ))
}

fn encode(message: &rustbgpd_wire::Message) -> Bytes {
    match rustbgpd_wire::encode_message(message) {
        Ok(bytes) => bytes.freeze(),
        Err(error) => unreachable!("a bounded message did not encode: {error}"),
    }
}

fn notification_of(error: &DecodeError) -> Notification {
    let (code, subcode, data) = error.to_notification();
    Notification::from_codec(code, subcode, &data)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn open() -> impl Strategy<Value = Open> {
        (
            1..=u32::MAX,
            any::<u16>(),
            1..=u32::MAX,
            proptest::sample::subsequence(Family::ALL.to_vec(), 1..=2),
            any::<(bool, bool, bool, bool)>(),
            proptest::collection::btree_set(any::<u8>(), 0..3),
            proptest::array::uniform2(proptest::sample::subsequence(Family::ALL.to_vec(), 0..=2)),
            proptest::option::of((any::<bool>(), 0..4096_u64, any::<bool>())),
            proptest::option::of((any::<bool>(), 0..=0xFF_FFFF_u64)),
            proptest::option::of("[a-z0-9.-]{1,64}"),
        )
            .prop_map(
                |(
                    asn,
                    hold_time_s,
                    id,
                    families,
                    (route_refresh, enhanced_route_refresh, extended_next_hop, extended_messages),
                    roles,
                    [add_path_send, add_path_receive],
                    restart,
                    long_lived,
                    hostname,
                )| Open {
                    asn,
                    hold_time_s,
                    router_id: Ipv4Addr::from(id),
                    graceful_restart: restart.map(|(restarting, seconds, preserved)| {
                        GracefulRestartOffer {
                            restarting,
                            notification: preserved ^ restarting,
                            restart_time: Duration::from_secs(seconds),
                            families: families
                                .iter()
                                .map(|family| (*family, preserved))
                                .collect::<BTreeMap<_, _>>(),
                        }
                    }),
                    long_lived: long_lived.map(|(preserved, seconds)| {
                        let stale_time = Duration::from_secs(seconds);
                        let said = LongLived {
                            preserved,
                            stale_time,
                        };
                        families.iter().map(|family| (*family, said)).collect()
                    }),
                    families: BTreeSet::from_iter(families),
                    four_octet_as: true,
                    route_refresh,
                    enhanced_route_refresh,
                    extended_next_hop,
                    extended_messages,
                    roles,
                    add_path_send: BTreeSet::from_iter(add_path_send),
                    add_path_receive: BTreeSet::from_iter(add_path_receive),
                    hostname,
                    others: BTreeSet::new(),
                },
            )
    }

    proptest! {
        #[test]
        fn an_open_comes_back_as_it_went(open in open()) {
            let bytes = encode_open(&open);
            prop_assert_eq!(message_length(&bytes, MAX_MESSAGE_LEN), Ok(Some(bytes.len())));
            prop_assert_eq!(decode(bytes), Ok(Message::Open(open)));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(kind in 0_u8..8, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let length = HEADER_LEN + body.len();
            let mut bytes = vec![0xFF; 16];
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            bytes.push(kind);
            bytes.extend_from_slice(&body);
            if let Ok(Some(_)) = message_length(&bytes, MAX_MESSAGE_LEN)
                && let Ok(Message::Update(raw)) = decode(bytes.into())
            {
                for (four_octet_as, internal, on_link) in [(true, true, true), (true, false, false), (false, false, false)] {
                    for families in [&BTreeSet::from(Family::ALL), &BTreeSet::from([Family::Ipv4Unicast])] {
                        for add_path in [families, &BTreeSet::new()] {
                            let reading = Reading { four_octet_as, internal, families, add_path, on_link };
                            let _ = decode_update(&raw, reading);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_marker_is_seen_at_its_first_octet() {
        assert_eq!(
            message_length(b"GET ", MAX_MESSAGE_LEN),
            Err(Notification::bare(1, 1))
        );
        assert_eq!(message_length(&[0xFF; 5], MAX_MESSAGE_LEN), Ok(None));
    }

    #[test]
    fn a_length_that_does_not_fit_its_type_is_answered_with_that_length() {
        let mut keepalive = encode_keepalive().to_vec();
        keepalive[17] = 20;
        assert_eq!(
            message_length(&keepalive, MAX_MESSAGE_LEN),
            Err(Notification {
                code: 1,
                subcode: 2,
                data: vec![0, 20]
            })
        );
    }

    #[test]
    fn a_long_message_is_one_only_where_extended_messages_were_agreed_on_and_never_an_open() {
        let with_length = |kind: u8, length: u16| {
            let mut header = vec![0xFF; 16];
            header.extend(length.to_be_bytes());
            header.push(kind);
            header
        };
        let too_long = |length: u16| {
            Err(Notification {
                code: 1,
                subcode: 2,
                data: length.to_be_bytes().to_vec(),
            })
        };
        for length in [4097, 65535] {
            for kind in [2, 3] {
                let header = with_length(kind, length);
                assert_eq!(message_length(&header, MAX_MESSAGE_LEN), too_long(length));
                let extended = message_length(&header, EXTENDED_MESSAGE_LEN);
                assert_eq!(extended, Ok(Some(length.into())));
            }
            for kind in [1, 4] {
                let header = with_length(kind, length);
                assert_eq!(
                    message_length(&header, EXTENDED_MESSAGE_LEN),
                    too_long(length)
                );
            }
        }
    }

    #[test]
    fn each_kind_of_route_refresh_comes_back_as_it_went_and_others_are_known_as_such() {
        for family in Family::ALL {
            for kind in [Refresh::Ask, Refresh::Begin, Refresh::End] {
                let bytes = encode_route_refresh(family, kind);
                let read = decode(bytes.clone());
                assert_eq!(read, Ok(Message::RouteRefresh(Some(family), Some(kind))));
                let mut unknown = bytes.to_vec();
                unknown[21] = 9;
                let read = decode(unknown.into());
                assert_eq!(read, Ok(Message::RouteRefresh(Some(family), None)));
            }
        }
    }

    #[test]
    fn a_route_refresh_of_another_length_is_answered_with_all_of_it() {
        for length in [19, 22, 24, 300] {
            let mut bytes = vec![0xFF; 16];
            bytes.extend_from_slice(&u16::to_be_bytes(length));
            bytes.push(5);
            bytes.resize(length.into(), 1);
            let found = message_length(&bytes, MAX_MESSAGE_LEN);
            assert_eq!(found, Ok(Some(length.into())));
            let refusal = Notification {
                code: 7,
                subcode: 1,
                data: bytes.clone(),
            };
            assert_eq!(decode(bytes.into()), Err(refusal));
        }
    }

    #[test]
    fn an_unknown_type_is_answered_with_that_type() {
        let mut message = encode_keepalive().to_vec();
        message[18] = 9;
        assert_eq!(
            message_length(&message, MAX_MESSAGE_LEN),
            Err(Notification {
                code: 1,
                subcode: 3,
                data: vec![9]
            })
        );
    }
}
