//! The control packet (RFC 5880 §4.1), and what is wrong with one whatever its session (§6.8.6).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::State;

/// Octets of a packet without authentication.
pub(super) const LENGTH: usize = 24;
/// The least length of one with authentication (§6.8.6).
const LENGTH_WITH_AUTHENTICATION: usize = 26;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// Why a session last changed its state (§4.1). A number that we do not know is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// No reason.
    pub const NONE: Self = Self(0);
    /// Nothing was heard for the detection time.
    pub const TIME_EXPIRED: Self = Self(1);
    /// The neighbour said that it is down.
    pub const NEIGHBOR_DOWN: Self = Self(3);
    /// A person or a program wants it down.
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            number => return write!(f, "diagnostic {number}"),
        })
    }
}

/// A control packet.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the bits of its header"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's state is what it is.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender wants a packet with the final bit.
    pub poll: bool,
    /// The answer to a poll.
    pub is_final: bool,
    /// It does not depend on the sender's control plane.
    pub independent: bool,
    /// The sender wants no packets but polls while both are up.
    pub demand: bool,
    /// Packets that may be lost before the sender counts as gone.
    pub multiplier: u8,
    /// The sender's name for the session; not 0.
    pub my_discriminator: u32,
    /// The receiver's name for it; 0 when the sender does not know it.
    pub your_discriminator: u32,
    /// The least interval at which the sender would send.
    pub desired_min_transmit: Duration,
    /// The least interval at which it can receive; zero: it wants no packets.
    pub required_min_receive: Duration,
    /// The least interval of echoes that it sends back; zero: it sends none back.
    pub required_min_echo_receive: Duration,
}

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discard {
    /// Its TTL is not 255 (RFC 5881 §5).
    Forwarded,
    /// Its version is not 1.
    Version,
    /// Its length is less than a packet's, or more than there is.
    Length,
    /// Its multiplier is 0.
    ZeroMultiplier,
    /// It has the multipoint bit, which means nothing.
    Multipoint,
    /// Its sender has no name for the session.
    ZeroDiscriminator,
    /// It is for a session that we do not have.
    UnknownDiscriminator,
    /// Its sender is up and does not know us.
    NotDown,
    /// No session is with its sender.
    NoSession,
    /// It is for another session than its addresses say.
    OtherSource,
    /// It is signed, and no session of ours is.
    Authenticated,
    /// We take no part in the session.
    AdminDown,
}

impl Discard {
    /// Its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Version => "version",
            Self::Length => "length",
            Self::ZeroMultiplier => "zero-multiplier",
            Self::Multipoint => "multipoint",
            Self::ZeroDiscriminator => "zero-discriminator",
            Self::UnknownDiscriminator => "unknown-discriminator",
            Self::NotDown => "not-down",
            Self::NoSession => "no-session",
            Self::OtherSource => "other-source",
            Self::Authenticated => "authenticated",
            Self::AdminDown => "admin-down",
        }
    }
}

impl Packet {
    /// Reads a packet, with the checks of §6.8.6 in their order as far as they need no session.
    ///
    /// # Errors
    /// The packet must be discarded.
    pub fn decode(bytes: &[u8]) -> Result<Self, Discard> {
        let Some(header) = bytes.first_chunk::<LENGTH>() else {
            return Err(Discard::Length);
        };
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let interval = |at| Duration::from_micros(word(at).into());
        let flags = header[1];
        let has = |bit| flags & bit != 0;
        if header[0] >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let least = if has(AUTHENTICATION) {
            LENGTH_WITH_AUTHENTICATION
        } else {
            LENGTH
        };
        let length = usize::from(header[3]);
        if length < least || length > bytes.len() {
            return Err(Discard::Length);
        }
        if header[2] == 0 {
            return Err(Discard::ZeroMultiplier);
        }
        if has(MULTIPOINT) {
            return Err(Discard::Multipoint);
        }
        if word(4) == 0 {
            return Err(Discard::ZeroDiscriminator);
        }
        let state = State::from_bits(flags >> 6);
        if word(8) == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(Discard::NotDown);
        }
        if has(AUTHENTICATION) {
            return Err(Discard::Authenticated);
        }
        Ok(Self {
            diagnostic: Diagnostic(header[0] & 0x1F),
            state,
            poll: has(POLL),
            is_final: has(FINAL),
            independent: has(INDEPENDENT),
            demand: has(DEMAND),
            multiplier: header[2],
            my_discriminator: word(4),
            your_discriminator: word(8),
            desired_min_transmit: interval(12),
            required_min_receive: interval(16),
            required_min_echo_receive: interval(20),
        })
    }

    /// Writes a packet. Intervals are whole microseconds, at most 2^32 - 1 of them.
    pub fn encode(&self) -> [u8; LENGTH] {
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = (self.state.bits() << 6)
            | bit(self.poll, POLL)
            | bit(self.is_final, FINAL)
            | bit(self.independent, INDEPENDENT)
            | bit(self.demand, DEMAND);
        let micros = |interval: Duration| u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&[
            (VERSION << 5) | (self.diagnostic.0 & 0x1F),
            flags,
            self.multiplier,
            LENGTH as u8,
        ]);
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            micros(self.desired_min_transmit),
            micros(self.required_min_receive),
            micros(self.required_min_echo_receive),
        ];
        for (to, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sound() -> Packet {
        Packet {
            diagnostic: Diagnostic::NONE,
            state: State::Up,
            poll: false,
            is_final: false,
            independent: false,
            demand: false,
            multiplier: 3,
            my_discriminator: 7,
            your_discriminator: 9,
            desired_min_transmit: Duration::from_millis(50),
            required_min_receive: Duration::from_millis(60),
            required_min_echo_receive: Duration::ZERO,
        }
    }

    /// The sound packet with octets changed.
    fn with(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes = sound().encode().to_vec();
        for (at, octet) in changes {
            bytes[*at] = *octet;
        }
        bytes
    }

    #[test]
    fn a_packet_looks_as_the_rfc_draws_it() {
        let bytes = sound().encode();
        assert_eq!(bytes[..12], [0x20, 0xC0, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9]);
        assert_eq!(bytes[12..20], [0, 0, 0xC3, 0x50, 0, 0, 0xEA, 0x60]);
    }

    #[test]
    fn each_check_of_the_reception_discards_what_it_is_for() {
        for (bytes, why) in [
            (with(&[])[..23].to_vec(), Discard::Length),
            (Vec::new(), Discard::Length),
            (with(&[(0, 0x00)]), Discard::Version),
            (with(&[(0, 0x40)]), Discard::Version),
            (with(&[(3, 23)]), Discard::Length),
            (with(&[(3, 25)]), Discard::Length),
            // With authentication a packet has 26 octets at least.
            (with(&[(1, 0xC4)]), Discard::Length),
            (with(&[(2, 0)]), Discard::ZeroMultiplier),
            (with(&[(1, 0xC1)]), Discard::Multipoint),
            (with(&[(7, 0)]), Discard::ZeroDiscriminator),
            (with(&[(11, 0)]), Discard::NotDown),
            (with(&[(11, 0), (1, 0x80)]), Discard::NotDown),
        ] {
            assert_eq!(Packet::decode(&bytes), Err(why), "{bytes:?}");
        }
        let mut signed = with(&[(1, 0xC4), (3, 28)]);
        signed.extend([1, 4, 0, 0]);
        assert_eq!(Packet::decode(&signed), Err(Discard::Authenticated));
        // Who is down need not know us; octets after the packet are not ours.
        assert!(Packet::decode(&with(&[(11, 0), (1, 0x40)])).is_ok());
        assert!(Packet::decode(&with(&[(11, 0), (1, 0x00)])).is_ok());
        let mut longer = with(&[]);
        longer.extend([0; 9]);
        assert_eq!(Packet::decode(&longer), Ok(sound()));
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_discarded_and_what_is_read_is_written_alike(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            version in prop::bool::ANY,
        ) {
            let mut bytes = bytes;
            if let (true, Some(first)) = (version, bytes.first_mut()) {
                *first = (*first & 0x1F) | 0x20;
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            }
        }
    }
}
