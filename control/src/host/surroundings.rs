//! Who is around this host: the gateways of its default routes, routers that advertise themselves; and by which
//! addresses it may speak with them.
//!
//! The kernel checks router advertisements and remembers who sent them, whether or not it follows them: its
//! table of neighbours has them marked.
//!
//! Not for what that means for peers: `desired::merge`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};

use super::links::Link;
use super::routes::{clear_header, device, gateway};
use super::{Error, Netlink, PROTOCOL, neighbours};
use crate::desired::Family;
use crate::desired::surroundings::Surroundings;

/// `RT_TABLE_MAIN` (include/uapi/linux/rtnetlink.h).
const MAIN: u32 = 254;

impl Netlink {
    /// Looks around; routes that we have learnt do not count.
    pub async fn surroundings(
        &self,
        links: &BTreeMap<String, Link>,
    ) -> Result<Surroundings, Error> {
        let mut around = Surroundings {
            devices: links
                .values()
                .map(|link| (link.name.clone(), link.index))
                .collect(),
            ..Surroundings::default()
        };
        for (family, question) in [
            (Family::Ipv4, RouteMessageBuilder::<Ipv4Addr>::new().build()),
            (Family::Ipv6, RouteMessageBuilder::<Ipv6Addr>::new().build()),
        ] {
            if let Some(found) = self.default_gateway(question).await? {
                around.gateways.insert(family, found);
            }
        }
        let all = self.all_neighbours().await?;
        for message in all.iter().filter(|message| is_router(message)) {
            if let Some((device, IpAddr::V6(router))) = neighbours::next(message)
                && router.is_unicast_link_local()
            {
                around.routers.entry(device).or_default().insert(router);
            }
        }
        around.addresses = self.addresses(links).await?;
        Ok(around)
    }

    /// Addresses that may be the source of a connection, by device.
    async fn addresses(
        &self,
        links: &BTreeMap<String, Link>,
    ) -> Result<BTreeMap<String, Vec<IpAddr>>, Error> {
        let unusable = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Dadfailed
            | AddressHeaderFlags::Deprecated;
        let mut all: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(Error::new("listing addresses"))?;
        // The primary ones first, else in the order in which the kernel has them.
        all.sort_by_key(|message| message.header.flags.contains(AddressHeaderFlags::Secondary));
        let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for message in all {
            let is_usable = message.header.scope == AddressScope::Universe
                && !message.header.flags.intersects(unusable);
            let link = links
                .values()
                .find(|link| link.index == message.header.index);
            // Packets to an address of a device that is off do not get there.
            let link = link.filter(|link| link.is_up);
            if let (true, Some(link), Some(address)) = (is_usable, link, local(&message)) {
                found.entry(link.name.clone()).or_default().push(address);
            }
        }
        Ok(found)
    }

    /// The gateway of the default route that counts: the one with the least metric.
    async fn default_gateway(
        &self,
        mut question: RouteMessage,
    ) -> Result<Option<(IpAddr, u32)>, Error> {
        clear_header(&mut question);
        question.attributes = vec![RouteAttribute::Table(MAIN)];
        let mut routes = self.handle.route().get(question).execute();
        let mut best: Option<(u32, (IpAddr, u32))> = None;
        while let Some(route) = routes
            .try_next()
            .await
            .map_err(Error::new("listing routes"))?
        {
            let is_ours = route.header.protocol == RouteProtocol::from(PROTOCOL);
            if route.header.destination_prefix_length != 0 || is_ours {
                continue;
            }
            let found = gateway(&route.attributes).zip(device(&route.attributes));
            let metric = route.attributes.iter().find_map(|attribute| {
                if let RouteAttribute::Priority(metric) = attribute {
                    Some(*metric)
                } else {
                    None
                }
            });
            let metric = metric.unwrap_or(0);
            if let Some(found) = found
                && best.is_none_or(|(known, _)| metric < known)
            {
                best = Some((metric, found));
            }
        }
        Ok(best.map(|(_, found)| found))
    }
}

/// Our end's address; that of the other end stands beside it on a link between two.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an address has a dozen attributes, two of them are addresses"
)]
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let mut either = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => either = Some(*address),
            _ => {}
        }
    }
    either
}

/// Whether a neighbour has advertised itself as a router.
pub(super) fn is_router(message: &NeighbourMessage) -> bool {
    message.header.flags.contains(NeighbourFlags::Router)
}
