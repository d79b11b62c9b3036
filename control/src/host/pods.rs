//! Pods: network namespaces joined to this node by a veth pair, routed, never bridged.
//!
//! ```text
//!   node                                              pod
//!   fl<hash>  alias "fairlead pod NAME"  ====veth==== eth0  10.1.0.5/32  fd00::5/128
//!     10.1.0.5/32 dev fl<hash>                          default via 169.254.1.1 onlink
//!     fd00::5/128 dev fl<hash>                          default via fe80::1
//!     10.1.0.5 -> pod's MAC, permanent                  169.254.1.1, fe80::1 -> node's MAC, permanent
//! ```
//!
//! Nobody owns the two gateway addresses: their MAC address is written, so nothing is asked for and
//! nothing needs resolving on either side, which is what lets the datapath forward at once.
//!
//! The alias is the record: a restarted agent and `dpctl` find pods by it.
//!
//! Not for the datapath's part (programs, redirects): `crate::pod` joins the two. Not for who asks for pods: people
//! (`fairlead pod add`) and container runtimes (`crate::cni`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::Serialize;

use super::links::Link;
use super::{Error, Netlink, namespace, offload, routes, sysctl};

pub mod verify;

/// What the alias of a pod's device begins with.
const ALIAS: &str = "fairlead pod ";
/// The pod's end, unless another name is asked for.
pub const INTERFACE: &str = "eth0";
/// The pod's IPv4 gateway.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's IPv6 gateway.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The longest name of a pod, in bytes: with what the alias begins with it fits `IFALIASZ` (include/uapi/linux/if.h).
pub const LONGEST_NAME: usize = 200;
/// Where routes lead that carry everything.
const EVERYWHERE: [IpNetwork; 2] = {
    let v4 = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0);
    let v6 = Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0);
    match (v4, v6) {
        (Some(v4), Some(v6)) => [IpNetwork::V4(v4), IpNetwork::V6(v6)],
        _ => unreachable!(),
    }
};
/// `RTPROT_STATIC`: what an administrator would write.
const STATIC: u8 = 4;

/// A pod as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name on this node, for people.
    pub name: String,
    /// The node's end of its link: a [`device_name`], by which it is found again.
    pub device: String,
    /// The file of its network namespace: see [`namespace::path`].
    pub namespace: PathBuf,
    /// The pod's end of its link.
    pub interface: String,
    /// The largest packet of the link, in bytes; absent: the kernel's default.
    pub mtu: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its routes over the link lead; empty: everywhere, for each family that it has an address of.
    pub routes: Vec<IpNetwork>,
}

impl Wanted {
    /// A pod with one link that carries everything.
    pub fn new(name: &str, namespace: PathBuf, addresses: Vec<IpAddr>) -> Self {
        Self {
            name: name.to_owned(),
            device: device_name(name),
            namespace,
            interface: INTERFACE.to_owned(),
            mtu: None,
            addresses,
            routes: Vec::new(),
        }
    }

    /// The prefixes that the pod has routes to over the link.
    pub fn destinations(&self) -> Vec<IpNetwork> {
        let wanted = if self.routes.is_empty() {
            EVERYWHERE.as_slice()
        } else {
            &self.routes
        };
        let has_family = |prefix: &&IpNetwork| {
            self.addresses
                .iter()
                .any(|addr| addr.is_ipv4() == prefix.is_ipv4())
        };
        wanted.iter().filter(has_family).copied().collect()
    }
}

/// The gateway of a pod's routes of a family.
pub const fn gateway(is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        IpAddr::V4(GATEWAY_V4)
    } else {
        IpAddr::V6(GATEWAY_V6)
    }
}

/// A pod as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node's end of its link.
    pub device: String,
    /// The index of that device.
    pub index: u32,
    /// The MAC address of that device.
    pub mac: [u8; 6],
    /// Its addresses, in order.
    pub addresses: Vec<IpAddr>,
}

/// A pod that was joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The pod.
    pub pod: Pod,
    /// The MAC address of the pod's end.
    pub mac_inside: [u8; 6],
    /// The largest packet of the link, in bytes.
    pub mtu: u32,
    /// The kernel parameters of the node that were changed.
    pub changes: Vec<sysctl::Change>,
}

/// The device of a pod: `fl` and a hash of what tells it from others, as long as a device name may be.
pub fn device_name(pod: &str) -> String {
    // FNV-1a, 64 bits (draft-eastlake-fnv): short, fixed, and no secret is needed here.
    let hash = pod.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("fl{:011x}", hash & 0xfff_ffff_ffff)
}

/// The name of the pod that a device belongs to.
pub fn name_of(link: &Link) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(ALIAS)
}

impl Netlink {
    /// Lists the pods of this node, by name.
    pub async fn pods(&self) -> Result<Vec<Pod>, Error> {
        let routes = self.routes_of(STATIC).await?;
        let links = self.links().await?;
        let mut pods: Vec<_> = links
            .values()
            .filter_map(|link| {
                let name = name_of(link)?.to_owned();
                Some(Pod {
                    name,
                    device: link.name.clone(),
                    index: link.index,
                    mac: link.mac,
                    addresses: addresses_behind(link.index, &routes),
                })
            })
            .collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// Joins a pod to this node. May be repeated; a pod with other addresses is joined anew, and a
    /// half-done one is completed.
    pub async fn join_pod(&self, wanted: &Wanted) -> Result<Joined, Error> {
        self.check(wanted).await?;
        let file = namespace::open(&wanted.namespace)?;
        let device = &wanted.device;
        let mut changes = sysctl::forwarding()?;

        let link = match self.link(device).await? {
            Some(link) => link,
            None => self.make_pair(wanted, &file).await?,
        };
        self.describe(link.index, &format!("{ALIAS}{}", wanted.name))
            .await?;
        changes.extend(prepare_device(device)?);
        self.switch_on(link.index).await?;

        let inside = wanted.clone();
        let node_mac = link.mac;
        let mac_inside = namespace::inside(file, move || async move {
            set_up_inside(&inside, node_mac).await
        })
        .await?;

        for &addr in &wanted.addresses {
            self.add_permanent(link.index, addr, mac_inside).await?;
            self.put(
                device_route(addr, link.index),
                &format!("{addr} dev {device}"),
            )
            .await?;
        }
        let mut addresses = wanted.addresses.clone();
        addresses.sort_unstable();
        Ok(Joined {
            pod: Pod {
                name: wanted.name.clone(),
                device: device.clone(),
                index: link.index,
                mac: link.mac,
                addresses,
            },
            mac_inside,
            mtu: link.mtu,
            changes,
        })
    }

    /// Takes a pod off this node by its device: that goes, and with it its routes and neighbours. `None` when there
    /// was nothing of it.
    pub async fn part_pod(&self, device: &str) -> Result<Option<Link>, Error> {
        let Some(link) = self.link(device).await? else {
            return Ok(None);
        };
        match self.delete_link(link.index).await {
            // Its namespace went away meanwhile.
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| Some(link)),
        }
    }

    async fn check(&self, wanted: &Wanted) -> Result<(), Error> {
        let wrong = |why: String| {
            Error::new(format!("adding pod {}", wanted.name))(std::io::Error::other(why))
        };
        let is_name = !wanted.name.is_empty()
            && wanted.name.len() <= LONGEST_NAME
            && !wanted.name.contains(|c: char| c.is_control());
        if !is_name {
            return Err(wrong(format!(
                "a name has 1 to {LONGEST_NAME} characters, none of them control characters"
            )));
        }
        if wanted.addresses.is_empty() {
            return Err(wrong("it needs at least one address (--ip)".to_owned()));
        }
        for other in self.pods().await? {
            if other.device == wanted.device {
                if other.name != wanted.name {
                    return Err(wrong(format!(
                        "pod {} has the same device name {}: choose another name",
                        other.name, other.device
                    )));
                }
                let mut addresses = wanted.addresses.clone();
                addresses.sort_unstable();
                if other.addresses != addresses && !other.addresses.is_empty() {
                    self.part_pod(&wanted.device).await?;
                }
            } else if let Some(taken) = other
                .addresses
                .iter()
                .find(|addr| wanted.addresses.contains(addr))
            {
                return Err(wrong(format!("pod {} has address {taken}", other.name)));
            }
        }
        Ok(())
    }

    async fn make_pair(&self, wanted: &Wanted, namespace: &std::fs::File) -> Result<Link, Error> {
        use std::os::fd::AsRawFd as _;

        let (device, inside) = (&*wanted.device, &*wanted.interface);
        let doing = format!("making the link of pod {}", wanted.name);
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(inside)
            .setns_by_fd(namespace.as_raw_fd());
        let mut pair = LinkVeth::new(device, inside);
        if let Some(mtu) = wanted.mtu {
            peer = peer.mtu(mtu);
            pair = pair.mtu(mtu);
        }
        let pair = pair
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        let made = self.handle.link().add(pair).execute().await;
        made.map_err(Error::new(&*doing)).map_err(|mut error| {
            if error.source.raw_os_error() == Some(libc::EEXIST) {
                error.source = std::io::Error::other(format!(
                    "{} has a device {inside} already: remove it there, or the pod that it belongs to",
                    wanted.namespace.display()
                ));
            }
            error
        })?;
        self.link(device)
            .await?
            .ok_or_else(|| Error::new(doing)(std::io::Error::from_raw_os_error(libc::ENODEV)))
    }

    async fn describe(&self, index: u32, alias: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(Error::new(format!("naming device {index} {alias:?}")))
    }

    async fn switch_on(&self, index: u32) -> Result<(), Error> {
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .map_err(Error::new(format!("switching device {index} on")))
    }

    async fn delete_link(&self, index: u32) -> Result<(), Error> {
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(Error::new(format!("removing device {index}")))
    }

    async fn put(&self, route: RouteMessage, what: &str) -> Result<(), Error> {
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(Error::new(format!("writing route {what}")))
    }
}

/// The node's end: it forwards, asks nobody back by which way a packet came, and uses its link-local
/// address at once.
fn prepare_device(device: &str) -> Result<Vec<sysctl::Change>, Error> {
    let v4 = |name: &str| format!("net/ipv4/conf/{device}/{name}");
    let v6 = |name: &str| format!("net/ipv6/conf/{device}/{name}");
    sysctl::set_all(&[
        (&v4("forwarding"), "1"),
        (&v4("rp_filter"), "0"),
        (&v6("forwarding"), "1"),
        (&v6("accept_dad"), "0"),
        (&v6("accept_ra"), "0"),
    ])
}

/// The pod's end; returns its MAC address. Runs inside the pod's namespace.
async fn set_up_inside(wanted: &Wanted, node_mac: [u8; 6]) -> Result<[u8; 6], Error> {
    let interface = &*wanted.interface;
    let netlink = Netlink::open()?;
    let missing = || {
        Error::new("setting up the pod's end")(std::io::Error::other(format!(
            "the pod's device {interface} is not in this network namespace: it was joined with another one; remove the pod first (`fairlead pod del`)"
        )))
    };
    let link = netlink.link(interface).await?.ok_or_else(missing)?;
    sysctl::set_all(&[
        (&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0"),
        (&format!("net/ipv6/conf/{interface}/accept_dad"), "0"),
        (&format!("net/ipv6/conf/{interface}/accept_ra"), "0"),
    ])?;
    if let Some(loopback) = netlink.link("lo").await? {
        netlink.switch_on(loopback.index).await?;
    }
    netlink.switch_on(link.index).await?;
    offload::enable_gro(interface)?;
    for &addr in &wanted.addresses {
        let length = if addr.is_ipv4() { 32 } else { 128 };
        netlink
            .handle
            .address()
            .add(link.index, addr, length)
            .replace()
            .execute()
            .await
            .map_err(Error::new(format!("giving the pod address {addr}")))?;
    }
    for is_ipv4 in [true, false] {
        if wanted
            .addresses
            .iter()
            .any(|addr| addr.is_ipv4() == is_ipv4)
        {
            netlink
                .add_permanent(link.index, gateway(is_ipv4), node_mac)
                .await?;
        }
    }
    for prefix in wanted.destinations() {
        let route = gateway_route(prefix, link.index);
        netlink.put(route, &format!("{prefix} of the pod")).await?;
    }
    Ok(link.mac)
}

fn gateway_route(prefix: IpNetwork, device: u32) -> RouteMessage {
    match prefix {
        IpNetwork::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4.network(), v4.prefix())
            .gateway(GATEWAY_V4)
            .output_interface(device)
            .onlink()
            .build(),
        IpNetwork::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6.network(), v6.prefix())
            .gateway(GATEWAY_V6)
            .output_interface(device)
            .build(),
    }
}

fn device_route(addr: IpAddr, device: u32) -> RouteMessage {
    match addr {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .output_interface(device)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Static)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .output_interface(device)
            .protocol(RouteProtocol::Static)
            .build(),
    }
}

/// The addresses that routes of single addresses lead to over a device.
fn addresses_behind(device: u32, all: &[RouteMessage]) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = all
        .iter()
        .filter(|route| routes::device(&route.attributes) == Some(device))
        .filter_map(routes::prefix)
        .filter(|prefix| match prefix {
            IpNetwork::V4(v4) => v4.prefix() == 32,
            IpNetwork::V6(v6) => v6.prefix() == 128,
        })
        .map(|prefix| prefix.ip())
        .collect();
    addresses.sort_unstable();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_fits_and_is_always_the_same() {
        assert_eq!(device_name("web-0").len(), 13);
        assert_eq!(device_name("web-0"), device_name("web-0"));
        assert_ne!(device_name("web-0"), device_name("web-1"));
        assert_eq!(device_name(&"x".repeat(200)).len(), 13);
    }
}
