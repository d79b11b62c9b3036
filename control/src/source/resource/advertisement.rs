//! `cilium.io/v2 CiliumBGPAdvertisement`: what peers are told, and with which attributes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::field::{check_selector, within_if_any};
use super::peering_policy::{Communities, ServiceAdvertisement};
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `CiliumBGPAdvertisement`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advertisement {
    /// `cilium.io/v2` or `cilium.io/v2alpha1`.
    pub api_version: String,
    /// `CiliumBGPAdvertisement`.
    pub kind: String,
    /// Its name, and the labels by which peers select it.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Spec,
}

/// What an advertisement says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// What is told.
    pub advertisements: Vec<Told>,
}

/// Something that is told.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// What it is.
    pub advertisement_type: Type,
    /// Which of them; absent: none. Not with `PodCIDR`.
    pub selector: Option<LabelSelector>,
    /// With `Service`: which of its addresses.
    pub service: Option<Service>,
    /// With `Interface`: which.
    pub interface: Option<Interface>,
    /// What the paths carry.
    pub attributes: Option<Attributes>,
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Type {
    /// The node's pod CIDRs.
    PodCIDR,
    /// What the node has of the selected pools of pod addresses.
    CiliumPodIPPool,
    /// Addresses of the selected services.
    Service,
    /// Addresses of a device.
    Interface,
}

/// Which addresses of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Their kinds; at least one.
    pub addresses: Vec<ServiceAdvertisement>,
    /// IPv4 addresses are told as prefixes of this length.
    #[serde(
        default,
        rename = "aggregationLengthIPv4",
        deserialize_with = "within_if_any::<u8, 0, 31, _>"
    )]
    pub aggregation_length_ipv4: Option<u8>,
    /// IPv6 addresses are told as prefixes of this length.
    #[serde(
        default,
        rename = "aggregationLengthIPv6",
        deserialize_with = "within_if_any::<u8, 0, 127, _>"
    )]
    pub aggregation_length_ipv6: Option<u8>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
}

/// What paths carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attributes {
    /// Communities to attach.
    pub communities: Option<Communities>,
    /// LOCAL_PREF towards internal peers.
    pub local_preference: Option<u32>,
}

impl Advertisement {
    /// Whether what nodes have of pools of pod addresses is told.
    pub fn names_pools(&self) -> bool {
        let mut told = self.spec.advertisements.iter();
        told.any(|told| told.advertisement_type == Type::CiliumPodIPPool)
    }

    /// Whether addresses of a device are told.
    pub fn names_a_device(&self) -> bool {
        let mut told = self.spec.advertisements.iter();
        told.any(|told| told.advertisement_type == Type::Interface)
    }
}

impl Check for Advertisement {
    fn check(&self) -> Result<(), Wrong> {
        let list = FieldPath::default().key("spec").key("advertisements");
        for (index, told) in self.spec.advertisements.iter().enumerate() {
            let path = list.clone().index(index);
            check_selector(&path, "selector", told.selector.as_ref())?;
            let wrong = |key: &str, why: &str| {
                Err(Wrong {
                    path: path.clone().key(key),
                    why: why.to_owned(),
                })
            };
            match told.advertisement_type {
                Type::PodCIDR if told.selector.is_some() => {
                    return wrong("selector", "does not go with PodCIDR; leave it out");
                }
                Type::Service if told.service.as_ref().is_none_or(|s| s.addresses.is_empty()) => {
                    return wrong(
                        "service",
                        "says no addresses; write addresses: [LoadBalancerIP]",
                    );
                }
                Type::Interface if told.interface.is_none() => {
                    return wrong("interface", "is missing; write {name: DEVICE}");
                }
                Type::PodCIDR | Type::CiliumPodIPPool | Type::Service | Type::Interface => {}
            }
        }
        Ok(())
    }
}
