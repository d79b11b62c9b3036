//! The password of a session, which nothing prints and nothing writes down.

use std::fmt;
use std::sync::Arc;

/// The longest password that TCP MD5 takes on Linux (`TCP_MD5SIG_MAXKEYLEN`).
const LONGEST: usize = 80;

/// A TCP MD5 password (RFC 2385 §4.5): 1 to 80 octets. The speaker hands it to its embedder, which
/// signs segments with it; it never stands in a message, in a log or in a recording.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<[u8]>);

/// Why octets are no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPassword {
    /// There are none: a session would be signed with what everybody knows.
    #[error("it is empty")]
    Empty,
    /// The kernel takes no more than 80.
    #[error("it is longer than 80 octets")]
    TooLong,
}

impl Password {
    /// A password of these octets.
    ///
    /// # Errors
    /// Too few or too many.
    pub fn new(octets: &[u8]) -> Result<Self, NoPassword> {
        match octets.len() {
            0 => Err(NoPassword::Empty),
            1..=LONGEST => Ok(Self(octets.into())),
            _ => Err(NoPassword::TooLong),
        }
    }

    /// Its octets, for the kernel.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_octets_within_the_kernels_limit_and_is_not_printed() {
        assert_eq!(Password::new(b""), Err(NoPassword::Empty));
        assert_eq!(Password::new(&[b'x'; 81]), Err(NoPassword::TooLong));
        let password = Password::new(b"secret").unwrap();
        assert_eq!(password.octets(), b"secret");
        assert_eq!(format!("{password:?}"), "Password(not shown)");
    }
}
