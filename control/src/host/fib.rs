//! A watch over everything that decides where the kernel would send a packet: routes, rules, neighbours, devices.
//!
//! Not for what the answer is: the datapath asks the kernel by itself, and must only know when what it learnt is old.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::Error;
use super::neighbours::{self, Neighbour};

/// The watch.
#[derive(Debug)]
pub struct Watch {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// What was heard of each neighbour last: the kernel tells every probe of one that answers as before.
    heard: BTreeMap<(u32, IpAddr), Neighbour>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, messages) = new_multicast_connection(&groups)
            .map_err(Error::new("watching where packets are sent"))?;
        tokio::spawn(connection);
        Ok(Self {
            messages,
            heard: BTreeMap::new(),
        })
    }

    /// Waits for a change; `None` when the kernel has closed the watch. Cancel-safe.
    pub async fn changed(&mut self) -> Option<()> {
        loop {
            let (message, _) = self.messages.next().await?;
            if self.is_change(message.payload) {
                return Some(());
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rtnetlink knows 60 kinds of messages; of those that are watched, neighbours' are looked into"
    )]
    fn is_change(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                let Some(new) = neighbours::read(&message) else {
                    return false;
                };
                let old = self.heard.insert((new.device, new.addr), new.clone());
                old.as_ref() != Some(&new)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                let gone = neighbours::next(&message);
                gone.is_some_and(|gone| self.heard.remove(&gone).is_some())
            }
            NetlinkPayload::InnerMessage(_) | NetlinkPayload::Overrun(_) => true,
            _ => false,
        }
    }
}
