//! A watch over what decides the ways to backends and who is around: neighbours that we keep, routers, and
//! routes.
//!
//! Not for what the ways are: [`super::reach`] and [`super::neighbours`] are asked after a change.

use futures::{FutureExt as _, StreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteProtocol;

use super::neighbours::{self, Heard};
use super::surroundings::is_router;
use super::{Error, Messages, PROTOCOL, listen};

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A neighbour's MAC address came, went or is another one.
    Neighbours,
    /// Routes may lead another way.
    Routes,
}

/// A watch over neighbours and routes.
#[derive(Debug)]
pub struct Watch {
    messages: Messages,
    heard: Heard,
}

impl Watch {
    /// Begins to watch; what was there before is not told.
    pub fn open() -> Result<Self, Error> {
        let messages = listen(
            "watching neighbours and routes",
            &[
                MulticastGroup::Neigh,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
            ],
        )?;
        Ok(Self {
            messages,
            heard: Heard::default(),
        })
    }

    /// Waits until a way may have changed; `None` when the kernel has closed the watch. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let Some(change) = self.change(message.payload) {
                return Some(change);
            }
        }
    }

    /// Takes what has been told already, so that a burst is one change: the one that matters most.
    pub fn drain(&mut self) -> Option<Change> {
        let mut most = None;
        while let Some(Some((message, _))) = self.messages.next().now_or_never() {
            most = most.max(self.change(message.payload));
        }
        most
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rtnetlink knows 60 kinds of messages, this watch four"
    )]
    fn change(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
        match payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => {
                // Our own routes are written in a round that looks at the ways afterwards.
                let is_ours = route.header.protocol == RouteProtocol::from(PROTOCOL);
                (!is_ours).then_some(Change::Routes)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                // A router may be a peer that is sought.
                let matters = neighbours::is_ours(&message) || is_router(&message);
                let new = neighbours::read(&message).filter(|_| matters)?;
                self.heard.is_news(new).then_some(Change::Neighbours)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                self.heard.is_loss(&message).then_some(Change::Neighbours)
            }
            NetlinkPayload::Overrun(_) => Some(Change::Routes),
            _ => None,
        }
    }
}
