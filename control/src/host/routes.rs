//! Learnt routes in the kernel's main table, under our own protocol number.
//!
//! They have a metric of their own, so they never take the place of another's route for the same
//! prefix, and lose against those that the host itself has.
//!
//! The kernel drops IPv4 routes silently when their device goes down: whoever watches devices lists
//! the routes again then, and plans.
//!
//! Not for choosing routes (the speaker), nor for the difference (`plan::routes`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};
use rtnetlink::{RouteMessageBuilder, RouteNextHopBuilder};

use super::blackholes::is_one;
use super::{Error, Netlink, PROTOCOL};
use crate::plan::routes::{NextHop, RouteStep, Routes};

/// The metric of learnt routes: after everything that the host's own tools write by default.
const METRIC: u32 = 2208;
/// `RT_TABLE_MAIN` (include/uapi/linux/rtnetlink.h).
const MAIN: u32 = 254;

impl Netlink {
    /// Lists the learnt routes that the kernel holds.
    pub async fn learnt_routes(&self) -> Result<Routes, Error> {
        let mut routes = Routes::new();
        let all = self.routes_of(PROTOCOL).await?;
        for message in all.into_iter().filter(|route| !is_one(route)) {
            // IPv6 shows each way of a route as a route of its own where they were added singly.
            if let Some((prefix, next_hops)) = read(&message) {
                routes.entry(prefix).or_default().extend(next_hops);
            }
        }
        Ok(routes)
    }

    /// Lists the routes of the main table that carry this protocol number.
    pub(super) async fn routes_of(&self, protocol: u8) -> Result<Vec<RouteMessage>, Error> {
        let mut all = Vec::new();
        for mut filter in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            // With strict checking the kernel filters by these and refuses any other.
            clear_header(&mut filter);
            filter.header.protocol = RouteProtocol::from(protocol);
            filter.attributes = vec![RouteAttribute::Table(MAIN)];
            let some: Vec<_> = self
                .handle
                .route()
                .get(filter)
                .execute()
                .try_collect()
                .await
                .map_err(Error::new("listing routes"))?;
            all.extend(some);
        }
        // A kernel that filters not shows all of them.
        all.retain(|route| route.header.protocol == RouteProtocol::from(protocol));
        Ok(all)
    }

    /// Carries one step out.
    pub async fn apply_route(&self, step: &RouteStep) -> Result<(), Error> {
        match step {
            RouteStep::Add(prefix, next_hops) | RouteStep::Replace(prefix, next_hops) => {
                self.put_route(*prefix, next_hops).await
            }
            RouteStep::Remove(prefix) => self.remove_route(*prefix).await.map(drop),
        }
    }

    /// Writes a learnt route, in the place of the one that it had.
    pub async fn put_route(
        &self,
        prefix: IpNetwork,
        next_hops: &BTreeSet<NextHop>,
    ) -> Result<(), Error> {
        let hops = next_hops
            .iter()
            .map(|hop| next_hop(prefix, hop))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut message = learnt(prefix);
        match <[RouteNextHop; 1]>::try_from(hops) {
            // A route of one way is written as such: other tools read it more easily.
            Ok([hop]) => {
                if hop.interface_index != 0 {
                    let device = RouteAttribute::Oif(hop.interface_index);
                    message.attributes.push(device);
                }
                message.attributes.extend(hop.attributes);
            }
            Err(hops) => message.attributes.push(RouteAttribute::MultiPath(hops)),
        }
        self.handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(Error::new(format!("writing route {prefix}")))
    }

    /// Removes a learnt route; `false` when there was none.
    pub async fn remove_route(&self, prefix: IpNetwork) -> Result<bool, Error> {
        let removed = self.handle.route().del(learnt(prefix)).execute().await;
        match removed.map_err(Error::new(format!("removing route {prefix}"))) {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(
                    error.source.raw_os_error(),
                    Some(libc::ESRCH | libc::ENOENT)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes every learnt route, and every blackhole; returns how many routes.
    pub async fn flush_learnt_routes(&self) -> Result<usize, Error> {
        self.keep_blackholes(&BTreeSet::new()).await?;
        let mut removed = 0;
        for prefix in self.learnt_routes().await?.keys() {
            removed += usize::from(self.remove_route(*prefix).await?);
        }
        Ok(removed)
    }
}

/// Empties what a builder fills in: in a question it would be a filter, or an error.
pub(super) fn clear_header(question: &mut RouteMessage) {
    question.header.table = 0;
    question.header.protocol = RouteProtocol::Unspec;
    question.header.scope = RouteScope::Universe;
    question.header.kind = RouteType::Unspec;
}

pub(super) fn learnt(prefix: IpNetwork) -> RouteMessage {
    match prefix {
        IpNetwork::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4.network(), v4.prefix())
            .protocol(RouteProtocol::from(PROTOCOL))
            .priority(METRIC)
            .build(),
        IpNetwork::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6.network(), v6.prefix())
            .protocol(RouteProtocol::from(PROTOCOL))
            .priority(METRIC)
            .build(),
    }
}

fn next_hop(prefix: IpNetwork, hop: &NextHop) -> Result<RouteNextHop, Error> {
    let builder = match prefix {
        IpNetwork::V4(_) => RouteNextHopBuilder::new_ipv4(),
        IpNetwork::V6(_) => RouteNextHopBuilder::new_ipv6(),
    };
    if let (IpNetwork::V4(_), IpAddr::V6(via), Some(device)) = (prefix, hop.via, hop.dev) {
        // RFC 8950: the router is known by its IPv6 address, packets to it are of IPv4.
        let mut built = builder.interface(device).build();
        let via = RouteAttribute::Via(RouteVia::Inet6(via));
        built.attributes.push(via);
        return Ok(built);
    }
    let builder = builder.via(hop.via).map_err(|_| {
        Error::new(format!("writing route {prefix}"))(std::io::Error::other(format!(
            "next hop {} is of another family",
            hop.via
        )))
    })?;
    Ok(match hop.dev {
        Some(device) => builder.interface(device).build(),
        None => builder.build(),
    })
}

fn read(message: &RouteMessage) -> Option<(IpNetwork, BTreeSet<NextHop>)> {
    let mut next_hops = BTreeSet::new();
    next_hops.extend(gateway(&message.attributes).map(|via| NextHop {
        via,
        dev: device(&message.attributes),
    }));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            next_hops.extend(hops.iter().filter_map(|hop| {
                gateway(&hop.attributes).map(|via| NextHop {
                    via,
                    dev: Some(hop.interface_index).filter(|&index| index != 0),
                })
            }));
        }
    }
    Some((prefix(message)?, next_hops))
}

/// The prefix of a route; the default route's is not written in the message.
pub(super) fn prefix(message: &RouteMessage) -> Option<IpNetwork> {
    let default = if message.header.address_family == AddressFamily::Inet {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let destination = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(addr) = attribute {
            ip(addr)
        } else {
            None
        }
    });
    let length = message.header.destination_prefix_length;
    IpNetwork::new(destination.unwrap_or(default), length).ok()
}

/// The device that a route leads to, by index.
pub(super) fn device(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

/// The router that a route leads to.
pub(super) fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(addr) = attribute {
            ip(addr)
        } else if let RouteAttribute::Via(via) = attribute {
            match via {
                RouteVia::Inet(v4) => Some(IpAddr::V4(*v4)),
                RouteVia::Inet6(v6) => Some(IpAddr::V6(*v6)),
                RouteVia::Packet(_) | RouteVia::Other(_) | _ => None,
            }
        } else {
            None
        }
    })
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}
