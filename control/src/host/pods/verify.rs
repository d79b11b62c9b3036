//! Whether a pod still is as it was joined.
//!
//! Not for mending it: [`Netlink::join_pod`] may be repeated.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::AddressAttribute;

use super::{STATIC, Wanted, addresses_behind, gateway, name_of};
use crate::host::links::Link;
use crate::host::{Error, Netlink, namespace, neighbours, routes};

/// What was found of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The MAC address of the node's end.
    pub mac: [u8; 6],
    /// The MAC address of the pod's end.
    pub mac_inside: [u8; 6],
    /// What is not as it was made, a sentence each.
    pub faults: Vec<String>,
}

impl Netlink {
    /// Compares a pod with what [`Netlink::join_pod`] made; `None` when neither end of its link is there.
    pub async fn verify_pod(&self, wanted: &Wanted) -> Result<Option<Found>, Error> {
        let Some(link) = self.link(&wanted.device).await? else {
            return Ok(None);
        };
        let device = &link.name;
        let mut faults = down(&link);
        if name_of(&link).is_none() {
            faults.push(format!("{device} is not marked as a pod's device"));
        }
        let file = namespace::open(&wanted.namespace)?;
        let inside = wanted.clone();
        let mac = link.mac;
        let (mac_inside, faults_inside) = namespace::inside(file, move || async move {
            Netlink::open()?.verify_inside(&inside, mac).await
        })
        .await?;
        let behind = addresses_behind(link.index, &self.routes_of(STATIC).await?);
        let known = self.macs_on(link.index).await?;
        for addr in &wanted.addresses {
            if !behind.contains(addr) {
                faults.push(format!("this node has no route to {addr} over {device}"));
            }
            if known.get(addr) != Some(&mac_inside) {
                faults.push(format!(
                    "this node does not know the pod's MAC address for {addr} on {device}"
                ));
            }
        }
        faults.extend(faults_inside);
        Ok(Some(Found {
            mac,
            mac_inside,
            faults,
        }))
    }

    /// The pod's end: its MAC address and what is wrong with it. Speaks of the pod's namespace.
    async fn verify_inside(
        &self,
        wanted: &Wanted,
        node_mac: [u8; 6],
    ) -> Result<([u8; 6], Vec<String>), Error> {
        let interface = &wanted.interface;
        let Some(link) = self.link(interface).await? else {
            return Ok(([0; 6], vec![format!("the pod has no device {interface}")]));
        };
        let mut faults = down(&link);
        let addresses = self.addresses_on(link.index).await?;
        let known = self.macs_on(link.index).await?;
        for addr in &wanted.addresses {
            if !addresses.contains(&IpNetwork::from(*addr)) {
                faults.push(format!(
                    "{interface} of the pod is without address {}",
                    IpNetwork::from(*addr)
                ));
            }
            let gateway = gateway(addr.is_ipv4());
            if known.get(&gateway) != Some(&node_mac) {
                faults.push(format!(
                    "the pod does not know this node's MAC address for its gateway {gateway}"
                ));
            }
        }
        let there = self.routes_of(STATIC).await?;
        for prefix in wanted.destinations() {
            let is_it = |route: &&_| is_route_over(route, prefix, link.index);
            if there.iter().find(is_it).is_none() {
                faults.push(format!("the pod has no route to {prefix} over {interface}"));
            }
        }
        faults.dedup();
        Ok((link.mac, faults))
    }

    async fn addresses_on(&self, device: u32) -> Result<Vec<IpNetwork>, Error> {
        let doing = || format!("listing the addresses of device {device}");
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(device)
            .execute()
            .try_collect()
            .await
            .map_err(Error::new(doing()))?;
        let read = messages.iter().filter_map(|message| {
            let addr = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Address(addr) = attribute {
                    Some(*addr)
                } else {
                    None
                }
            })?;
            IpNetwork::new(addr, message.header.prefix_len).ok()
        });
        Ok(read.collect())
    }

    /// The MAC addresses that are known on a device.
    async fn macs_on(&self, device: u32) -> Result<BTreeMap<IpAddr, [u8; 6]>, Error> {
        let messages = self.all_neighbours().await?;
        let read = messages.iter().filter_map(neighbours::read);
        let on_device = read.filter(|neighbour| neighbour.device == device);
        Ok(on_device
            .filter_map(|neighbour| Some((neighbour.addr, neighbour.mac?)))
            .collect())
    }
}

fn down(link: &Link) -> Vec<String> {
    if link.is_up {
        Vec::new()
    } else {
        vec![format!("{} is down", link.name)]
    }
}

fn is_route_over(
    route: &rtnetlink::packet_route::route::RouteMessage,
    to: IpNetwork,
    device: u32,
) -> bool {
    routes::prefix(route) == Some(to)
        && routes::device(&route.attributes) == Some(device)
        && routes::gateway(&route.attributes) == Some(gateway(to.is_ipv4()))
}
