//! Watches as tasks, and what they hear.
//!
//! A watch lists once, then goes on from the version it has seen, through lost connections; when the server has
//! forgotten that version (410) it lists anew. It never ends by itself.
//!
//! Not here: what follows from what is heard (`replica`).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::{interval, sleep, timeout};

use super::kinds::{KINDS, Kind, WatchId};
use super::read::Read;
use crate::object::ObjectName;

/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(5);
/// How often the server is asked whether it is there, and how often after it was not.
const ASK: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How soon a watch that failed is tried again, at first and at last.
const RETRY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// How soon a kind that is refused or not installed is tried again: somebody must do something first.
const RETRY_REFUSED: Duration = Duration::from_secs(15);
/// How often a kind that is watched in a version that is not the best is looked for in a better one: definitions are
/// renewed without a word to their watches.
const LOOK: Duration = Duration::from_mins(1);

/// How much a watch tells at once at most: whoever keeps it would be woken for each.
pub const AT_ONCE: usize = 64;

/// What a watch heard.
#[derive(Clone, Debug)]
pub enum Heard {
    /// All objects follow, and then that they were all.
    Listing(WatchId),
    /// An object as it is.
    Object(WatchId, Box<Read>),
    /// An object is no more.
    Gone(WatchId, ObjectName),
    /// That were all.
    Listed(WatchId),
    /// The kind is not installed.
    NotInstalled(WatchId),
    /// The kind is served in these versions, none of which is read.
    UnknownVersion(WatchId, Vec<String>),
    /// We may not watch it, in the server's words.
    Forbidden(WatchId, String),
    /// The server answers.
    Contact,
    /// The server does not answer, or not usefully.
    NoContact(String),
}

/// Watches until it is aborted, or nobody listens. Conditions name the `server`.
pub async fn follow(client: kube::Client, server: Arc<str>, id: WatchId, tell: Sender<Vec<Heard>>) {
    let kind = &KINDS[id.kind];
    let mut version = kind.version;
    let mut config = watcher::Config::default();
    if let Some(labels) = kind.labels {
        config = config.labels(labels);
    }
    if let Some(name) = &id.name {
        config = config.fields(&format!("metadata.name={}", name.name));
    }
    'version: loop {
        let mut look = interval(LOOK);
        look.reset();
        let backoff = Backoff { next: RETRY[0] };
        let resource = kind.resource(version);
        let api: Api<Told> = match &id.name {
            Some(name) if !name.namespace.is_empty() => {
                Api::namespaced_with(client.clone(), &name.namespace, &resource)
            }
            Some(_) | None => Api::all_with(client.clone(), &resource),
        };
        let mut events = watcher::watcher(api, config.clone())
            .backoff(backoff)
            .ready_chunks(AT_ONCE)
            .boxed();
        let refusal = loop {
            let events = tokio::select! {
                events = events.next() => events,
                _ = look.tick(), if version != kind.version => {
                    if let Some(better) = better(&client, kind, version).await {
                        version = better;
                        continue 'version;
                    }
                    continue;
                }
            };
            let Some(events) = events else {
                return;
            };
            let mut heard: Vec<_> = events
                .into_iter()
                .map(|event| hear(&server, &id, event))
                .collect();
            let is_refusal =
                |one: &Heard| matches!(one, Heard::NotInstalled(_) | Heard::Forbidden(..));
            let refused = heard.iter().position(is_refusal);
            let refusal = refused.and_then(|at| heard.drain(at..).next());
            if !heard.is_empty() && tell.send(heard).await.is_err() {
                return;
            }
            if let Some(refusal) = refusal {
                break refusal;
            }
        };
        let refusal = if let Heard::NotInstalled(id) = refusal {
            let served = served(&client, kind).await;
            let is_served = |known: &&str| served.iter().any(|version| version == known);
            match kind.versions().find(is_served) {
                // What is served is asked for at once, and once: then the server's word for it counts.
                Some(known) if known != version => {
                    version = known;
                    continue;
                }
                Some(_) => Heard::NotInstalled(id),
                None if served.is_empty() => Heard::NotInstalled(id),
                None => Heard::UnknownVersion(id, served),
            }
        } else {
            refusal
        };
        version = kind.version;
        if tell.send(vec![refusal]).await.is_err() {
            return;
        }
        // Lists anew, so that the end of a refusal is heard though nothing has changed.
        sleep(RETRY_REFUSED).await;
    }
}

fn hear(server: &str, id: &WatchId, event: watcher::Result<Event<Told>>) -> Heard {
    match event {
        Ok(Event::Init) => Heard::Listing(id.clone()),
        Ok(Event::InitApply(object) | Event::Apply(object)) => {
            let read = Read::of(server, id.kind, value(id, object));
            Heard::Object(id.clone(), Box::new(read))
        }
        Ok(Event::Delete(object)) => Heard::Gone(id.clone(), name(&object)),
        Ok(Event::InitDone) => Heard::Listed(id.clone()),
        Err(error) => failed(id, &error),
    }
}

/// The versions in which the server has a kind; none when it does not say.
async fn served(client: &kube::Client, kind: &Kind) -> Vec<String> {
    let Ok(Ok(groups)) = timeout(ANSWER, client.list_api_groups()).await else {
        return Vec::new();
    };
    let group = groups.groups.into_iter().find(|g| g.name == kind.group);
    let mut served = Vec::new();
    for version in group.into_iter().flat_map(|group| group.versions) {
        if serves(client, kind, &version.version).await {
            served.push(version.version);
        }
    }
    served
}

/// The best version that the server has, where that is better than this one.
async fn better(client: &kube::Client, kind: &Kind, than: &str) -> Option<&'static str> {
    for version in kind.versions().take_while(|version| *version != than) {
        if serves(client, kind, version).await {
            return Some(version);
        }
    }
    None
}

/// Whether the server says that it has a kind in this version.
async fn serves(client: &kube::Client, kind: &Kind, version: &str) -> bool {
    let of_version = kind.resource(version).api_version;
    let resources = client.list_api_group_resources(&of_version);
    matches!(
        timeout(ANSWER, resources).await,
        Ok(Ok(list)) if list.resources.iter().any(|one| one.name == kind.plural)
    )
}

/// Asks now and then whether the server is there: a watch alone cannot tell silence from absence.
pub async fn contact(client: kube::Client, tell: Sender<Vec<Heard>>) {
    loop {
        let (heard, pause) = match timeout(ANSWER, client.apiserver_version()).await {
            Ok(Ok(_)) => (Heard::Contact, ASK),
            Ok(Err(error)) => (no_contact(&error), ASK_AGAIN),
            Err(_) => (
                Heard::NoContact(format!("no answer within {ANSWER:?}")),
                ASK_AGAIN,
            ),
        };
        if tell.send(vec![heard]).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn failed(id: &WatchId, error: &watcher::Error) -> Heard {
    let status = match error {
        watcher::Error::WatchError(status) => status,
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            let kube::Error::Api(status) = error else {
                return no_contact(error);
            };
            status
        }
        watcher::Error::NoResourceVersion => {
            return Heard::NoContact(error.to_string());
        }
    };
    match status.code {
        401 | 403 => Heard::Forbidden(id.clone(), status.message.clone()),
        404 if KINDS[id.kind].is_custom => Heard::NotInstalled(id.clone()),
        // The version was forgotten: it is listed anew.
        410 => Heard::Contact,
        _ => Heard::NoContact(status.message.clone()),
    }
}

/// With all causes: the outermost alone says "client error".
fn no_contact(error: &kube::Error) -> Heard {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    Heard::NoContact(text)
}

/// An object as the server tells it: `kube`'s own type for objects of any kind reads each of them twice.
#[derive(Clone, Debug)]
struct Told {
    /// What watches ask for: the object's name, and its version.
    metadata: ObjectMeta,
    object: Value,
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(from)?;
        let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, object })
    }
}

impl kube::Resource for Told {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn name(told: &Told) -> ObjectName {
    ObjectName {
        namespace: told.metadata.namespace.clone().unwrap_or_default(),
        name: told.metadata.name.clone().unwrap_or_default(),
    }
}

/// The object as a manifest would have it, without what the server alone cares for.
fn value(id: &WatchId, told: Told) -> Value {
    let kind = &KINDS[id.kind];
    let mut value = told.object;
    if let Value::Object(fields) = &mut value {
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.name.into());
    }
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.retain(|key, _| METADATA.contains(&key.as_str()));
    }
    if let Some(Value::Object(annotations)) = value.pointer_mut("/metadata/annotations") {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    (kind.trim)(&mut value);
    value
}

/// What anybody here asks of an object's metadata.
const METADATA: [&str; 5] = [
    "annotations",
    "creationTimestamp",
    "labels",
    "name",
    "namespace",
];

/// Twice as long each time, with a part that differs between nodes: a server that returns is not asked by all
/// at once.
struct Backoff {
    next: Duration,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(RETRY[1]);
        // Between three quarters and five.
        let part = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), pause) % 512;
        Some(pause * (768 + part as u32) / 1024)
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.next = RETRY[0];
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource as _;
    use serde_json::json;

    use super::*;

    fn services() -> WatchId {
        let kind = KINDS.iter().position(|kind| kind.name == "Service");
        WatchId {
            kind: kind.unwrap(),
            name: None,
        }
    }

    #[test]
    fn an_object_is_as_a_manifest_would_have_it() {
        let id = services();
        let told: Told = serde_json::from_value(json!({
            // Items of a list do not say what they are.
            "metadata": {
                "name": "a", "namespace": "b", "uid": "1", "resourceVersion": "7", "generation": 2,
                "managedFields": [{"manager": "kubectl"}], "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "web"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "own": "x"},
            },
            "spec": {"type": "LoadBalancer"},
        }))
        .unwrap();

        assert_eq!(told.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(name(&told).to_string(), "b/a");
        let expected = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "a", "namespace": "b", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "web"}, "annotations": {"own": "x"},
            },
            "spec": {"type": "LoadBalancer"},
        });
        assert_eq!(value(&id, told), expected);
    }

    #[test]
    fn an_object_that_is_none_ends_no_list() {
        let id = services();
        for object in [json!(null), json!([1]), json!({"metadata": "x"}), json!({})] {
            let told: Told = serde_json::from_value(object).unwrap();
            assert_eq!(name(&told), ObjectName::default());
            let _ = value(&id, told);
        }
    }
}
