//! What is common to all objects, whatever their kind: names, label selectors, conditions.
//!
//! Not here: kinds of objects (`source::resource`), and what they mean (`desired`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// `namespace/name` of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Empty for objects of the cluster's scope.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl ObjectName {
    /// Reads `namespace/name`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let is_whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        is_whole.then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Whether we answer to a class of load balancers (`spec.loadBalancerClass`): Cilium's and ours.
pub fn is_our_class(class: &str) -> bool {
    class == "io.cilium/bgp-control-plane" || class.starts_with("fairlead.io/")
}

/// A Kubernetes label selector: all of its requirements hold. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Key and value pairs that must be present.
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on keys.
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The key's value is one of these.
    In(String, BTreeSet<String>),
    /// The key is absent, or its value is none of these.
    NotIn(String, BTreeSet<String>),
    /// The key is present.
    Exists(String),
    /// The key is absent.
    DoesNotExist(String),
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|need| match need {
                Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
                Requirement::NotIn(key, values) => {
                    labels.get(key).is_none_or(|v| !values.contains(v))
                }
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}

/// Something a person should know of an object: what, where, what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Condition {
    /// `Kind namespace/name`, or the file when the object could not be read.
    pub object: String,
    /// Where it stands: `file:line`, or empty.
    pub origin: String,
    /// A word in CamelCase, as Kubernetes' conditions have it.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}
