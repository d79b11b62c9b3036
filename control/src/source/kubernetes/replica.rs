//! What the API server has told, as [`Resources`] and as text for the snapshot.
//!
//! Nothing is forgotten because it was not heard of: an object goes when its watch says so, or when a whole list
//! lacks it. An object that can no longer be read keeps the version that could.
//!
//! Not here: the network, files and clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::kinds::{CILIUM_NODE, KINDS, SECRET, WatchId};
use super::read::Read;
use super::snapshot::Snapshot;
use super::watch::Heard;
use crate::object::{Condition, ObjectName};
use crate::source::resource::Resources;

type Key = (usize, ObjectName);

/// All that was heard.
#[derive(Debug)]
pub struct Replica {
    server: Arc<str>,
    secrets_namespace: String,
    node: String,
    watches: BTreeMap<WatchId, Watch>,
    /// Each object's text, as it is in force.
    objects: BTreeMap<Key, Arc<RawValue>>,
    /// What is wrong with objects.
    wrong: BTreeMap<Key, Vec<Condition>>,
    /// Objects that others name.
    named: BTreeSet<WatchId>,
    /// Since when the server does not answer, and why.
    lost: Option<(Timestamp, String)>,
    /// When the snapshot was taken that the state began with, until the server has told all.
    restored: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Watch {
    standing: Standing,
    /// What a list that is under way has named so far.
    listing: Option<BTreeSet<ObjectName>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Waiting,
    Synced,
    NotInstalled,
    /// The versions that are served.
    UnknownVersion(Vec<String>),
    Forbidden(String),
}

impl Replica {
    /// Nothing, of this server, for this node.
    pub fn new(server: Arc<str>, secrets_namespace: &str, node: &str) -> Self {
        Self {
            server,
            secrets_namespace: secrets_namespace.to_owned(),
            node: node.to_owned(),
            watches: BTreeMap::new(),
            objects: BTreeMap::new(),
            wrong: BTreeMap::new(),
            named: BTreeSet::new(),
            lost: None,
            restored: None,
        }
    }

    /// Begins with what an earlier agent knew.
    pub fn restore(&mut self, snapshot: Snapshot, resources: &mut Resources) {
        self.restored = Some(snapshot.taken_at);
        for object in snapshot.objects {
            let kind = KINDS.iter().position(|kind| {
                object["apiVersion"] == kind.api_version() && object["kind"] == kind.name
            });
            if let Some(kind) = kind {
                let read = Read::of(&self.server, kind, object);
                self.object(kind, read, resources);
            }
        }
        self.find_named(resources);
        self.say(resources);
    }

    /// A watch begins: nothing is complete before it has told.
    pub fn expect(&mut self, id: &WatchId) {
        self.watches.entry(id.clone()).or_default();
    }

    /// A watch has ended because nobody names its object.
    pub fn forget(&mut self, id: &WatchId, resources: &mut Resources) {
        self.watches.remove(id);
        if let Some(name) = &id.name {
            self.remove(&(id.kind, name.clone()), resources);
        }
    }

    /// Whether every watch has told all that there is, or that it cannot.
    pub fn is_complete(&self) -> bool {
        self.watches
            .values()
            .all(|watch| watch.standing != Standing::Waiting)
    }

    /// Objects to watch by name.
    pub fn named(&self) -> &BTreeSet<WatchId> {
        &self.named
    }

    /// The text of all objects.
    pub fn objects(&self) -> Vec<Arc<RawValue>> {
        self.objects.values().cloned().collect()
    }

    /// Takes what was heard at `now`; says whether `resources` has changed.
    pub fn hear(&mut self, heard: Heard, now: Timestamp, resources: &mut Resources) -> bool {
        let changed = match heard {
            Heard::Listing(id) => {
                self.watch(id).listing = Some(BTreeSet::new());
                return false;
            }
            Heard::Object(id, object) => {
                let kind = id.kind;
                if let Some(listing) = &mut self.watch(id).listing {
                    listing.insert(object.name.clone());
                }
                let changed = self.object(kind, *object, resources);
                self.heard_from() | changed
            }
            Heard::Gone(id, name) => {
                let changed = self.remove(&(id.kind, name), resources);
                self.heard_from() | changed
            }
            Heard::Listed(id) => self.listed(id, resources),
            Heard::NotInstalled(id) => self.stands(id, Standing::NotInstalled) | self.heard_from(),
            Heard::UnknownVersion(id, served) => {
                self.stands(id, Standing::UnknownVersion(served)) | self.heard_from()
            }
            Heard::Forbidden(id, why) => {
                self.stands(id, Standing::Forbidden(why)) | self.heard_from()
            }
            Heard::Contact => self.heard_from(),
            Heard::NoContact(why) if self.lost.is_none() => {
                self.lost = Some((now, why));
                true
            }
            Heard::NoContact(_) => false,
        };
        if self.restored.is_some() && self.is_complete() {
            self.restored = None;
        }
        if changed {
            self.find_named(resources);
            self.say(resources);
        }
        changed
    }

    fn watch(&mut self, id: WatchId) -> &mut Watch {
        self.watches.entry(id).or_default()
    }

    fn stands(&mut self, id: WatchId, standing: Standing) -> bool {
        let watch = self.watch(id);
        let changed = watch.standing != standing;
        watch.standing = standing;
        changed
    }

    /// The server answers; says whether that is news.
    fn heard_from(&mut self) -> bool {
        self.lost.take().is_some()
    }

    fn listed(&mut self, id: WatchId, resources: &mut Resources) -> bool {
        let listed = self.watch(id.clone()).listing.take().unwrap_or_default();
        let gone: Vec<Key> = self
            .objects
            .keys()
            .chain(self.wrong.keys())
            .filter(|(kind, name)| {
                *kind == id.kind
                    && id.name.as_ref().is_none_or(|only| only == name)
                    && !listed.contains(name)
            })
            .cloned()
            .collect();
        let mut changed = self.stands(id, Standing::Synced) | self.heard_from();
        for key in &gone {
            changed |= self.remove(key, resources);
        }
        changed
    }

    fn object(&mut self, kind: usize, read: Read, resources: &mut Resources) -> bool {
        let Read {
            name,
            text,
            mut reading,
        } = read;
        let key = (kind, name);
        let before = self.objects.get(&key);
        if before.is_some_and(|before| before.get() == text.get()) && !self.wrong.contains_key(&key)
        {
            return false;
        }
        if reading.objects.is_empty() && before.is_some() {
            for condition in &mut reading.conditions {
                condition
                    .message
                    .push_str("; the version read before stays in force");
            }
        }
        let is_read = !reading.objects.is_empty();
        for object in reading.objects {
            resources.replace(object);
        }
        if is_read {
            self.objects.insert(key.clone(), text);
        }
        let before = if reading.conditions.is_empty() {
            self.wrong.remove(&key)
        } else {
            self.wrong.insert(key.clone(), reading.conditions)
        };
        is_read || before.as_ref() != self.wrong.get(&key)
    }

    fn remove(&mut self, key: &Key, resources: &mut Resources) -> bool {
        let was_wrong = self.wrong.remove(key).is_some();
        let was_there = self.objects.remove(key).is_some();
        if was_there {
            resources.remove(KINDS[key.0].name, &key.1);
        }
        was_there || was_wrong
    }

    fn find_named(&mut self, resources: &Resources) {
        let secrets = resources
            .peering_policies
            .values()
            .flat_map(|policy| &policy.object.spec.virtual_routers)
            .flat_map(|router| &router.neighbors)
            .filter_map(|neighbor| neighbor.auth_secret_ref.as_ref());
        let configs = resources.peer_configs.values();
        let secrets = secrets.chain(configs.filter_map(|c| c.object.spec.auth_secret_ref.as_ref()));
        let secrets = secrets.map(|name| WatchId {
            kind: SECRET,
            name: Some(ObjectName {
                namespace: self.secrets_namespace.clone(),
                name: name.clone(),
            }),
        });
        let policies = resources.peering_policies.values();
        let mut routers = policies.flat_map(|policy| &policy.object.spec.virtual_routers);
        let mut advertisements = resources.advertisements.values();
        let names_pools = advertisements.any(|told| told.object.names_pools())
            || routers.any(|router| router.pod_ip_pool_selector.is_some());
        let own = names_pools.then(|| WatchId {
            kind: CILIUM_NODE,
            name: Some(ObjectName {
                namespace: String::new(),
                name: self.node.clone(),
            }),
        });
        self.named = secrets.chain(own).collect();
    }

    /// Writes what is wrong where the agent looks for it.
    fn say(&self, resources: &mut Resources) {
        let condition = |reason: &str, object: String, message: String| Condition {
            object,
            origin: self.server.to_string(),
            reason: reason.to_owned(),
            message,
        };
        let mut conditions: Vec<Condition> = self.wrong.values().flatten().cloned().collect();
        if let Some((since, why)) = &self.lost {
            let state = match self.restored {
                Some(taken) => format!("the state of the snapshot of {taken:.0} is in force"),
                None => "the state of then stays in force".to_owned(),
            };
            conditions.push(condition(
                "NoApiServer",
                self.server.to_string(),
                format!("the API server has not answered since {since:.0}: {why}; {state}"),
            ));
        } else if let Some(taken) = self.restored {
            conditions.push(condition(
                "OldState",
                self.server.to_string(),
                format!("the API server has not told everything yet; the state of the snapshot of {taken:.0} is in force"),
            ));
        }
        for (id, watch) in &self.watches {
            let kind = &KINDS[id.kind];
            let why = match &watch.standing {
                Standing::Forbidden(why) => why,
                Standing::UnknownVersion(served) => {
                    let read: Vec<_> = kind.versions().collect();
                    conditions.push(condition(
                        "UnknownVersion",
                        kind.name.to_owned(),
                        format!(
                            "{}: the API server has it in version {}, and {} is read; serve such a version too \
                             (spec.versions of the CustomResourceDefinition {}.{}), or update Fairlead",
                            kind.feature,
                            served.join(", "),
                            read.join(" or "),
                            kind.plural,
                            kind.group,
                        ),
                    ));
                    continue;
                }
                Standing::Waiting | Standing::Synced | Standing::NotInstalled => continue,
            };
            let object = match &id.name {
                Some(name) => format!("{} {name}", kind.name),
                None => kind.name.to_owned(),
            };
            conditions.push(condition(
                "Forbidden",
                object,
                format!(
                    "{}: {why}; grant list and watch on {}",
                    kind.feature, kind.plural
                ),
            ));
        }
        resources.conditions = conditions;
    }
}

#[cfg(test)]
mod tests;
