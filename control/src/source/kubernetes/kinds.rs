//! Which kinds are watched, and how much of each: the one table of what Fairlead asks an API server for.
//!
//! The chart's roles grant exactly this. Not here: what a kind means.

use kube::api::ApiResource;
use serde_json::Value;

use crate::object::ObjectName;

/// A kind that is watched.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    /// Its version, as we call it.
    pub version: &'static str,
    /// Others that mean the same, the best first: read where the server has not that one.
    pub others: &'static [&'static str],
    /// Its name.
    pub name: &'static str,
    /// Its name in paths.
    pub plural: &'static str,
    /// Only objects with these labels.
    pub labels: Option<&'static str>,
    /// Only objects that another object names; each is watched by itself.
    pub is_by_name: bool,
    /// It is there only where its definition is installed.
    pub is_custom: bool,
    /// What does not work without it.
    pub feature: &'static str,
    /// Takes away what changes often and says nothing to us.
    pub trim: fn(&mut Value),
}

/// As kube-proxy selects: without headless services, and without those that another proxy serves.
const NOT_OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// What Cilium's kinds about BGP have in common.
const CILIUM_BGP: Kind = Kind {
    group: "cilium.io",
    version: "v2",
    others: &["v2alpha1"],
    name: "",
    plural: "",
    labels: None,
    is_by_name: false,
    is_custom: true,
    feature: "no BGP session is configured by it",
    trim: keep,
};

/// All of them.
pub const KINDS: [Kind; 12] = [
    Kind {
        group: "",
        version: "v1",
        others: &[],
        name: "Node",
        plural: "nodes",
        labels: None,
        is_by_name: false,
        is_custom: false,
        feature: "this node has no pods and no BGP",
        trim: trim_node,
    },
    Kind {
        group: "",
        version: "v1",
        others: &[],
        name: "Service",
        plural: "services",
        labels: Some(NOT_OURS),
        is_by_name: false,
        is_custom: false,
        feature: "no service is balanced",
        trim: keep,
    },
    Kind {
        group: "discovery.k8s.io",
        version: "v1",
        others: &[],
        name: "EndpointSlice",
        plural: "endpointslices",
        labels: Some(NOT_OURS),
        is_by_name: false,
        is_custom: false,
        feature: "services have no backends",
        trim: trim_slice,
    },
    Kind {
        group: "",
        version: "v1",
        others: &[],
        name: "Secret",
        plural: "secrets",
        labels: None,
        is_by_name: true,
        is_custom: false,
        feature: "peers with a password have no session",
        trim: keep,
    },
    Kind {
        version: "v2alpha1",
        others: &[],
        name: "CiliumBGPPeeringPolicy",
        plural: "ciliumbgppeeringpolicies",
        ..CILIUM_BGP
    },
    Kind {
        group: "fairlead.io",
        version: "v1alpha1",
        others: &[],
        name: "BGPPeerProfile",
        plural: "bgppeerprofiles",
        feature: "no peer is watched by BFD",
        ..CILIUM_BGP
    },
    Kind {
        name: "CiliumBGPClusterConfig",
        plural: "ciliumbgpclusterconfigs",
        ..CILIUM_BGP
    },
    Kind {
        name: "CiliumBGPPeerConfig",
        plural: "ciliumbgppeerconfigs",
        ..CILIUM_BGP
    },
    Kind {
        name: "CiliumBGPAdvertisement",
        plural: "ciliumbgpadvertisements",
        ..CILIUM_BGP
    },
    Kind {
        name: "CiliumBGPNodeConfigOverride",
        plural: "ciliumbgpnodeconfigoverrides",
        ..CILIUM_BGP
    },
    Kind {
        version: "v2alpha1",
        others: &["v2"],
        name: "CiliumPodIPPool",
        plural: "ciliumpodippools",
        feature: "nothing of pools of pod addresses is announced",
        trim: trim_pool,
        ..CILIUM_BGP
    },
    Kind {
        others: &[],
        name: "CiliumNode",
        plural: "ciliumnodes",
        is_by_name: true,
        feature: "nothing of pools of pod addresses is announced",
        trim: trim_cilium_node,
        ..CILIUM_BGP
    },
];

/// Where Secrets stand in [`KINDS`].
pub const SECRET: usize = 3;

/// Where `CiliumNode` stands in [`KINDS`].
pub const CILIUM_NODE: usize = 11;

impl Kind {
    /// `group/version`, or the version alone.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// All versions that are read, the best first.
    pub fn versions(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.version).chain(self.others.iter().copied())
    }

    /// How the client asks for it in a version.
    pub fn resource(&self, version: &str) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version: if self.group.is_empty() {
                version.to_owned()
            } else {
                format!("{}/{version}", self.group)
            },
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// One watch: of a kind, or of one object of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchId {
    /// Its place in [`KINDS`].
    pub kind: usize,
    /// The one object; all that the kind selects when none.
    pub name: Option<ObjectName>,
}

fn keep(_: &mut Value) {}

/// Heartbeats change a node's status every few seconds.
fn trim_node(node: &mut Value) {
    if let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|key, _| key == "addresses");
    }
}

/// How much of it is used changes with every pod.
fn trim_pool(pool: &mut Value) {
    if let Value::Object(fields) = pool {
        fields.retain(|key, _| key != "spec" && key != "status");
    }
}

/// What the node has of pools; the rest is between Cilium's agent and operator, and changes with every pod.
fn trim_cilium_node(node: &mut Value) {
    let shares = node.pointer("/spec/ipam/pools/allocated").cloned();
    if let Value::Object(fields) = node {
        fields.remove("status");
        let shares = shares.unwrap_or_else(|| Value::Array(Vec::new()));
        let spec = serde_json::json!({ "ipam": { "pools": { "allocated": shares } } });
        fields.insert("spec".to_owned(), spec);
    }
}

fn trim_slice(slice: &mut Value) {
    if let Some(annotations) = slice
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::resource;

    #[test]
    fn every_kind_is_one_that_can_be_read() {
        let all = KINDS
            .iter()
            .flat_map(|kind| kind.versions().map(move |version| (kind, version)));
        for (kind, version) in all {
            let object = serde_json::json!({
                "apiVersion": kind.resource(version).api_version, "kind": kind.name, "metadata": {"name": "a"}, "spec": {},
            });
            let read = resource::read_value("here", object);
            assert!(
                read.conditions.iter().all(|c| c.reason != "UnknownKind"),
                "{read:?}"
            );
        }
        assert_eq!(KINDS[SECRET].name, "Secret");
        assert_eq!(KINDS[CILIUM_NODE].name, "CiliumNode");
    }
}
