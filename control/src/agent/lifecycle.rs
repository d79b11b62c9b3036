//! What is done beside a running agent, or without one: cleanup, pods, decapsulation, checks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use caps::Capability;
use fairlead_bgp::fsm::State;
use tokio::sync::mpsc;

use super::speakers::Speakers;
use super::{FAREWELL, node_name};
use crate::api::client;
use crate::cleanup;
use crate::cni::conflist;
use crate::config::Document;
use crate::config::document::XdpMode;
use crate::dataplane::pins::Pins;
use crate::dataplane::{decap, load};
use crate::desired::Condition;
use crate::desired::merge::merge;
use crate::host::pods::Wanted;
use crate::host::{Netlink, namespace};
use crate::pod;
use crate::source::Resources;
#[cfg(feature = "kubernetes")]
use crate::source::kubernetes::{read_snapshot, snapshot_file};
use crate::source::manifests::{self, Folder};

/// How long a running agent may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// How long peers may take to be told when no agent runs.
const TELL: Duration = Duration::from_secs(3);
/// How often is looked.
const STEP: Duration = Duration::from_millis(10);

/// Stops the agent if one runs, so that it withdraws what it announced, and removes everything that
/// agents left. Says what was removed; nothing there is fine.
pub async fn cleanup(document: &Document) -> Result<Vec<String>> {
    load::require(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN])?;
    let pins = Pins::new(&document.bpf.pin_path);
    let mut said = Vec::new();
    if let Some(owner) = pins.owner() {
        client::stop(&document.socket).await.with_context(|| {
            format!("an agent (pid {owner}) holds the pins and cannot be asked to stop")
        })?;
        wait_until_free(&pins).await?;
        said.push(format!(
            "the agent (pid {owner}) withdrew its announcements and ended"
        ));
    }
    let owner = if pins.exist() {
        Some(pins.lock()?)
    } else {
        None
    };
    if owner.is_some() && said.is_empty() {
        said.extend(take_leave(document).await?);
    }
    // First: no pod is to come to a node without a datapath.
    let file = conflist::path(document);
    if conflist::remove(&file).with_context(|| format!("removing {}", file.display()))? {
        said.push(format!("removed {}", file.display()));
    }
    let removed = cleanup::cleanup(&Netlink::open()?, &pins, owner).await?;
    said.push(removed.to_string());
    Ok(said)
}

/// Tells peers that keep the routes of an agent which has ended (graceful restart) to drop them: a
/// short session that says so, before nobody forwards any more.
async fn take_leave(document: &Document) -> Result<Vec<String>> {
    let (read, from) = last_resources(document);
    let resources = match read {
        Ok(Some(resources)) => resources,
        Ok(None) => return Ok(Vec::new()),
        Err(why) => {
            return Ok(vec![format!(
                "{}: {why}, so peers were not told; they drop our routes when their restart time ends",
                from.display()
            )]);
        }
    };
    let desired = merge(&resources, document, &node_name(document)?, None);
    let (changed, _) = mpsc::channel(1);
    let mut speakers = Speakers::new(changed, false, None)?;
    speakers.follow(&desired, &document.bgp).await;
    // Nothing, and End-of-RIB: what the peer kept is stale at once.
    speakers.announce(&BTreeMap::new()).await;
    let mut silent = silent_peers(&speakers).await;
    let mut waited = Duration::ZERO;
    while !silent.is_empty() && waited < TELL {
        tokio::time::sleep(STEP).await;
        waited += STEP;
        silent = silent_peers(&speakers).await;
    }
    speakers.stop(Some(FAREWELL)).await;
    let said = silent.into_iter().map(|peer| {
        format!("{peer} was not reached; it drops our routes when its restart time ends")
    });
    Ok(said.collect())
}

/// The objects that the agent went by, and where they were looked for.
fn last_resources(document: &Document) -> (Result<Option<Resources>, String>, PathBuf) {
    #[cfg(feature = "kubernetes")]
    if document.kubernetes.enabled {
        let file = snapshot_file(&document.state_dir);
        return (read_snapshot(&file).map(Some), file);
    }
    let Some(folder) = &document.manifests else {
        return (Ok(None), PathBuf::new());
    };
    let read = manifests::list(folder)
        .map(|listing| Some(Folder::default().update(listing)))
        .map_err(|error| error.to_string());
    (read, folder.clone())
}

/// The peers whose session is not up.
async fn silent_peers(speakers: &Speakers) -> Vec<String> {
    let mut silent = Vec::new();
    for handle in speakers.handles().into_values() {
        // A speaker that has stopped has no peers.
        let peers = handle.peers().await.unwrap_or_default();
        let down = peers
            .into_iter()
            .filter(|peer| peer.state != State::Established);
        silent.extend(down.map(|peer| format!("peer {}", peer.address)));
    }
    silent
}

async fn wait_until_free(pins: &Pins) -> Result<()> {
    let mut waited = Duration::ZERO;
    while let Some(owner) = pins.owner() {
        if waited > LEAVE {
            bail!(
                "the agent (pid {owner}) was asked to stop and has not; end it and run cleanup again"
            );
        }
        tokio::time::sleep(STEP).await;
        waited += STEP;
    }
    Ok(())
}

/// Gives a network namespace a link, addresses and routes; may be repeated.
pub async fn add_pod(
    pin_path: &Path,
    name: &str,
    netns: &str,
    ips: &[IpAddr],
) -> Result<Vec<String>> {
    // CAP_SYS_ADMIN: it enters the pod's namespace.
    load::require(&[Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN])?;
    let wanted = Wanted::new(name, namespace::path(netns), ips.to_vec());
    let added = pod::add(&Netlink::open()?, &Pins::new(pin_path), &wanted).await?;
    let mut said = vec![format!(
        "pod {name} is joined by {}",
        added.joined.pod.device
    )];
    said.extend(added.joined.changes.iter().map(ToString::to_string));
    said.extend(added.notes);
    Ok(said)
}

/// Takes a pod's link away; one that is gone is fine.
pub async fn remove_pod(pin_path: &Path, name: &str) -> Result<String> {
    load::require(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN])?;
    let was = pod::del(&Netlink::open()?, &Pins::new(pin_path), name).await?;
    Ok(if was {
        format!("pod {name} is no longer joined")
    } else {
        format!("there was no pod {name}")
    })
}

/// The pods of this node, a line each.
pub async fn list_pods() -> Result<Vec<String>> {
    let pods = Netlink::open()?.pods().await?;
    let lines = pods.iter().map(|pod| {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        format!("{}  {}  {}", pod.name, pod.device, addresses.join(","))
    });
    Ok(lines.collect())
}

/// Unwraps balancers' packets for these addresses on a backend's interface; may be repeated.
pub fn attach_decap(
    pin_path: &Path,
    interface: &str,
    addresses: &[IpAddr],
    mode: XdpMode,
) -> Result<String> {
    load::check_capabilities()?;
    let addresses = addresses.iter().copied().collect();
    let state = decap::attach(&Pins::new(pin_path), interface, &addresses, mode)?;
    if !state.is_attached() {
        bail!("there is no interface {interface} here; `ip link` lists what there is");
    }
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    Ok(format!(
        "{interface}: packets of balancers for {} are unwrapped",
        addresses.join(", ")
    ))
}

/// Stops unwrapping; not attached is fine.
pub fn detach_decap(pin_path: &Path, interface: &str) -> Result<String> {
    load::require(&[Capability::CAP_BPF, Capability::CAP_NET_ADMIN])?;
    let was = decap::detach(&Pins::new(pin_path), interface)?;
    Ok(if was {
        format!("{interface}: packets of balancers are no longer unwrapped")
    } else {
        format!("{interface}: nothing was attached")
    })
}

/// What is wrong with the manifests, and what this node would say of them.
pub fn check_manifests(document: &Document) -> Result<Vec<Condition>> {
    let Some(folder) = &document.manifests else {
        return Ok(Vec::new());
    };
    let listing = manifests::list(folder)
        .with_context(|| format!("listing the manifests in {}", folder.display()))?;
    let resources = Folder::default().update(listing);
    Ok(merge(&resources, document, &node_name(document)?, None).conditions)
}
