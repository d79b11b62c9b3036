//! GC: takes away what belongs to attachments that are no more.
//!
//! Not for what was never recorded: a link without a record is not ours to take.

use super::attachment::undo;
use super::failure::Failure;
use super::ipam::Ipam;
use super::network::Network;
use super::record;
use super::request::Request;
use crate::host::Netlink;

/// Undoes what was begun for attachments that the runtime does not list, and lets the IPAM plugin do the same.
///
/// # Errors
/// The first that could not be undone, after trying the others.
pub async fn collect(request: &Request, network: &Network) -> Result<(), Failure> {
    let valid = network.valid_attachments()?;
    let ipam = Ipam::find(network, request)?;
    let netlink = Netlink::open()?;
    let mut first = None;
    for (attachment, record) in record::stale(&network.records(), valid)? {
        if let Err(failure) = undo(&netlink, &ipam, record, &attachment).await {
            let of = format!("container {}", attachment.container);
            first = first.or(Some(failure.with(of)));
        }
    }
    if network.has_garbage_collection() {
        ipam.ask_newer("GC")?;
    }
    first.map_or(Ok(()), Err)
}
