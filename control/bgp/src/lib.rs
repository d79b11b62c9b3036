//! A BGP-4 speaker without sockets, clocks or tasks: bytes and time in, bytes and events out.
//!
//! ```text
//!   handle_incoming / handle_connected / handle_bytes / handle_closed / handle_timeout
//!        |
//!        v
//!    speaker ---> peer ---> session ---> fsm          wire: bytes <-> values
//!        |          |          |
//!        |          v          +-- framing, timers of one connection
//!        |        collision, back-off, graceful restart of one neighbour
//!        v
//!       rib <--- policy (what may come in), best_path (what is used, and why)
//!        |
//!        v
//!      group <--- export (what goes out, and how): peers that are told the same
//!        |
//!        v
//!    poll_transmit / poll_connection / poll_event / poll_timeout
//! ```
//!
//! Beside it stands [`bfd::Bfd`], of the same grammar and with a clock of its own: it tells the speaker
//! within milliseconds that a peer is not reached any more.
//!
//! [`Speaker`] is the only way in. It announces what its embedder originates, and passes on what it learnt
//! only to peers of which that is asked: a node is not a transit router. Everything is deterministic: the same inputs,
//! instants and seed give the same outputs.
//!
//! Not for: TCP, TCP options, clocks and tasks (the embedder's), kernel routes, Kubernetes.

pub mod best_path;
pub mod bfd;
pub mod config;
mod export;
pub mod fsm;
mod group;
mod jitter;
mod originated;
mod peer;
pub mod policy;
mod prefix_map;
pub mod record;
mod rib;
mod session;
pub mod snapshot;
pub mod speaker;
pub mod wire;

pub use best_path::Reason;
pub use config::{
    Announcement, BfdConfig, ExportRule, GracefulRestart, ImportPolicy, NoPassword, Password,
    PeerConfig, PeerRange, PrefixRule, SpeakerConfig,
};
pub use fsm::State;
pub use policy::Rejection;
pub use prefix_map::PrefixMap;
pub use session::Direction;
pub use snapshot::{
    AdvertisedRoute, Counters, FamilySnapshot, GroupSnapshot, LearntPath, Messages,
    NeighborSnapshot, PathSnapshot, PeerSnapshot, PolicySnapshot, Reset, RouteSnapshot, Said,
};
pub use speaker::{
    Accepted, ConnectionId, ConnectionRequest, Distance, DownReason, Event, Speaker, Transmit,
};
pub use wire::{
    Aggregator, Attributes, ExtendedCommunity, Family, LargeCommunity, LongLived, Notification,
    Origin, RareAttributes, Role, UnknownAttribute,
};
