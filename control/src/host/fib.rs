//! A watch over everything that decides where the kernel would send a packet: routes, rules, neighbours, devices.
//!
//! Other than [`super::ways`] it hears of neighbours and routes that are nobody's business but the kernel's.
//!
//! Not for what the answer is: the datapath asks the kernel by itself, and must only know when what it learnt is old.

use futures::StreamExt as _;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::neighbours::{self, Heard};
use super::{Error, Messages, listen};

/// The watch.
#[derive(Debug)]
pub struct Watch {
    messages: Messages,
    heard: Heard,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let messages = listen(
            "watching where packets are sent",
            &[
                MulticastGroup::Link,
                MulticastGroup::Neigh,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
                MulticastGroup::Ipv4Rule,
                MulticastGroup::Ipv6Rule,
            ],
        )?;
        Ok(Self {
            messages,
            heard: Heard::default(),
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
                neighbours::read(&message).is_some_and(|new| self.heard.is_news(new))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                self.heard.is_loss(&message)
            }
            NetlinkPayload::InnerMessage(_) | NetlinkPayload::Overrun(_) => true,
            _ => false,
        }
    }
}
