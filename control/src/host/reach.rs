//! How this host would reach an address, by asking its routing tables.
//!
//! Not for keeping the answer's next hop resolved: [`super::neighbours`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};

use super::{Error, Netlink, routes};

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On a link of this host.
    OnLink {
        /// The device's index.
        device: u32,
        /// The largest packet in bytes, where the route says it.
        mtu: Option<u32>,
    },
    /// Behind a router.
    Routed {
        /// The router.
        via: IpAddr,
        /// The device that leads to it, by index.
        device: u32,
        /// The largest packet in bytes, where the route (or what its routers told) says it.
        mtu: Option<u32>,
    },
    /// It is an address of this host.
    Local,
    /// No route leads there.
    Unreachable,
}

impl Reach {
    /// The largest packet in bytes, where the route says it.
    pub const fn mtu(&self) -> Option<u32> {
        match *self {
            Self::OnLink { mtu, .. } | Self::Routed { mtu, .. } => mtu,
            Self::Local | Self::Unreachable => None,
        }
    }

    /// Whose MAC address must be known to reach the address, and on which device.
    pub fn neighbour(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        match *self {
            Self::OnLink { device, .. } => Some((device, addr)),
            Self::Routed { via, device, .. } => Some((device, via)),
            Self::Local | Self::Unreachable => None,
        }
    }
}

impl Netlink {
    /// Asks the kernel how it would reach an address.
    pub async fn reach(&self, addr: IpAddr) -> Result<Reach, Error> {
        let mut answers = Box::pin(self.handle.route().get(question(addr)).execute());
        match answers.try_next().await {
            Ok(answer) => Ok(answer.map_or(Reach::Unreachable, |route| read(&route))),
            Err(error) => {
                let error = Error::new(format!("asking for the route to {addr}"))(error);
                match error.source.raw_os_error() {
                    // What unreachable, prohibit and blackhole routes answer, and no route at all.
                    Some(
                        libc::ENETUNREACH
                        | libc::EHOSTUNREACH
                        | libc::EACCES
                        | libc::EINVAL
                        | libc::ENETDOWN,
                    ) => Ok(Reach::Unreachable),
                    _ => Err(error),
                }
            }
        }
    }
}

fn question(addr: IpAddr) -> RouteMessage {
    let mut question = match addr {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .build(),
    };
    // With strict checking the kernel refuses a question that says what the answer should be.
    routes::clear_header(&mut question);
    question
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other kind of route refuses the packet"
)]
fn read(route: &RouteMessage) -> Reach {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast => return Reach::Local,
        _ => return Reach::Unreachable,
    }
    let mtu = mtu(&route.attributes);
    match (
        routes::device(&route.attributes),
        routes::gateway(&route.attributes),
    ) {
        (Some(device), Some(via)) => Reach::Routed { via, device, mtu },
        (Some(device), None) => Reach::OnLink { device, mtu },
        (None, _) => Reach::Unreachable,
    }
}

fn mtu(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| {
        let RouteAttribute::Metrics(metrics) = attribute else {
            return None;
        };
        metrics.iter().find_map(|metric| {
            if let RouteMetric::Mtu(mtu) = metric {
                Some(*mtu).filter(|mtu| *mtu != 0)
            } else {
                None
            }
        })
    })
}
