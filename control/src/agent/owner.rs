//! One agent per node: becoming the owner of the pins, or saying who is.
//!
//! The lock is on the BPF file system, which the pods of a node share, whatever else they do not: another pod's
//! process has no number here, so that one is asked by its socket who it is.
//!
//! Not here: the lock itself (`dataplane::pins`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::timeout;

use crate::api::client;
use crate::api::types::Status;
use crate::dataplane::pins::{self, Lock, Pins};

/// How long the owner is given to say who it is.
const ANSWER: Duration = Duration::from_secs(2);

/// Makes this process the owner.
///
/// # Errors
/// Another agent is, with what is known of it; or the pins cannot be locked.
pub async fn lock(pins: &Pins, socket: &Path) -> Result<Lock> {
    match pins.lock() {
        Err(error @ pins::Error::Owned { holder, .. }) => {
            let owner = timeout(ANSWER, client::ask::<Status>(socket, "/v1/status")).await;
            let Ok(Ok(owner)) = owner else {
                bail!("{error}");
            };
            bail!("{}", held(&error, &owner, holder.is_some(), socket))
        }
        lock => Ok(lock?),
    }
}

/// The error with what a process number does not say.
fn held(error: &pins::Error, owner: &Status, is_seen: bool, socket: &Path) -> String {
    let socket = socket.display();
    let (node, version, pins) = (&owner.node, &owner.version, &owner.pin_path);
    match (&owner.pod, is_seen) {
        // Not another pin path, as for a process: two datapaths would meet on the node's devices.
        (Some(pod), _) => format!(
            "the pod {pod} holds this node: its agent (version {version}) owns {pins} and answers at {socket}; give \
             each DaemonSet nodes of its own (nodeSelector), or uninstall one: when that pod has gone, the next \
             start of this one takes over"
        ),
        (None, false) => format!(
            "{error}; it is a process of the host or of another container (version {version}, node {node}, pid {} \
             there), which answers at {socket}",
            owner.pid
        ),
        (None, true) => error.to_string(),
    }
}
