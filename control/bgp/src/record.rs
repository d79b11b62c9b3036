//! Everything that a speaker is told, as values that can be written down and told to another speaker.
//!
//! A speaker has neither clock nor chance of its own: who is told the same at the same instants knows the same.
//! So a recording of its inputs is enough to find out afterwards how it came to its routes.
//!
//! Not for files and their format: that is the embedder's. Passwords are no part of it: each is replaced by a
//! name, so that a change of one still is a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bfd;
use crate::config::{Announcements, Password, PeerConfig, PeerRange, SpeakerConfig};
use crate::speaker::{ConnectionId, Speaker};
use crate::wire::Family;

/// An input with what it was given to, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Which of the speakers of a recording.
    pub speaker: u32,
    /// How long after the recording began.
    pub at: Duration,
    /// What it was told.
    pub input: Input,
}

/// What a speaker is told; each is a method of [`Speaker`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// It begins, with this seed.
    Begin(SpeakerConfig, u64),
    /// [`Speaker::set_peers`], with the names of the passwords of those peers that have one.
    Peers(Vec<PeerConfig>, BTreeMap<String, u32>),
    /// [`Speaker::set_ranges`].
    Ranges(Vec<PeerRange>),
    /// [`Speaker::set_announcements`].
    Announcements(Announcements),
    /// [`Speaker::request_refresh`].
    Refresh(String, Family),
    /// [`Speaker::shutdown`].
    Shutdown(String),
    /// [`Speaker::handle_incoming`]: our end and the other.
    Incoming(SocketAddr, SocketAddr),
    /// [`Speaker::handle_bfd`].
    Bfd(bfd::Key, bfd::Standing),
    /// [`Speaker::handle_connected`].
    Connected(ConnectionId, SocketAddr),
    /// [`Speaker::handle_connect_failed`].
    ConnectFailed(ConnectionId, String),
    /// [`Speaker::handle_bytes`].
    Bytes(ConnectionId, #[serde(with = "hex")] Vec<u8>),
    /// [`Speaker::handle_unread`].
    Unread(ConnectionId),
    /// [`Speaker::handle_written`].
    Written(ConnectionId, usize),
    /// [`Speaker::handle_closed`].
    Closed(ConnectionId, String),
    /// [`Speaker::handle_timeout`].
    Timeout,
    /// It is told nothing more.
    End,
}

/// The passwords of a recording, by their names.
#[derive(Debug, Default)]
pub struct Passwords(Vec<Password>);

impl Passwords {
    /// The input that sets these peers.
    pub fn hide(&mut self, peers: &[PeerConfig]) -> Input {
        let named = peers.iter().filter_map(|peer| {
            let password = peer.password.as_ref()?;
            Some((peer.name.clone(), self.name(password)))
        });
        let named = named.collect();
        Input::Peers(peers.to_vec(), named)
    }

    fn name(&mut self, password: &Password) -> u32 {
        let known = self.0.iter().position(|known| known == password);
        let at = known.unwrap_or_else(|| {
            self.0.push(password.clone());
            self.0.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }
}

/// Speakers that were told what a recording says.
#[derive(Debug)]
pub struct Replay {
    /// They know what the recorded ones knew in the end. One that ended is there, too, unless another one of its AS
    /// took its place.
    pub speakers: BTreeMap<u32, Speaker>,
    ended: BTreeSet<u32>,
    /// The instant of the last input.
    pub now: Instant,
}

/// A recording that cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("speaker {0} is told something and has not begun: the recording lacks its beginning")]
pub struct NotBegun(pub u32);

impl Replay {
    /// Nothing has been said yet; the recording begins at this instant.
    pub const fn new(origin: Instant) -> Self {
        Self {
            speakers: BTreeMap::new(),
            ended: BTreeSet::new(),
            now: origin,
        }
    }

    /// Tells a speaker the next input.
    ///
    /// # Errors
    /// That speaker has not begun.
    pub fn tell(&mut self, recorded: Recorded, origin: Instant) -> Result<(), NotBegun> {
        let Recorded { speaker, at, input } = recorded;
        self.now = origin + at;
        if let Input::Begin(config, seed) = input {
            let ended = &self.ended;
            self.speakers.retain(|number, known| {
                !ended.contains(number) || known.config().local_as != config.local_as
            });
            let begun = Speaker::new(config, seed);
            self.speakers.insert(speaker, begun);
            return Ok(());
        }
        let told = self.speakers.get_mut(&speaker);
        let told = told.ok_or(NotBegun(speaker))?;
        if input == Input::End {
            self.ended.insert(speaker);
        }
        told.hear(input, self.now);
        // What it asks for was done when it was recorded.
        while told.poll_transmit().is_some() {}
        while told.poll_connection().is_some() {}
        while told.poll_event().is_some() {}
        told.take_changed_routes();
        Ok(())
    }
}

impl Speaker {
    /// Is told what a recording says. Its beginning and end are not for it.
    fn hear(&mut self, input: Input, now: Instant) {
        match input {
            Input::Begin(..) | Input::End => {}
            Input::Peers(mut peers, passwords) => {
                for peer in &mut peers {
                    let name = passwords.get(&peer.name);
                    peer.password =
                        name.and_then(|name| Password::new(name.to_string().as_bytes()).ok());
                }
                self.set_peers(peers, now);
            }
            Input::Ranges(ranges) => self.set_ranges(ranges, now),
            Input::Announcements(announcements) => self.set_announcements(announcements, now),
            Input::Refresh(peer, family) => {
                self.request_refresh(&peer, family, now);
            }
            Input::Shutdown(text) => self.shutdown(&text, now),
            Input::Incoming(local, remote) => {
                self.handle_incoming(local, remote, now);
            }
            Input::Bfd(key, standing) => self.handle_bfd(&key, standing, now),
            Input::Connected(connection, local) => self.handle_connected(connection, local, now),
            Input::ConnectFailed(connection, why) => {
                self.handle_connect_failed(connection, &why, now);
            }
            Input::Bytes(connection, bytes) => self.handle_bytes(connection, &bytes, now),
            Input::Unread(connection) => self.handle_unread(connection, now),
            Input::Written(connection, octets) => self.handle_written(connection, octets, now),
            Input::Closed(connection, why) => self.handle_closed(connection, &why, now),
            Input::Timeout => self.handle_timeout(now),
        }
    }
}

/// Octets as two digits each.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(octets: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(2 * octets.len());
        for octet in octets {
            for half in [octet >> 4, octet & 0xF] {
                text.push(char::from(DIGITS[usize::from(half)]));
            }
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |octet: &u8| {
            let digit = char::from(*octet).to_digit(16);
            digit.and_then(|digit| u8::try_from(digit).ok())
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let octets = pairs
            .iter()
            .map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
        let octets: Option<Vec<u8>> = octets.collect();
        let octets = octets.filter(|_| rest.is_empty());
        octets.ok_or_else(|| D::Error::custom("octets are written as two hexadecimal digits each"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_come_back_as_they_went_and_other_texts_are_refused() {
        let input = Input::Bytes(ConnectionId(7), (0..=255).collect());
        let text = serde_json::to_string(&input).unwrap();
        assert_eq!(serde_json::from_str::<Input>(&text).unwrap(), input);
        for wrong in ["\"0\"", "\"0g\"", "\"é\""] {
            let text = format!("{{\"bytes\":[7,{wrong}]}}");
            assert!(serde_json::from_str::<Input>(&text).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_not_written_down_and_its_change_is() {
        let mut peer = PeerConfig::new("tor", [10, 0, 0, 1].into(), 65000);
        let mut passwords = Passwords::default();
        let mut names = Vec::new();
        for password in ["sEcret", "sEcret", "another"] {
            peer.password = Some(Password::new(password.as_bytes()).unwrap());
            let input = passwords.hide(std::slice::from_ref(&peer));
            let text = serde_json::to_string(&input).unwrap();
            assert!(!text.contains(password), "{text}");
            let Input::Peers(_, named) = serde_json::from_str(&text).unwrap() else {
                panic!("{text}");
            };
            names.push(named["tor"]);
        }
        assert_eq!(names, [0, 0, 1]);
    }
}
