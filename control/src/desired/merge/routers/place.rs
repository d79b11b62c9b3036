//! Where a peer is: at the address that its document names, at the default gateway, or at the other end of a
//! link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::Family;
use crate::desired::surroundings::Surroundings;
use crate::source::resource::cluster_config::{AddressFamily, AutoDiscovery, Mode, Peer};

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// The index of its link, when the address means nothing without.
    pub(super) interface: Option<u32>,
}

/// Why it is not known where a peer is: the reason of a condition, and its message.
pub(super) type Lost = (&'static str, String);

/// The link on which a peer is sought, if it is sought on a link.
pub(super) fn link(peer: &Peer) -> Option<&str> {
    let AutoDiscovery {
        mode: Mode::Unnumbered,
        unnumbered,
        ..
    } = peer.auto_discovery.as_ref()?
    else {
        return None;
    };
    unnumbered
        .as_ref()
        .map(|unnumbered| unnumbered.interface.as_str())
}

/// Finds a peer.
///
/// # Errors
/// Nobody is there, or more than one.
pub(super) fn find(peer: &Peer, around: &Surroundings) -> Result<Place, Lost> {
    if let Some(address) = peer.peer_address {
        return named(address, peer.peer_interface.as_deref(), around);
    }
    if let Some(name) = link(peer) {
        return neighbour(name, around);
    }
    let family = peer
        .auto_discovery
        .as_ref()
        .and_then(|discovery| discovery.default_gateway.as_ref())
        .map(|gateway| gateway.address_family);
    let family = match family {
        Some(AddressFamily::Ipv6) => Family::Ipv6,
        Some(AddressFamily::Ipv4) | None => Family::Ipv4,
    };
    match around.gateways.get(&family) {
        Some(&(address, device)) => Ok(Place {
            address,
            interface: is_link_local(address).then_some(device),
        }),
        None => {
            let family = match family {
                Family::Ipv4 => "IPv4",
                Family::Ipv6 => "IPv6",
            };
            let message = format!("this host has no {family} default route by a gateway");
            Err(("NoDefaultGateway", message))
        }
    }
}

fn named(address: IpAddr, interface: Option<&str>, around: &Surroundings) -> Result<Place, Lost> {
    let interface = match (interface, is_link_local(address)) {
        (Some(name), true) => Some(device(name, around)?),
        (None, true) => {
            let message = format!("{address} is link-local: say on which link, by peerInterface");
            return Err(("InterfaceMissing", message));
        }
        (_, false) => None,
    };
    Ok(Place { address, interface })
}

fn neighbour(name: &str, around: &Surroundings) -> Result<Place, Lost> {
    let index = device(name, around)?;
    let heard: Vec<_> = around.routers.get(&index).into_iter().flatten().collect();
    match heard[..] {
        [router] => Ok(Place {
            address: (*router).into(),
            interface: Some(index),
        }),
        [] => Err((
            "NeighbourUnknown",
            format!("no router has advertised itself on {name} yet (RFC 4861 §6.2)"),
        )),
        _ => Err((
            "NeighbourAmbiguous",
            format!(
                "routers {heard:?} advertise themselves on {name}: write the peerAddress of one, and peerInterface"
            ),
        )),
    }
}

/// The address of a device from which a peer is spoken with.
///
/// # Errors
/// There is none; the host chooses then, as it does in Cilium.
pub(super) fn source(name: &str, peer: IpAddr, around: &Surroundings) -> Result<IpAddr, Lost> {
    device(name, around)?;
    let addresses = around.addresses.get(name).into_iter().flatten();
    let mut fitting = addresses.filter(|address| address.is_ipv4() == peer.is_ipv4());
    let family = if peer.is_ipv4() { "IPv4" } else { "IPv6" };
    fitting.next().copied().ok_or_else(|| {
        (
            "NoSourceAddress",
            format!("{name} has no global {family} address to speak with {peer} from"),
        )
    })
}

/// The addresses of a device that other hosts may know it by.
///
/// # Errors
/// There is none, or no such device.
pub(super) fn addresses(name: &str, around: &Surroundings) -> Result<BTreeSet<IpAddr>, Lost> {
    device(name, around)?;
    let found = around.addresses.get(name).into_iter().flatten().copied();
    let found: BTreeSet<IpAddr> = found.collect();
    if found.is_empty() {
        return Err((
            "NoInterfaceAddress",
            format!("{name} is off, or has no global address"),
        ));
    }
    Ok(found)
}

fn device(name: &str, around: &Surroundings) -> Result<u32, Lost> {
    let index = around.devices.get(name).copied();
    index.ok_or_else(|| {
        (
            "InterfaceUnknown",
            format!("this host has no device {name}"),
        )
    })
}

const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
