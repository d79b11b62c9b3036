//! Tells the container runtime that this node's pods get their network from us, once that is so.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::round::trouble;
use crate::cni::conflist;
use crate::config::Document;
use crate::config::document::Role;
use crate::desired::Condition;
use crate::host::links::Link;

/// What the container runtime has been told.
#[derive(Debug, Default)]
pub struct PodNetwork {
    /// Whether pods could be given a network once: what is missing later takes nothing back.
    is_open: bool,
}

impl PodNetwork {
    /// Takes back what was said before a reboot: a node whose datapath is new is not ready yet.
    pub fn new(document: &Document, restarting: bool) -> Self {
        if document.kubernetes.cni.enabled && !restarting {
            let file = conflist::path(document);
            match conflist::remove(&file) {
                Ok(true) => info!(file = %file.display(), "removed until this node is ready"),
                Ok(false) => {}
                Err(error) => warn!(file = %file.display(), %error, "removing"),
            }
        }
        Self::default()
    }

    /// Writes the network configuration when this node `is_ready` and knows which addresses its pods get, and again
    /// when those change.
    pub fn follow(
        &mut self,
        document: &Document,
        pod_cidrs: &BTreeSet<IpNetwork>,
        links: &BTreeMap<String, Link>,
        is_ready: bool,
    ) -> Option<Condition> {
        self.is_open |= is_ready;
        if !document.kubernetes.cni.enabled || !self.is_open {
            return None;
        }
        let object = "pod network";
        if pod_cidrs.is_empty() {
            let why = "this node's Node object names no podCIDRs: pods get no addresses from here; let the controller manager allocate them (--allocate-node-cidrs)";
            return Some(trouble(object, "PodCIDRsMissing", &why));
        }
        let uplinks = document
            .devices
            .iter()
            .filter(|device| device.role == Role::Uplink);
        let mtu = uplinks
            .filter_map(|device| Some(links.get(&device.name)?.mtu))
            .min();
        let file = conflist::path(document);
        match conflist::write(&file, &conflist::render(document, pod_cidrs, mtu)) {
            Ok(false) => None,
            Ok(true) => {
                info!(file = %file.display(), "told the container runtime how pods get their network");
                None
            }
            Err(error) => {
                let why = format!(
                    "{}: {error}; the container runtime does not know how pods get their network",
                    file.display()
                );
                Some(trouble(object, "ConfigurationUnwritable", &why))
            }
        }
    }
}
