//! The host's devices as values, and a watch over their changes.
//!
//! Not for making devices: pods' are made in [`super::pods`], all others are the host's own.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use serde::Serialize;

use super::{Error, Messages, Netlink, listen};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; zeros where it has none.
    pub mac: [u8; 6],
    /// The largest packet it sends, in bytes.
    pub mtu: u32,
    /// It was switched on.
    pub is_up: bool,
    /// Its wire is connected.
    pub has_carrier: bool,
    /// What someone wrote on it (`ip link set dev … alias …`).
    pub alias: Option<String>,
    /// How XDP runs on it, when it does.
    pub xdp: Option<XdpRun>,
    /// It is one end of a veth pair.
    pub is_veth: bool,
}

/// How an XDP program runs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpRun {
    /// In the driver.
    Driver,
    /// By the stack.
    Generic,
    /// On the network card.
    Offloaded,
    /// Several ways at once.
    Several,
}

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, new or changed.
    Present(Link),
    /// It has gone.
    Gone {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// The kernel could not tell everything: list the devices again.
    Lost,
}

impl Netlink {
    /// Lists all devices by their index.
    pub async fn links(&self) -> Result<BTreeMap<u32, Link>, Error> {
        self.handle
            .link()
            .get()
            .execute()
            .map_ok(|message| read(&message))
            .map_ok(|link| (link.index, link))
            .try_collect()
            .await
            .map_err(Error::new("listing devices"))
    }

    /// Finds a device by its name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut found = Box::pin(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| read(&message))),
            Err(error) => {
                let error = Error::new(format!("finding device {name}"))(error);
                if error.source.raw_os_error() == Some(libc::ENODEV) {
                    return Ok(None);
                }
                Err(error)
            }
        }
    }
}

/// A watch over the devices.
#[derive(Debug)]
pub struct Watch {
    messages: Messages,
}

impl Watch {
    /// Begins to watch; what was there before is not told, so list the devices after this.
    pub fn open() -> Result<Self, Error> {
        let messages = listen("watching devices", &[MulticastGroup::Link])?;
        Ok(Self { messages })
    }

    /// Waits for the next change; `None` when the kernel has closed the watch. Cancel-safe.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rtnetlink knows 60 kinds of messages, a watch over devices two"
    )]
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    return Some(Change::Present(read(&link)));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    let Link { index, name, .. } = read(&link);
                    return Some(Change::Gone { index, name });
                }
                NetlinkPayload::Overrun(_) => return Some(Change::Lost),
                _ => {}
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a device has 70 attributes, six of them matter here"
)]
fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
        has_carrier: message.header.flags.contains(LinkFlags::LowerUp),
        alias: None,
        xdp: None,
        is_veth: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => {
                link.mac = address.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(info) => {
                link.is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().find_map(read_xdp),
            _ => {}
        }
    }
    link
}

fn read_xdp(attribute: &LinkXdp) -> Option<XdpRun> {
    let LinkXdp::Attached(attached) = attribute else {
        return None;
    };
    match attached {
        XdpAttached::Driver => Some(XdpRun::Driver),
        XdpAttached::SocketBuffer => Some(XdpRun::Generic),
        XdpAttached::Hardware => Some(XdpRun::Offloaded),
        XdpAttached::Multiple => Some(XdpRun::Several),
        XdpAttached::None | XdpAttached::Other(_) => None,
        _ => None,
    }
}
