//! Kubernetes objects as we read them: the kinds that Fairlead understands, each with where it stands.
//!
//! An object is read whole or not at all. What cannot be read, what is unknown and what is there twice
//! becomes a [`Condition`] with file and line; it never stops the objects beside it.
//!
//! Not here: what an object means for this node (`desired::merge`); files (`source::manifests`).

pub mod advertisement;
pub mod cluster_config;
pub mod community;
pub mod config_override;
pub mod definition;
pub mod field;
mod limits;
pub mod peer_config;
pub mod peer_profile;
pub mod peering_policy;
mod plain;
pub mod pod_pool;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use self::advertisement::Advertisement;
use self::cluster_config::ClusterConfig;
use self::config_override::ConfigOverride;
use self::peer_config::PeerConfig;
use self::peer_profile::PeerProfile;
use self::peering_policy::PeeringPolicy;
use self::pod_pool::{CiliumNode, PodPool};
use super::located::{FieldPath, Located, Shape, Step};
use crate::object::{Condition, ObjectName};

/// Where an object stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file, or the API server.
    pub file: Arc<str>,
    /// The line it begins on, from 1; 0 for an object that stands in no file.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced<T> {
    /// The object.
    pub object: T,
    /// Where it stands.
    pub origin: Origin,
}

/// The objects of a kind, by name. A copy costs nothing and shares what has not changed, so that the difference of
/// two costs what has changed.
pub type Objects<T> = OrdMap<ObjectName, Arc<Sourced<T>>>;

/// All objects of a source, by name, and what was wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// `v1 Node`.
    pub nodes: Objects<Node>,
    /// `v1 Service`.
    pub services: Objects<Service>,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    pub slices: Objects<EndpointSlice>,
    /// `v1 Secret`.
    pub secrets: Objects<Secret>,
    /// `cilium.io/v2alpha1 CiliumBGPPeeringPolicy`.
    pub peering_policies: Objects<PeeringPolicy>,
    /// `cilium.io/v2 CiliumBGPClusterConfig`.
    pub cluster_configs: Objects<ClusterConfig>,
    /// `cilium.io/v2 CiliumBGPPeerConfig`.
    pub peer_configs: Objects<PeerConfig>,
    /// `cilium.io/v2 CiliumBGPAdvertisement`.
    pub advertisements: Objects<Advertisement>,
    /// `cilium.io/v2 CiliumBGPNodeConfigOverride`.
    pub config_overrides: Objects<ConfigOverride>,
    /// `fairlead.io/v1alpha1 BGPPeerProfile`.
    pub peer_profiles: Objects<PeerProfile>,
    /// `cilium.io/v2alpha1 CiliumPodIPPool`.
    pub pod_pools: Objects<PodPool>,
    /// `cilium.io/v2 CiliumNode`.
    pub cilium_nodes: Objects<CiliumNode>,
    /// What was wrong.
    pub conditions: Vec<Condition>,
}

impl Resources {
    /// Puts an object in the place of the one of its kind and name.
    pub fn replace(&mut self, object: Sourced<Resource>) {
        let name = object.object.name();
        let origin = object.origin;
        match object.object {
            Resource::Node(node) => put(&mut self.nodes, name, *node, origin),
            Resource::Service(service) => put(&mut self.services, name, *service, origin),
            Resource::EndpointSlice(slice) => put(&mut self.slices, name, *slice, origin),
            Resource::Secret(secret) => put(&mut self.secrets, name, *secret, origin),
            Resource::PeeringPolicy(policy) => {
                put(&mut self.peering_policies, name, *policy, origin);
            }
            Resource::ClusterConfig(object) => {
                put(&mut self.cluster_configs, name, *object, origin);
            }
            Resource::PeerConfig(object) => put(&mut self.peer_configs, name, *object, origin),
            Resource::Advertisement(object) => put(&mut self.advertisements, name, *object, origin),
            Resource::ConfigOverride(object) => {
                put(&mut self.config_overrides, name, *object, origin);
            }
            Resource::PeerProfile(profile) => put(&mut self.peer_profiles, name, *profile, origin),
            Resource::PodPool(pool) => put(&mut self.pod_pools, name, *pool, origin),
            Resource::CiliumNode(node) => put(&mut self.cilium_nodes, name, *node, origin),
        }
    }

    /// Removes an object; one that is not there, or of an unknown kind, is none.
    pub fn remove(&mut self, kind: &str, name: &ObjectName) {
        match kind {
            "Node" => drop(self.nodes.remove(name)),
            "Service" => drop(self.services.remove(name)),
            "EndpointSlice" => drop(self.slices.remove(name)),
            "Secret" => drop(self.secrets.remove(name)),
            "CiliumBGPPeeringPolicy" => drop(self.peering_policies.remove(name)),
            "CiliumBGPClusterConfig" => drop(self.cluster_configs.remove(name)),
            "CiliumBGPPeerConfig" => drop(self.peer_configs.remove(name)),
            "CiliumBGPAdvertisement" => drop(self.advertisements.remove(name)),
            "CiliumBGPNodeConfigOverride" => drop(self.config_overrides.remove(name)),
            "BGPPeerProfile" => drop(self.peer_profiles.remove(name)),
            "CiliumPodIPPool" => drop(self.pod_pools.remove(name)),
            "CiliumNode" => drop(self.cilium_nodes.remove(name)),
            _ => {}
        }
    }
}

fn put<T>(objects: &mut Objects<T>, name: ObjectName, object: T, origin: Origin) {
    objects.insert(name, Arc::new(Sourced { object, origin }));
}

/// One object of a kind that we understand.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// `v1 Node`.
    Node(Box<Node>),
    /// `v1 Service`.
    Service(Box<Service>),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(Box<EndpointSlice>),
    /// `v1 Secret`.
    Secret(Box<Secret>),
    /// `cilium.io/v2alpha1 CiliumBGPPeeringPolicy`.
    PeeringPolicy(Box<PeeringPolicy>),
    /// `cilium.io/v2 CiliumBGPClusterConfig`.
    ClusterConfig(Box<ClusterConfig>),
    /// `cilium.io/v2 CiliumBGPPeerConfig`.
    PeerConfig(Box<PeerConfig>),
    /// `cilium.io/v2 CiliumBGPAdvertisement`.
    Advertisement(Box<Advertisement>),
    /// `cilium.io/v2 CiliumBGPNodeConfigOverride`.
    ConfigOverride(Box<ConfigOverride>),
    /// `fairlead.io/v1alpha1 BGPPeerProfile`.
    PeerProfile(Box<PeerProfile>),
    /// `cilium.io/v2alpha1 CiliumPodIPPool`.
    PodPool(Box<PodPool>),
    /// `cilium.io/v2 CiliumNode`.
    CiliumNode(Box<CiliumNode>),
}

impl Resource {
    /// Its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "Node",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::Secret(_) => "Secret",
            Self::PeeringPolicy(_) => "CiliumBGPPeeringPolicy",
            Self::ClusterConfig(_) => "CiliumBGPClusterConfig",
            Self::PeerConfig(_) => "CiliumBGPPeerConfig",
            Self::Advertisement(_) => "CiliumBGPAdvertisement",
            Self::ConfigOverride(_) => "CiliumBGPNodeConfigOverride",
            Self::PeerProfile(_) => "BGPPeerProfile",
            Self::PodPool(_) => "CiliumPodIPPool",
            Self::CiliumNode(_) => "CiliumNode",
        }
    }

    /// `Kind namespace/name`, as conditions say it.
    pub fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// Its name.
    pub fn name(&self) -> ObjectName {
        let (metadata, is_namespaced) = match self {
            Self::Node(node) => (&node.metadata, false),
            Self::Service(service) => (&service.metadata, true),
            Self::EndpointSlice(slice) => (&slice.metadata, true),
            Self::Secret(secret) => (&secret.metadata, true),
            Self::PeeringPolicy(policy) => (&policy.metadata, false),
            Self::ClusterConfig(object) => (&object.metadata, false),
            Self::PeerConfig(object) => (&object.metadata, false),
            Self::Advertisement(object) => (&object.metadata, false),
            Self::ConfigOverride(object) => (&object.metadata, false),
            Self::PeerProfile(profile) => (&profile.metadata, false),
            Self::PodPool(pool) => (&pool.metadata, false),
            Self::CiliumNode(node) => (&node.metadata, false),
        };
        ObjectName {
            namespace: match (is_namespaced, metadata.namespace.as_deref()) {
                (false, _) => String::new(),
                (true, None | Some("")) => "default".to_owned(),
                (true, Some(namespace)) => namespace.to_owned(),
            },
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// What a text held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Its objects, in the order they are written.
    pub objects: Vec<Sourced<Resource>>,
    /// What was wrong.
    pub conditions: Vec<Condition>,
    /// `Kind namespace/name` of the objects that could not be read.
    pub rejected: BTreeSet<String>,
}

/// Reads a text of manifests: YAML or JSON, one document or many, `List` objects included.
///
/// # Errors
/// The text is no YAML: nothing of it can be used. The condition says where.
pub fn read(file: &str, text: &str) -> Result<Reading, Condition> {
    let documents = Located::documents(text).map_err(|error| Condition {
        object: file.to_owned(),
        origin: match error.location() {
            Some(location) => format!("{file}:{}", location.line()),
            None => file.to_owned(),
        },
        reason: "Unparsable".to_owned(),
        message: error.without_snippet().to_string(),
    })?;
    let mut reader = Reader {
        file: file.into(),
        reading: Reading::default(),
    };
    for document in &documents {
        reader.document(document);
    }
    Ok(reader.reading)
}

/// Reads one object that stands in no file, from the server or the file called `file`.
pub fn read_value(file: &str, object: serde_json::Value) -> Reading {
    let file: Arc<str> = file.into();
    let origin = Origin {
        file: Arc::clone(&file),
        line: 0,
    };
    let mut reading = Reading::default();
    if let Some(object) = plain::read(&object) {
        reading.objects.push(Sourced { object, origin });
        return reading;
    }
    let mut reader = Reader { file, reading };
    reader.document(&object.into());
    reader.reading
}

/// Joins what several files held into the objects of the source. Of objects with the same kind and
/// name the first counts, in the order given.
pub fn join(readings: impl IntoIterator<Item = Reading>) -> Resources {
    let mut all = Resources::default();
    for reading in readings {
        all.conditions.extend(reading.conditions);
        for Sourced { object, origin } in reading.objects {
            let kind = object.kind();
            let name = object.name();
            let twice = match object {
                Resource::Node(node) => insert(&mut all.nodes, &name, *node, &origin),
                Resource::Service(service) => insert(&mut all.services, &name, *service, &origin),
                Resource::EndpointSlice(slice) => insert(&mut all.slices, &name, *slice, &origin),
                Resource::Secret(secret) => insert(&mut all.secrets, &name, *secret, &origin),
                Resource::PeeringPolicy(policy) => {
                    insert(&mut all.peering_policies, &name, *policy, &origin)
                }
                Resource::ClusterConfig(object) => {
                    insert(&mut all.cluster_configs, &name, *object, &origin)
                }
                Resource::PeerConfig(object) => {
                    insert(&mut all.peer_configs, &name, *object, &origin)
                }
                Resource::Advertisement(object) => {
                    insert(&mut all.advertisements, &name, *object, &origin)
                }
                Resource::ConfigOverride(object) => {
                    insert(&mut all.config_overrides, &name, *object, &origin)
                }
                Resource::PeerProfile(profile) => {
                    insert(&mut all.peer_profiles, &name, *profile, &origin)
                }
                Resource::PodPool(pool) => insert(&mut all.pod_pools, &name, *pool, &origin),
                Resource::CiliumNode(node) => insert(&mut all.cilium_nodes, &name, *node, &origin),
            };
            if let Some(first) = twice {
                all.conditions.push(Condition {
                    object: format!("{kind} {name}"),
                    origin: origin.to_string(),
                    reason: "Duplicate".to_owned(),
                    message: format!(
                        "{kind} {name} stands at {first} already, which is in force; remove one of the two"
                    ),
                });
            }
        }
    }
    all
}

/// Inserts unless the name is taken; then says by which.
fn insert<T>(
    objects: &mut Objects<T>,
    name: &ObjectName,
    object: T,
    origin: &Origin,
) -> Option<Origin> {
    match objects.get(name) {
        Some(first) => Some(first.origin.clone()),
        None => {
            let origin = origin.clone();
            objects.insert(name.clone(), Arc::new(Sourced { object, origin }));
            None
        }
    }
}

struct Reader {
    file: Arc<str>,
    reading: Reading,
}

impl Reader {
    fn document(&mut self, tree: &Located) {
        let text = |key: &str| tree.get(key).and_then(Located::as_str);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            self.condition(
                self.file.to_string(),
                tree.line,
                "NoKind",
                "no Kubernetes object: apiVersion and kind are missing".to_owned(),
            );
            return;
        };
        if kind.ends_with("List") && tree.get("items").is_some() {
            self.list(tree, api_version, kind);
            return;
        }
        match (api_version, kind) {
            ("v1", "Node") => self.object(tree, kind, |node| Resource::Node(Box::new(node))),
            ("v1", "Service") => {
                self.object(tree, kind, |service| Resource::Service(Box::new(service)));
            }
            ("v1", "Secret") => {
                self.object(tree, kind, |secret| Resource::Secret(Box::new(secret)));
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(tree, kind, |slice| Resource::EndpointSlice(Box::new(slice)));
            }
            ("cilium.io/v2alpha1", "CiliumBGPPeeringPolicy") => {
                self.object(tree, kind, |policy| {
                    Resource::PeeringPolicy(Box::new(policy))
                });
            }
            ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumBGPClusterConfig") => {
                self.object(tree, kind, |object| {
                    Resource::ClusterConfig(Box::new(object))
                });
            }
            ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumBGPPeerConfig") => {
                self.object(tree, kind, |object| Resource::PeerConfig(Box::new(object)));
            }
            ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumBGPAdvertisement") => {
                self.object(tree, kind, |object| {
                    Resource::Advertisement(Box::new(object))
                });
            }
            ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumBGPNodeConfigOverride") => {
                self.object(tree, kind, |object| {
                    Resource::ConfigOverride(Box::new(object))
                });
            }
            ("fairlead.io/v1alpha1", "BGPPeerProfile") => {
                self.object(tree, kind, |profile| {
                    Resource::PeerProfile(Box::new(profile))
                });
            }
            ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumPodIPPool") => {
                self.object(tree, kind, |pool| Resource::PodPool(Box::new(pool)));
            }
            ("cilium.io/v2", "CiliumNode") => {
                self.object(tree, kind, |node| Resource::CiliumNode(Box::new(node)));
            }
            _ => {
                let named = object_name(tree, kind);
                self.condition(
                    named,
                    tree.line,
                    "UnknownKind",
                    format!(
                        "{api_version} {kind} is not a kind that Fairlead reads; it is ignored"
                    ),
                );
            }
        }
    }

    /// The objects of a `List`; those of a typed list (`ServiceList`) may leave out what they are.
    fn list(&mut self, tree: &Located, api_version: &str, kind: &str) {
        let Some(Shape::List(objects)) = tree.get("items").map(|items| &items.shape) else {
            self.condition(
                kind.to_owned(),
                tree.line_of(&FieldPath::default().key("items")),
                "Unreadable",
                "items: expected a list of objects".to_owned(),
            );
            return;
        };
        for object in objects {
            let mut object = object.clone();
            let of = kind.trim_end_matches("List");
            if let (Shape::Map(fields), false) = (&mut object.shape, of.is_empty()) {
                for (key, value) in [("apiVersion", api_version), ("kind", of)] {
                    if !fields.iter().any(|(name, ..)| name == key) {
                        let line = object.line;
                        let shape = Shape::Scalar(value.into());
                        fields.push((key.to_owned(), line, Located { line, shape }));
                    }
                }
            }
            self.document(&object);
        }
    }

    fn object<T: DeserializeOwned + Check>(
        &mut self,
        tree: &Located,
        kind: &str,
        resource: impl FnOnce(T) -> Resource,
    ) {
        let named = object_name(tree, kind);
        let name = tree.get("metadata").and_then(|m| m.get("name"));
        if name.and_then(Located::as_str).is_none_or(str::is_empty) {
            let line = tree.line_of(&FieldPath::default().key("metadata").key("name"));
            let message = "metadata.name: is missing; give the object a name".to_owned();
            self.condition(named, line, "Unreadable", message);
            return;
        }
        let mut unknown = Vec::new();
        let read =
            deserialize::<T>(tree, &mut unknown).and_then(|object| object.check().map(|()| object));
        match read {
            Ok(object) => {
                for path in unknown.into_iter().filter(|_| T::IS_READ_WHOLE) {
                    let line = tree.line_of(&path);
                    let message =
                        format!("{path}: is not a field that Fairlead knows; it has no effect");
                    self.condition(named.clone(), line, "UnknownField", message);
                }
                let origin = Origin {
                    file: Arc::clone(&self.file),
                    line: tree.line,
                };
                let object = resource(object);
                self.reading.objects.push(Sourced { object, origin });
            }
            Err(Wrong { path, mut why }) => {
                if kind == "Secret" {
                    // The reason quotes the value.
                    "cannot be read; data holds base64, stringData holds text".clone_into(&mut why);
                }
                self.reading.rejected.insert(named.clone());
                let line = tree.line_of(&path);
                let message = if path.0.is_empty() {
                    why
                } else {
                    format!("{path}: {why}")
                };
                self.condition(named, line, "Unreadable", message);
            }
        }
    }

    fn condition(&mut self, object: String, line: u64, reason: &str, message: String) {
        self.reading.conditions.push(Condition {
            object,
            origin: Origin {
                file: Arc::clone(&self.file),
                line,
            }
            .to_string(),
            reason: reason.to_owned(),
            message,
        });
    }
}

/// A field that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Which.
    pub path: FieldPath,
    /// Why, and what to write instead.
    pub why: String,
}

/// What a type alone cannot say of an object.
pub trait Check {
    /// Whether a field that we do not know is worth a word: all that is said in such an object is meant for us.
    const IS_READ_WHOLE: bool = true;

    /// The first field that contradicts another one or its limits.
    fn check(&self) -> Result<(), Wrong> {
        Ok(())
    }
}

/// `Kind namespace/name` as far as the tree says it.
fn object_name(tree: &Located, kind: &str) -> String {
    let text = |key| {
        tree.get("metadata")
            .and_then(|metadata| metadata.get(key))
            .and_then(Located::as_str)
    };
    match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) if matches!(kind, "Service" | "EndpointSlice" | "Secret") => {
            format!("{kind} default/{name}")
        }
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}

fn deserialize<T: DeserializeOwned>(
    tree: &Located,
    unknown: &mut Vec<FieldPath>,
) -> Result<T, Wrong> {
    let mut track = serde_path_to_error::Track::new();
    let value = tree.to_value();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    serde_ignored::deserialize(tracked, |path| unknown.push(ignored_path(&path))).map_err(|error| {
        Wrong {
            path: error_path(&track.path()),
            why: error.to_string(),
        }
    })
}

fn error_path(path: &serde_path_to_error::Path) -> FieldPath {
    use serde_path_to_error::Segment;
    FieldPath(
        path.iter()
            .filter_map(|segment| match segment {
                Segment::Seq { index } => Some(Step::Index(*index)),
                Segment::Map { key } => Some(Step::Key(key.clone())),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect(),
    )
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> FieldPath {
    use serde_ignored::Path;
    match path {
        Path::Root => FieldPath::default(),
        Path::Seq { parent, index } => ignored_path(parent).index(*index),
        Path::Map { parent, key } => ignored_path(parent).key(key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => ignored_path(parent),
    }
}

#[cfg(test)]
mod tests;
