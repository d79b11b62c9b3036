//! ADD, DEL and CHECK: a container's attachment to a network.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use super::answer;
use super::failure::{Code, Failure};
use super::ipam::Ipam;
use super::network::Network;
use super::record::{Known, Record};
use super::request::{Attachment, Request};
use crate::host::Netlink;
use crate::host::pods::{LONGEST_NAME, Wanted, device_name, gateway};

/// Gives a container its network. May be repeated; what an ADD that was killed left is completed or undone first.
///
/// # Errors
/// What was begun is undone, and the error says what could not be.
pub async fn add(request: &Request, network: &Network) -> Result<Value, Failure> {
    network.check()?;
    let (attachment, namespace) = whom(request)?;
    check_namespace(namespace)?;
    let ipam = Ipam::find(network, request)?;
    let netlink = Netlink::open()?;
    let mut record = Record::take(&network.records(), attachment)?;
    match join(&netlink, &ipam, &mut record, request, network, namespace).await {
        Ok(result) => Ok(result),
        Err(failure) => Err(match undo(&netlink, &ipam, record, attachment).await {
            Ok(()) => failure,
            Err(left) => failure.with(format!("and it could not be undone: {left}")),
        }),
    }
}

async fn join(
    netlink: &Netlink,
    ipam: &Ipam<'_>,
    record: &mut Record,
    request: &Request,
    network: &Network,
    namespace: &Path,
) -> Result<Value, Failure> {
    let attachment = container(request)?;
    let device = device(attachment);
    let known = record.known.take();
    let given = match known.filter(|known| known.namespace == namespace) {
        Some(known) => known.given,
        None => {
            if record.is_old {
                netlink.part_pod(&device).await?;
                ipam.del(attachment)?;
            }
            let given = ipam.add()?;
            record.write(Known {
                namespace: namespace.to_owned(),
                given: given.clone(),
            })?;
            given
        }
    };
    let wanted = Wanted {
        name: name(request, attachment),
        device,
        namespace: namespace.to_owned(),
        interface: attachment.interface.clone(),
        mtu: network.mtu(),
        addresses: given.addresses(),
        routes: given.routes.iter().map(|route| route.dst).collect(),
    };
    let joined = netlink.join_pod(&wanted).await?;
    Ok(answer::added(network, &wanted, &joined, &given))
}

/// Takes a container's network away; nothing there is fine.
pub async fn del(request: &Request, network: &Network) -> Result<(), Failure> {
    let attachment = container(request)?;
    let ipam = Ipam::find(network, request)?;
    let record = Record::take(&network.records(), attachment)?;
    undo(&Netlink::open()?, &ipam, record, attachment).await
}

/// Takes everything away that may have been made: the link before the addresses, so that nobody else gets one that
/// still leads here.
///
/// # Errors
/// The first thing that could not be taken away; the record stays, so that it is tried again.
pub(super) async fn undo(
    netlink: &Netlink,
    ipam: &Ipam<'_>,
    record: Record,
    attachment: &Attachment,
) -> Result<(), Failure> {
    let parted = netlink.part_pod(&device(attachment)).await;
    ipam.del(attachment)?;
    parted?;
    record.remove()
}

/// Says whether a container's network is as the result of its ADD has it.
///
/// # Errors
/// It is not: what differs. It is not there at all: with the code for that.
pub async fn check(request: &Request, network: &Network) -> Result<(), Failure> {
    let (attachment, namespace) = whom(request)?;
    let previous = network.previous().ok_or_else(|| {
        Failure::new(
            Code::Configuration,
            "prevResult: missing; CHECK needs the result of the ADD",
        )
    })?;
    let told = Told::read(previous, attachment)?;
    check_namespace(namespace)?;
    let wanted = Wanted {
        name: name(request, attachment),
        device: device(attachment),
        namespace: namespace.to_owned(),
        interface: attachment.interface.clone(),
        mtu: None,
        addresses: told.addresses,
        routes: told.routes,
    };
    let Some(found) = Netlink::open()?.verify_pod(&wanted).await? else {
        return Err(Failure::new(
            Code::UnknownContainer,
            format!(
                "container {} has no interface {} in network {}",
                attachment.container,
                attachment.interface,
                network.name()
            ),
        ));
    };
    let mut faults = found.faults;
    let is_other = told
        .mac
        .filter(|mac| !mac.eq_ignore_ascii_case(&answer::mac(found.mac_inside)));
    if let Some(mac) = is_other {
        faults.push(format!(
            "{} of the pod has MAC address {} and had {mac}",
            attachment.interface,
            answer::mac(found.mac_inside)
        ));
    }
    if !faults.is_empty() {
        return Err(Failure::new(Code::Differs, faults.join("; ")));
    }
    Ipam::find(network, request)?.check()
}

/// What the result of an ADD tells of an attachment.
#[derive(Debug)]
struct Told {
    mac: Option<String>,
    addresses: Vec<IpAddr>,
    routes: Vec<IpNetwork>,
}

#[derive(Deserialize)]
struct Printed {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    mac: Option<String>,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNetwork,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Route {
    dst: IpNetwork,
    gw: Option<IpAddr>,
}

impl Told {
    fn read(result: &Value, attachment: &Attachment) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(Code::Configuration, format!("prevResult: {why}"));
        let printed = Printed::deserialize(result).map_err(|error| wrong(error.to_string()))?;
        let is_ours = |interface: &Interface| {
            interface.name == attachment.interface && !interface.sandbox.is_empty()
        };
        let index = printed.interfaces.iter().position(is_ours).ok_or_else(|| {
            wrong(format!(
                "interfaces: none is {} of a container",
                attachment.interface
            ))
        })?;
        let ips = printed.ips.iter().filter(|ip| ip.interface == Some(index));
        let addresses: Vec<_> = ips.map(|ip| ip.address.ip()).collect();
        if addresses.is_empty() {
            return Err(wrong(format!(
                "ips: {} has no address",
                attachment.interface
            )));
        }
        // Plugins after us may have made others.
        let is_over_us = |route: &Route| route.gw == Some(gateway(route.dst.is_ipv4()));
        let routes = printed.routes.into_iter().filter(is_over_us);
        Ok(Self {
            routes: routes.map(|route| route.dst).collect(),
            mac: printed.interfaces[index].mac.clone(),
            addresses,
        })
    }
}

/// The attachment that the request names.
fn container(request: &Request) -> Result<&Attachment, Failure> {
    let missing = || Failure::new(Code::Environment, "CNI_CONTAINERID: missing");
    request.attachment.as_ref().ok_or_else(missing)
}

/// The attachment that the request names, and the namespace.
fn whom(request: &Request) -> Result<(&Attachment, &Path), Failure> {
    let missing = || Failure::new(Code::Environment, "CNI_NETNS: missing");
    let namespace = request.namespace.as_deref().ok_or_else(missing)?;
    Ok((container(request)?, namespace))
}

/// A namespace that is there and is not the node's own, which would lose its network to the pod.
fn check_namespace(path: &Path) -> Result<(), Failure> {
    let wrong = |code, why: &dyn std::fmt::Display| {
        Failure::new(code, format!("CNI_NETNS: {}: {why}", path.display()))
    };
    let there = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(wrong(Code::UnknownContainer, &"there is no such namespace"));
        }
        other => other.map_err(|error| wrong(Code::Environment, &error))?,
    };
    let own = std::fs::metadata("/proc/self/ns/net").map_err(|error| wrong(Code::Io, &error))?;
    if (there.dev(), there.ino()) == (own.dev(), own.ino()) {
        return Err(wrong(
            Code::Environment,
            &"this is the node's own network namespace, not a pod's",
        ));
    }
    Ok(())
}

/// The node's end of an attachment's link.
pub(super) fn device(attachment: &Attachment) -> String {
    device_name(&format!(
        "{}/{}",
        attachment.container, attachment.interface
    ))
}

/// What people call the pod: as Kubernetes does, where that fits.
fn name(request: &Request, attachment: &Attachment) -> String {
    let is_usable =
        |name: &String| name.len() <= LONGEST_NAME && !name.contains(|c: char| c.is_control());
    let name = request.pod_name().filter(is_usable);
    name.unwrap_or_else(|| attachment.container.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(result: &Value) -> Result<Told, Failure> {
        let eth0 = Attachment {
            container: "a".to_owned(),
            interface: "eth0".to_owned(),
        };
        Told::read(result, &eth0)
    }

    #[test]
    fn of_a_result_only_what_is_ours_is_checked() {
        let told = told(&json!({
            "interfaces": [
                {"name": "eth0", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"address": "192.0.2.1/24", "interface": 0},
                {"address": "10.0.0.5/32", "interface": 1},
                {"address": "fd00::5/128", "interface": 1},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "192.0.2.0/24", "gw": "192.0.2.254"},
            ],
        }))
        .unwrap();

        assert_eq!(told.mac.as_deref(), Some("02:00:00:00:00:02"));
        assert_eq!(told.addresses.len(), 2);
        assert_eq!(told.routes, ["0.0.0.0/0".parse().unwrap()]);
    }

    #[test]
    fn a_result_without_the_interface_or_an_address_is_refused() {
        let nowhere = json!({"interfaces": [{"name": "eth0"}]});
        let bare = json!({"interfaces": [{"name": "eth0", "sandbox": "/a"}]});
        for (result, says) in [(nowhere, "none is eth0"), (bare, "eth0 has no address")] {
            let failure = told(&result).unwrap_err();
            assert_eq!(failure.code.number(), 7);
            assert!(failure.message.contains(says), "{failure}");
        }
    }
}
