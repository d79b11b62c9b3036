//! Who asks for each frontend and who has it, kept from merge to merge.
//!
//! ```text
//!   slices ──(label)──> service ──(One)──> claims on frontends ──(rank)──> who has them
//! ```
//! A merge looks at services that have changed or whose slices have, and comes to what a look at all of them would
//! come to. When the node, its routers or the configuration are others, it looks at all.
//!
//! Not for what a service asks for: that is [`One`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Around, Conditions, KIND, One, SERVICE_NAME, SLICE_KIND, ours};
use crate::config::document::LoadBalancer;
use crate::cores;
use crate::desired::{
    Condition, Frontend, HealthCheck, NodeState, ObjectName, Scope, Service, VirtualRouter,
};
use crate::source::resource::{Objects, Resources, Sourced};

/// So many services are worth threads: on one core ten thousand take 0.2 s (`cargo xtask bench plan`).
const MANY: usize = 256;

/// Who comes first: the older service, then the one whose name comes first.
type Rank = (bool, Option<Time>, ObjectName);

/// What was found when services were looked at last. It may be lost: then all of them are looked at.
#[derive(Debug, Default)]
pub(in crate::desired::merge) struct Register {
    node: NodeState,
    routers: BTreeMap<String, VirtualRouter>,
    config: LoadBalancer,
    sources: Objects<core::Service>,
    slices: Objects<EndpointSlice>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Slices that belong to no service.
    strays: BTreeMap<ObjectName, Condition>,
    /// What services that are ours ask for.
    entries: BTreeMap<ObjectName, Entry>,
    /// What is wrong with services and their slices.
    conditions: BTreeMap<ObjectName, Vec<Condition>>,
    /// Who asks for a frontend, in their order.
    claims: BTreeMap<Frontend, Vec<Claim>>,
    /// Frontends that more than one asks for.
    contested: BTreeSet<Frontend>,
    health_checks: BTreeMap<u16, BTreeMap<Arc<Rank>, HealthCheck>>,
    services: OrdMap<Frontend, Arc<Service>>,
}

#[derive(Debug)]
struct Entry {
    rank: Arc<Rank>,
    frontends: Vec<Frontend>,
    health_check: Option<u16>,
}

/// What a service asks for.
struct Asked {
    rank: Arc<Rank>,
    found: Vec<(Frontend, Service)>,
    health_check: Option<(u16, HealthCheck)>,
    conditions: Vec<Condition>,
}

#[derive(Debug)]
struct Claim {
    rank: Arc<Rank>,
    service: Arc<Service>,
}

impl Register {
    /// All services of the sources that are ours; those that have not changed are the same values as before.
    pub(in crate::desired::merge) fn follow(
        &mut self,
        resources: &Resources,
        around: &Around<'_>,
        conditions: &mut Conditions,
    ) -> OrdMap<Frontend, Arc<Service>> {
        let mut changed = self.changed(resources);
        if !self.is_around(around) {
            self.node.clone_from(around.node);
            self.routers.clone_from(around.routers);
            self.config.clone_from(around.config);
            changed.extend(self.sources.keys().cloned());
        }
        let changed: Vec<ObjectName> = changed.into_iter().collect();
        let asked = cores::each(&changed, MANY, |name| self.ask(name, around));
        let mut touched = BTreeSet::new();
        for (name, asked) in changed.iter().zip(asked) {
            touched.extend(self.leave(name));
            if let Some(asked) = asked {
                touched.extend(self.enter(name, asked));
            }
        }
        // Once all have had their say: a service that has a frontend before and after is not another in between.
        for frontend in touched {
            self.settle(frontend);
        }
        self.say(conditions);
        self.services.clone()
    }

    /// What is asked of the health of services, by TCP port.
    pub(in crate::desired::merge) fn health_checks(&self) -> BTreeMap<u16, HealthCheck> {
        let first = |(port, claims): (&u16, &BTreeMap<_, HealthCheck>)| {
            Some((*port, claims.values().next()?.clone()))
        };
        self.health_checks.iter().filter_map(first).collect()
    }

    fn is_around(&self, around: &Around<'_>) -> bool {
        self.node == *around.node
            && self.routers == *around.routers
            && self.config == *around.config
    }

    /// Takes the objects; says which services have changed, or have other slices.
    fn changed(&mut self, resources: &Resources) -> BTreeSet<ObjectName> {
        let mut changed = BTreeSet::new();
        let sources = std::mem::replace(&mut self.sources, resources.services.clone());
        for change in sources.diff(&resources.services) {
            let (name, ..) = sides(&change);
            changed.insert(name.clone());
        }
        let slices = std::mem::replace(&mut self.slices, resources.slices.clone());
        for change in slices.diff(&resources.slices) {
            let (name, before, now) = sides(&change);
            self.strays.remove(name);
            if let Some(Ok(service)) = before.map(|slice| owner(name, slice)) {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(name);
                    if slices.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                changed.insert(service);
            }
            match now.map(|slice| owner(name, slice)) {
                Some(Ok(service)) => {
                    let slices = self.slices_of.entry(service.clone()).or_default();
                    slices.insert(name.clone());
                    changed.insert(service);
                }
                Some(Err(condition)) => {
                    self.strays.insert(name.clone(), condition);
                }
                None => {}
            }
        }
        changed
    }

    /// Takes back what a service asked for; says which frontends.
    fn leave(&mut self, name: &ObjectName) -> Vec<Frontend> {
        self.conditions.remove(name);
        let Some(entry) = self.entries.remove(name) else {
            return Vec::new();
        };
        for frontend in &entry.frontends {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.retain(|claim| claim.rank != entry.rank);
            }
        }
        if let Some(port) = entry.health_check
            && let Some(claims) = self.health_checks.get_mut(&port)
        {
            claims.remove(&entry.rank);
            if claims.is_empty() {
                self.health_checks.remove(&port);
            }
        }
        entry.frontends
    }

    /// What a service asks for, when it is ours.
    fn ask(&self, name: &ObjectName, around: &Around<'_>) -> Option<Asked> {
        let sourced = self.sources.get(name)?;
        let spec = ours(sourced)?;
        let slices = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<_> = slices
            .filter_map(|slice| Some((slice, &**self.slices.get(slice)?)))
            .collect();
        let one = One {
            name,
            sourced,
            spec,
            slices: &slices,
            around,
        };
        let mut conditions = Conditions(Vec::new());
        let found = one.frontends(&mut conditions);
        let health_check = one.health_check(&found);
        let created = sourced.object.metadata.creation_timestamp.clone();
        Some(Asked {
            rank: Arc::new((created.is_none(), created, name.clone())),
            found,
            health_check,
            conditions: conditions.0,
        })
    }

    /// Puts down what a service asks for; says which frontends.
    fn enter(&mut self, name: &ObjectName, asked: Asked) -> Vec<Frontend> {
        let Asked {
            rank,
            found,
            health_check,
            conditions,
        } = asked;
        if !conditions.is_empty() {
            self.conditions.insert(name.clone(), conditions);
        }
        let mut frontends = Vec::with_capacity(found.len());
        for (frontend, service) in found {
            let claims = self.claims.entry(frontend).or_default();
            // Of two ports of one service that are the same the first counts.
            let place = claims.partition_point(|claim| claim.rank <= rank);
            let claim = Claim {
                rank: Arc::clone(&rank),
                service: Arc::new(service),
            };
            claims.insert(place, claim);
            frontends.push(frontend);
        }
        let entry = Entry {
            rank: Arc::clone(&rank),
            frontends: frontends.clone(),
            health_check: health_check.as_ref().map(|(port, _)| *port),
        };
        self.entries.insert(name.clone(), entry);
        if let Some((port, check)) = health_check {
            let claims = self.health_checks.entry(port).or_default();
            claims.insert(rank, check);
        }
        frontends
    }

    /// Gives a frontend to the first of those who ask for it.
    fn settle(&mut self, frontend: Frontend) {
        let claims = self.claims.get(&frontend).map_or(&[][..], Vec::as_slice);
        let is_contested = claims.len() > 1;
        match claims.first() {
            Some(first) => {
                if self.services.get(&frontend) != Some(&first.service) {
                    let service = Arc::clone(&first.service);
                    self.services.insert(frontend, service);
                }
            }
            None => {
                self.claims.remove(&frontend);
                self.services.remove(&frontend);
            }
        }
        if is_contested {
            self.contested.insert(frontend);
        } else {
            self.contested.remove(&frontend);
        }
    }

    fn say(&self, conditions: &mut Conditions) {
        conditions.0.extend(self.strays.values().cloned());
        let of_services = self.conditions.values().flatten();
        conditions.0.extend(of_services.cloned());
        let mut refused = |rank: &Rank, reason, message| {
            let name = &rank.2;
            if let Some(sourced) = self.sources.get(name) {
                conditions.add(KIND, name, &sourced.origin, reason, message);
            }
        };
        // Of a node port not at its other addresses too.
        let is_said = |addr: &IpAddr| !addr.is_loopback() && !addr.is_unspecified();
        for frontend in self.contested.iter().filter(|f| is_said(&f.addr)) {
            let Some([first, others @ ..]) = self.claims.get(frontend).map(Vec::as_slice) else {
                continue;
            };
            // The same for both scopes, and so said once.
            let place = Frontend {
                scope: Scope::Outside,
                ..*frontend
            };
            for claim in others {
                let message = format!(
                    "{place} belongs to Service {}, which is older or comes first by name; give one of them another address or port",
                    first.service.object
                );
                refused(&claim.rank, "AddressConflict", message);
            }
        }
        for (port, claims) in &self.health_checks {
            let mut claims = claims.iter();
            let Some((_, first)) = claims.next() else {
                continue;
            };
            for (rank, _) in claims {
                let message = format!(
                    "spec.healthCheckNodePort {port} is Service {}'s, which is older or comes first by name; give one of them another port",
                    first.object
                );
                refused(rank, "HealthCheckConflict", message);
            }
        }
    }
}

/// A change's name, and what was and is there.
fn sides<'a, T>(
    change: &DiffItem<'a, 'a, ObjectName, Arc<T>>,
) -> (&'a ObjectName, Option<&'a T>, Option<&'a T>) {
    match *change {
        DiffItem::Add(name, now) => (name, None, Some(now)),
        DiffItem::Update {
            old: (name, before),
            new: (_, now),
        } => (name, Some(before), Some(now)),
        DiffItem::Remove(name, before) => (name, Some(before), None),
    }
}

/// The service that a slice belongs to.
fn owner(name: &ObjectName, sourced: &Sourced<EndpointSlice>) -> Result<ObjectName, Condition> {
    let slice = &sourced.object;
    let wrong = |reason: &str, message: String| Condition {
        object: format!("{SLICE_KIND} {name}"),
        origin: sourced.origin.to_string(),
        reason: reason.to_owned(),
        message,
    };
    let labels = slice.metadata.labels.as_ref();
    let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
        return Err(wrong(
            "NoService",
            format!("the label {SERVICE_NAME} is missing, so it belongs to no service; add it"),
        ));
    };
    if slice.address_type == "FQDN" {
        return Err(wrong(
            "AddressTypeUnsupported",
            "addressType FQDN names no addresses; use IPv4 or IPv6".to_owned(),
        ));
    }
    Ok(ObjectName {
        namespace: name.namespace.clone(),
        name: service.clone(),
    })
}
