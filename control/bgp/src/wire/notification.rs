//! NOTIFICATION: why a session ends (RFC 4271 §4.5, RFC 4486, RFC 8538, RFC 9003).

use std::borrow::Cow;
use std::fmt;

use rustbgpd_wire::notification::{
    cease_subcode, decode_shutdown_communication, description, encode_shutdown_communication,
};
use rustbgpd_wire::{MAX_MESSAGE_LEN, NotificationCode, NotificationMessage};
use serde::{Deserialize, Serialize};

/// Octets of a NOTIFICATION before its data: header, code and subcode.
const OVERHEAD: usize = 19 + 2;

/// A NOTIFICATION that was or will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Error code, RFC 4271 §4.5.
    pub code: u8,
    /// Error subcode; 0 is unspecific.
    pub subcode: u8,
    /// Data whose meaning depends on code and subcode.
    pub data: Vec<u8>,
}

impl Notification {
    /// Hold Timer Expired.
    pub const HOLD_TIMER_EXPIRED: Self = Self::bare(4, 0);
    /// OPEN: the peer is not of the AS that we expect.
    pub const BAD_PEER_AS: Self = Self::bare(2, 2);
    /// OPEN: the identifier is zero or ours.
    pub const BAD_IDENTIFIER: Self = Self::bare(2, 3);
    /// OPEN: a hold time of one or two seconds.
    pub const UNACCEPTABLE_HOLD_TIME: Self = Self::bare(2, 6);
    /// OPEN: the roles do not fit (RFC 9234 §4.2).
    pub const ROLE_MISMATCH: Self = Self::bare(2, 11);
    /// Cease: too many prefixes (RFC 4486).
    pub const MAX_PREFIXES: Self = Self::bare(6, cease_subcode::MAX_PREFIXES);
    /// Cease: the peer left our configuration.
    pub const PEER_DECONFIGURED: Self = Self::bare(6, cease_subcode::PEER_DECONFIGURED);
    /// Cease: the configuration changed and needs another OPEN.
    pub const CONFIGURATION_CHANGED: Self =
        Self::bare(6, cease_subcode::OTHER_CONFIGURATION_CHANGE);
    /// Cease: the other connection of a collision stays (RFC 4271 §6.8).
    pub const COLLISION: Self = Self::bare(6, cease_subcode::CONNECTION_COLLISION_RESOLUTION);

    /// Cease: BFD says that the peer is not reached (RFC 9384).
    pub const BFD_DOWN: Self = Self::bare(6, 10);

    /// A NOTIFICATION without data.
    pub const fn bare(code: u8, subcode: u8) -> Self {
        Self {
            code,
            subcode,
            data: Vec::new(),
        }
    }

    /// Finite State Machine Error with the subcode of RFC 6608.
    pub const fn fsm_error(subcode: u8) -> Self {
        Self::bare(5, subcode)
    }

    /// Cease/Administrative Shutdown with a text for people, cut at 128 octets (RFC 9003).
    pub fn administrative_shutdown(text: &str) -> Self {
        Self {
            code: 6,
            subcode: cease_subcode::ADMINISTRATIVE_SHUTDOWN,
            data: encode_shutdown_communication(text).to_vec(),
        }
    }

    /// Cease/Hard Reset: graceful restart or not, the session is over and its routes go; `why` is what would
    /// have been said without (RFC 8538 §3).
    pub fn hard_reset(why: &Self) -> Self {
        let mut data = vec![why.code, why.subcode];
        data.extend_from_slice(&why.data);
        Self {
            code: 6,
            subcode: cease_subcode::HARD_RESET,
            data,
        }
    }

    /// Whether it ends graceful restart, too (RFC 8538 §3).
    pub const fn is_hard_reset(&self) -> bool {
        self.code == 6 && self.subcode == cease_subcode::HARD_RESET
    }

    /// What is meant: the NOTIFICATION that a Hard Reset carries, or else itself.
    pub fn cause(&self) -> Cow<'_, Self> {
        match self.data.as_slice() {
            [code, subcode, data @ ..] if self.is_hard_reset() => Cow::Owned(Self {
                code: *code,
                subcode: *subcode,
                data: data.to_vec(),
            }),
            _ => Cow::Borrowed(self),
        }
    }

    /// The text for people in an administrative shutdown or reset (RFC 9003), also inside of a Hard Reset.
    pub fn text(&self) -> Option<String> {
        let cause = self.cause();
        let carries_text = cause.code == 6
            && matches!(
                cause.subcode,
                cease_subcode::ADMINISTRATIVE_SHUTDOWN | cease_subcode::ADMINISTRATIVE_RESET
            );
        carries_text
            .then(|| decode_shutdown_communication(&cause.data))
            .flatten()
            .filter(|text| !text.is_empty())
    }

    /// Whether the peer says that it does not speak our version (RFC 4271 event 24).
    pub(crate) fn is_version_error(&self) -> bool {
        (self.code, self.subcode) == (2, 1)
    }

    /// Whether one side did something wrong, rather than fell silent (4, 8) or left (6).
    pub(crate) fn is_fault(&self) -> bool {
        !matches!(self.cause().code, 4 | 6 | 8)
    }

    pub(crate) fn from_codec(code: NotificationCode, subcode: u8, data: &[u8]) -> Self {
        let fits = data.len().min(usize::from(MAX_MESSAGE_LEN) - OVERHEAD);
        Self {
            code: code.as_u8(),
            subcode,
            data: data[..fits].to_vec(),
        }
    }

    pub(crate) fn to_codec(&self) -> NotificationMessage {
        let fits = self.data.len().min(usize::from(MAX_MESSAGE_LEN) - OVERHEAD);
        NotificationMessage::new(
            NotificationCode::from_u8(self.code),
            self.subcode,
            bytes::Bytes::copy_from_slice(&self.data[..fits]),
        )
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = |said: &Self| description(NotificationCode::from_u8(said.code), said.subcode);
        write!(f, "{}/{} {}", self.code, self.subcode, meaning(self))?;
        if let Cow::Owned(cause) = self.cause() {
            write!(f, ": {}/{} {}", cause.code, cause.subcode, meaning(&cause))?;
        }
        match self.text() {
            Some(text) => write!(f, " ({text:?})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_says_its_text() {
        let notification = Notification::administrative_shutdown("node drains");
        assert_eq!(notification.text().as_deref(), Some("node drains"));
        assert_eq!(
            notification.to_string(),
            "6/2 Administrative Shutdown (\"node drains\")"
        );
    }

    #[test]
    fn a_hard_reset_says_what_it_is_for() {
        let why = Notification::administrative_shutdown("node drains");
        let hard = Notification::hard_reset(&why);
        assert_eq!((hard.code, hard.subcode), (6, 9));
        assert_eq!(hard.data[..2], [6, 2]);
        assert_eq!(hard.cause().as_ref(), &why);
        assert_eq!(hard.text().as_deref(), Some("node drains"));
        assert_eq!(
            hard.to_string(),
            "6/9 Hard Reset: 6/2 Administrative Shutdown (\"node drains\")"
        );
    }

    #[test]
    fn a_hard_reset_may_say_nothing_and_one_inside_of_another_is_read_once() {
        for data in [vec![], vec![6], vec![6, 9, 6, 2]] {
            let hard = Notification {
                data,
                ..Notification::bare(6, 9)
            };
            assert!(hard.is_hard_reset());
            assert!(hard.to_string().starts_with("6/9 Hard Reset"));
        }
    }

    #[test]
    fn data_never_outgrows_a_message() {
        let notification = Notification::from_codec(NotificationCode::UpdateMessage, 5, &[7; 9000]);
        assert_eq!(notification.to_codec().encoded_len(), 4096);
    }
}
