//! The edge towards the host's network: links, neighbours, routes, sysctls and pods, by rtnetlink.
//!
//! ```text
//!   links       what devices there are, and when they change
//!   reach       how this host would reach an address
//!   neighbours  keeps the MAC addresses of next hops known
//!   ways        when next hops on the ways to backends may have changed
//!   fib         when the kernel may send a packet another way
//!   routes      learnt routes in the kernel's main table
//!   surroundings, adverts   who is around, and that we are
//!   pods        network namespaces joined to this node
//!   cgroup, namespace, offload, sysctl   the small rooms beneath
//! ```
//!
//! Everything speaks of the network namespace that [`Netlink::open`] was called in.
//!
//! Not here: BPF (`dataplane`), and deciding anything (`desired`, `plan`).

use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{
    Handle, MulticastGroup, new_connection_with_strict_check, new_multicast_connection,
};

pub mod adverts;
mod blackholes;
pub mod cgroup;
pub mod fib;
pub mod links;
pub mod namespace;
pub mod neighbours;
pub mod offload;
pub mod pods;
pub mod reach;
pub mod routes;
mod surroundings;
pub mod sysctl;
pub mod ways;

/// Our number in the `protocol` field of routes and neighbours (rtnetlink(7)): what carries it is ours
/// to change and to remove. Neither in iproute2's list of protocols nor among those that FRR adds to it
/// (186 to 198): zebra sweeps routes that carry its numbers.
pub const PROTOCOL: u8 = 208;

/// What could not be done to the host's network.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Error {
    /// Doing what, to which thing.
    pub doing: String,
    /// Why it failed.
    pub source: io::Error,
}

impl Error {
    /// Says what was being done.
    fn new<E: IntoIo>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self {
            doing,
            source: source.into_io(),
        }
    }
}

/// What an error means to the operating system.
trait IntoIo {
    fn into_io(self) -> io::Error;
}

impl IntoIo for io::Error {
    fn into_io(self) -> io::Error {
        self
    }
}

impl IntoIo for nix::errno::Errno {
    fn into_io(self) -> io::Error {
        self.into()
    }
}

impl IntoIo for rtnetlink::Error {
    fn into_io(self) -> io::Error {
        if let Self::NetlinkError(message) = &self {
            message.to_io()
        } else {
            io::Error::other(self.to_string())
        }
    }
}

/// What the kernel tells those who listen.
type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Begins to listen, in the network namespace of the calling thread, by a task of the tokio runtime that this is called
/// in; what was there before is not told. `doing` is for the error.
fn listen(doing: &str, groups: &[MulticastGroup]) -> Result<Messages, Error> {
    let (connection, _, messages) = new_multicast_connection(groups).map_err(Error::new(doing))?;
    tokio::spawn(connection);
    Ok(messages)
}

/// A conversation with the kernel about its network.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens one, in the network namespace of the calling thread; it is driven by a task of the tokio
    /// runtime that this is called in.
    pub fn open() -> Result<Self, Error> {
        // Strictly: the kernel then filters dumps itself, which matters with a full table.
        let (connection, handle, _) =
            new_connection_with_strict_check().map_err(Error::new("opening a netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }
}
