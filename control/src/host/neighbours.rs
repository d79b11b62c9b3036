//! Keeps the MAC addresses of next hops known, so that the datapath finds them resolved.
//!
//! A neighbour of ours is *managed* (`NTF_EXT_MANAGED`, Linux 5.16): the kernel resolves it at once and
//! again before it grows stale, whether or not the stack sends to it. It carries our protocol number,
//! by which it is found again.
//!
//! Not for deciding whom to keep: the agent asks [`super::reach`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::route::RouteProtocol;

use super::{Error, Netlink, PROTOCOL};

/// A next hop whose MAC address is kept known: the device's index and the address.
pub type Next = (u32, IpAddr);

/// A neighbour that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device it is on, by index.
    pub device: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its MAC address, once known.
    pub mac: Option<[u8; 6]>,
    /// Whether packets may be sent to that MAC address now.
    pub is_resolved: bool,
}

/// What a watch has heard of each neighbour last: the kernel tells every probe of one that answers as before.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<Next, Neighbour>);

impl Heard {
    /// Whether a neighbour is new, or not what it was.
    pub(super) fn is_news(&mut self, new: Neighbour) -> bool {
        let name = (new.device, new.addr);
        let is_news = self.0.get(&name) != Some(&new);
        self.0.insert(name, new);
        is_news
    }

    /// Whether one that was heard of has gone.
    pub(super) fn is_loss(&mut self, gone: &NeighbourMessage) -> bool {
        next(gone).is_some_and(|gone| self.0.remove(&gone).is_some())
    }
}

impl Netlink {
    /// Lists the neighbours that are ours.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let messages = self.our_neighbours().await?;
        Ok(messages.iter().filter_map(read).collect())
    }

    async fn our_neighbours(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let all = self.all_neighbours().await?;
        Ok(all.into_iter().filter(is_ours).collect())
    }

    /// What the kernel says of all neighbours, whoever made them.
    pub(super) async fn all_neighbours(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let all = self.handle.neighbours().get().execute();
        all.try_collect()
            .await
            .map_err(Error::new("listing neighbours"))
    }

    /// Makes the neighbours that are ours exactly these; returns how many were added and removed.
    ///
    /// # Errors
    /// The first neighbour that could not be added or removed, after trying the others.
    pub async fn keep_neighbours(&self, wanted: &BTreeSet<Next>) -> Result<(usize, usize), Error> {
        let held = self.our_neighbours().await?;
        let known: BTreeSet<Next> = held.iter().filter_map(next).collect();
        let (mut added, mut removed) = (0, 0);
        let mut first = None;
        for &(device, addr) in wanted.difference(&known) {
            match self.add_managed(device, addr).await {
                Ok(()) => added += 1,
                Err(error) => first = first.or(Some(error)),
            }
        }
        for message in &held {
            let Some(unwanted) = next(message).filter(|next| !wanted.contains(next)) else {
                continue;
            };
            match self.delete_neighbour(unwanted).await {
                Ok(()) => removed += 1,
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok((added, removed)), Err)
    }

    async fn add_managed(&self, device: u32, addr: IpAddr) -> Result<(), Error> {
        let mut request = self
            .handle
            .neighbours()
            .add(device, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        request.message_mut().attributes.extend([
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ]);
        request.execute().await.map_err(Error::new(format!(
            "keeping neighbour {addr} on device {device} resolved"
        )))
    }

    async fn delete_neighbour(&self, (device, addr): Next) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = match addr {
            IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        message.header.ifindex = device;
        let destination = match addr {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes = vec![NeighbourAttribute::Destination(destination)];
        let deleted = self.handle.neighbours().del(message).execute().await;
        match deleted.map_err(Error::new(format!("removing neighbour {addr}"))) {
            // It went with its device.
            Err(error)
                if matches!(
                    error.source.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Writes a permanent neighbour: one whose MAC address we know ourselves.
    pub(super) async fn add_permanent(
        &self,
        device: u32,
        addr: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), Error> {
        self.handle
            .neighbours()
            .add(device, addr)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(Error::new(format!(
                "writing neighbour {addr} on device {device}"
            )))
    }
}

pub(super) fn is_ours(message: &NeighbourMessage) -> bool {
    let ours = NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL));
    message.attributes.contains(&ours)
}

pub(super) fn next(message: &NeighbourMessage) -> Option<Next> {
    let addr = message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::Destination(addr) = attribute {
            match addr {
                NeighbourAddress::Inet(v4) => return Some(IpAddr::V4(*v4)),
                NeighbourAddress::Inet6(v6) => return Some(IpAddr::V6(*v6)),
                NeighbourAddress::Other(_) | _ => {}
            }
        }
        None
    })?;
    Some((message.header.ifindex, addr))
}

pub(super) fn read(message: &NeighbourMessage) -> Option<Neighbour> {
    let (device, addr) = next(message)?;
    let mac = message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            bytes.as_slice().try_into().ok()
        } else {
            None
        }
    });
    Some(Neighbour {
        device,
        addr,
        mac,
        // NUD_VALID (include/net/neighbour.h), but for entries without a MAC address.
        is_resolved: mac.is_some()
            && matches!(
                message.header.state,
                NeighbourState::Reachable
                    | NeighbourState::Stale
                    | NeighbourState::Delay
                    | NeighbourState::Probe
                    | NeighbourState::Permanent
            ),
    })
}
