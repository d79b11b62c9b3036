//! Who is around this host: the gateways of its default routes, and routers that advertise themselves.
//!
//! The kernel checks router advertisements and remembers who sent them, whether or not it follows them: its
//! table of neighbours has them marked.
//!
//! Not for what that means for peers: `desired::merge`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
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
        let all: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(Error::new("listing neighbours"))?;
        for message in all.iter().filter(|message| is_router(message)) {
            if let Some((device, IpAddr::V6(router))) = neighbours::next(message)
                && router.is_unicast_link_local()
            {
                around.routers.entry(device).or_default().insert(router);
            }
        }
        Ok(around)
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

/// Whether a neighbour has advertised itself as a router.
pub(super) fn is_router(message: &NeighbourMessage) -> bool {
    message.header.flags.contains(NeighbourFlags::Router)
}
