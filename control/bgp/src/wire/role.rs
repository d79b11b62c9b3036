//! What a router is to its neighbour, and who may hear what for that (RFC 9234).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The role of a router in a session with another AS (RFC 9234 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It carries the other one's packets anywhere.
    Provider,
    /// It is a route server.
    RsServer,
    /// It is the client of a route server.
    RsClient,
    /// The other one carries its packets anywhere.
    Customer,
    /// Both carry only what is for themselves and their customers.
    Peer,
}

impl Role {
    const ALL: [Self; 5] = [
        Self::Provider,
        Self::RsServer,
        Self::RsClient,
        Self::Customer,
        Self::Peer,
    ];

    /// Its number in the capability (RFC 9234 §4.1).
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Provider => 0,
            Self::RsServer => 1,
            Self::RsClient => 2,
            Self::Customer => 3,
            Self::Peer => 4,
        }
    }

    /// The role of a number.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.number() == number)
    }

    /// What the other side must be (RFC 9234 §4.2).
    pub(crate) const fn counterpart(self) -> Self {
        match self {
            Self::Provider => Self::Customer,
            Self::Customer => Self::Provider,
            Self::RsServer => Self::RsClient,
            Self::RsClient => Self::RsServer,
            Self::Peer => Self::Peer,
        }
    }

    /// Whether what the other side tells is for our customers only (RFC 9234 §5).
    pub(crate) const fn hears_for_customers_only(self) -> bool {
        matches!(self, Self::Customer | Self::RsClient | Self::Peer)
    }

    /// Whether the other side may tell what it hears from us to its customers only (RFC 9234 §5).
    pub(crate) const fn tells_for_customers_only(self) -> bool {
        matches!(self, Self::Provider | Self::RsServer | Self::Peer)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Provider => "provider",
            Self::RsServer => "rs-server",
            Self::RsClient => "rs-client",
            Self::Customer => "customer",
            Self::Peer => "peer",
        })
    }
}
