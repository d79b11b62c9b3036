//! Pools of pod addresses -> the prefixes that this node has of those that an object selects.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::desired::{LabelSelector, NodeState, ObjectName, What};
use crate::source::resource::Resources;
use crate::source::resource::pod_pool::PodPool;

/// Why nothing of pools is told: the reason of a condition, and its text.
pub(super) type Nothing = (&'static str, String);

/// A pool, as selectors and peers see it.
pub(super) struct Pool {
    /// Its labels, and the two that Cilium adds for selectors.
    pub labels: BTreeMap<String, String>,
    /// What peers are told.
    pub what: What,
}

/// The selected pools with what this node has of each, which may be nothing. An absent selector selects none.
pub(super) fn selected(
    selector: Option<&LabelSelector>,
    resources: &Resources,
    node: &NodeState,
) -> Result<Vec<Pool>, Nothing> {
    let own = ObjectName {
        namespace: String::new(),
        name: node.name.clone(),
    };
    let Some(own) = resources.cilium_nodes.get(&own) else {
        let why = format!(
            "there is no CiliumNode {}, which Cilium's operator writes in IPAM mode multi-pool, to say what this node has of its pools",
            node.name
        );
        return Err(("CiliumNodeMissing", why));
    };
    let mut shares: BTreeMap<&str, BTreeSet<IpNetwork>> = BTreeMap::new();
    for share in &own.object.spec.ipam.pools.allocated {
        let prefixes = share.cidrs.iter();
        // Without the bits of a host.
        let prefixes = prefixes.filter_map(|p| IpNetwork::new(p.network(), p.prefix()).ok());
        shares.entry(&share.pool).or_default().extend(prefixes);
    }
    let pools: Vec<_> = resources
        .pod_pools
        .iter()
        .map(|(name, pool)| (name, labels(name, &pool.object)))
        .filter(|(_, labels)| selector.is_some_and(|selector| selector.matches(labels)))
        .map(|(name, labels)| Pool {
            labels,
            what: What::Pool {
                name: name.name.clone(),
                prefixes: shares.get(&*name.name).cloned().unwrap_or_default(),
            },
        })
        .collect();
    if pools.is_empty() {
        let why = if selector.is_none() {
            "it has no selector, which selects no CiliumPodIPPool; write selector: {} for all"
        } else {
            "its selector selects no CiliumPodIPPool that is there"
        };
        return Err(("NoPodIPPool", why.to_owned()));
    }
    Ok(pools)
}

fn labels(name: &ObjectName, pool: &PodPool) -> BTreeMap<String, String> {
    let mut labels = pool.metadata.labels.clone().unwrap_or_default();
    // A pool has no namespace; Cilium has the label all the same.
    for (key, value) in [
        ("io.cilium.podippool.namespace", ""),
        ("io.cilium.podippool.name", &name.name),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}
