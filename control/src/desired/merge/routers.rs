//! Objects that select this node -> its BGP instances: peering policies (`policies`) or cluster
//! configurations (`instances`), and to both what profiles add (`profiles`).
//!
//! A peer whose password is missing is left out, because a session without it would be weaker than what was
//! asked for (Cilium runs it with an empty one).

mod instances;
mod place;
mod policies;
mod pools;
mod profiles;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_bgp::{LargeCommunity, Password};
use k8s_openapi::api::core::v1::Node;

use super::{Conditions, Sourced};
use crate::config::document::Bgp;
use crate::desired::surroundings::Surroundings;
use crate::desired::{
    AddressKind, Family, LabelSelector, NodeState, ObjectName, PathAttributes, VirtualRouter,
};
use crate::source::resource::Resources;
use crate::source::resource::field::label_selector;
use crate::source::resource::peering_policy::{Communities, ServiceAdvertisement};

/// The virtual routers of this node, by their instances' names.
pub(super) fn merge(
    resources: &Resources,
    config: &Bgp,
    node: &NodeState,
    object: &Sourced<Node>,
    around: Option<&Surroundings>,
    conditions: &mut Conditions,
) -> BTreeMap<String, VirtualRouter> {
    let secrets = Secrets {
        resources,
        namespace: config.namespace_of_secrets(),
    };
    let mut routers = policies::merge(resources, &secrets, node, object, conditions);
    let has_policy = !routers.is_empty();
    routers.extend(instances::merge(
        resources, &secrets, node, has_policy, around, conditions,
    ));
    profiles::apply(resources, node, &mut routers, conditions);
    routers
}

/// The Secrets of peers.
struct Secrets<'a> {
    resources: &'a Resources,
    namespace: &'a str,
}

impl Secrets<'_> {
    /// The password that a Secret holds; `stringData` goes before `data`, as in the API server.
    fn password(&self, secret: &str) -> Result<Password, String> {
        let name = ObjectName {
            namespace: self.namespace.to_owned(),
            name: secret.to_owned(),
        };
        let Some(secret) = self.resources.secrets.get(&name) else {
            return Err(format!("Secret {name} is not there"));
        };
        let texts = secret.object.string_data.as_ref();
        let octets = secret.object.data.as_ref();
        let octets = texts
            .and_then(|texts| texts.get("password"))
            .map(String::as_bytes)
            .or_else(|| Some(&octets?.get("password")?.0[..]))
            .ok_or_else(|| format!("Secret {name} has no key `password`"))?;
        Password::new(octets)
            .map_err(|why| format!("`password` of Secret {name} cannot be used: {why}"))
    }
}

/// An object's selector; that it makes sense was checked when the object was read.
fn selector_of(
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
) -> LabelSelector {
    let Ok(selector) = label_selector(selector) else {
        unreachable!("selectors were checked when the object was read")
    };
    selector
}

/// The families that are spoken, of those that are named by AFI and SAFI; both when none is named.
fn families<'a>(
    named: impl Iterator<Item = (&'a str, &'a str)>,
    mut unsupported: impl FnMut(String),
) -> BTreeSet<Family> {
    let mut families = BTreeSet::new();
    let mut is_any_named = false;
    for family in named {
        is_any_named = true;
        match family {
            ("ipv4", "unicast") => {
                families.insert(Family::Ipv4);
            }
            ("ipv6", "unicast") => {
                families.insert(Family::Ipv6);
            }
            (afi, safi) => unsupported(format!(
                "{afi} {safi} is not spoken; use ipv4 unicast and ipv6 unicast"
            )),
        }
    }
    if !is_any_named {
        families = BTreeSet::from([Family::Ipv4, Family::Ipv6]);
    }
    families
}

/// Which fields of a service name the addresses that are told.
fn service_kinds(told: &[ServiceAdvertisement]) -> BTreeSet<AddressKind> {
    told.iter()
        .map(|kind| match kind {
            ServiceAdvertisement::LoadBalancerIP => AddressKind::LoadBalancer,
            ServiceAdvertisement::ExternalIP => AddressKind::External,
            ServiceAdvertisement::ClusterIP => AddressKind::Cluster,
        })
        .collect()
}

/// What an object attaches to paths.
fn attributes(communities: Option<&Communities>, local_preference: Option<u32>) -> PathAttributes {
    let mut attributes = PathAttributes {
        local_preference,
        ..PathAttributes::default()
    };
    if let Some(communities) = communities {
        let named = communities.well_known.iter().map(|community| community.0);
        let standard = communities.standard.iter().map(|community| community.0);
        attributes.communities.extend(named.chain(standard));
        let large = communities.large.iter().map(|community| {
            let [global, local1, local2] = community.0;
            LargeCommunity {
                global,
                local1,
                local2,
            }
        });
        attributes.large_communities.extend(large);
    }
    attributes
}
