//! Reads services and pools while it leads, and writes what they are given.
//!
//! Every write is on the version that the decision was made on: one that came too late is refused, and the watch
//! brings what is there. Not here: the decision (`allocate`).

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::allocate::{Allocation, Usage, allocate};
use super::lease::{Candidate, RENEW_EVERY};
use super::pool::{Pool, Written};
use super::service;
use crate::api::types::{LoadBalancerIpam, Tally};
use crate::object::ObjectName;

/// The Lease that the leader holds, and where: agents of several releases of the chart give addresses in turn as well.
const LEASE: &str = "fairlead-lb-ipam";
const LEASE_NAMESPACE: &str = "kube-system";
/// Who writes, in managed fields.
const MANAGER: &str = "fairlead";
/// How long changes are gathered: a rollout makes many.
const GATHER: Duration = Duration::from_millis(50);
/// How soon pools are looked for again: on a server that has no such kind, or forbids it, and in another version.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How long a write may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of the cluster.
#[derive(Default)]
struct Known {
    /// Those of type LoadBalancer.
    services: BTreeMap<ObjectName, Service>,
    /// As they were read.
    pools: BTreeMap<String, Value>,
    /// Whether all services have been heard, and all pools.
    is_complete: (bool, bool),
}

/// Leads when it may, and gives addresses while it leads; until it is told to `stop`. `identity` is the node's name.
pub async fn run(
    client: Client,
    identity: String,
    now: fn() -> Instant,
    standing: Arc<ArcSwap<LoadBalancerIpam>>,
    stop: CancellationToken,
) {
    let mut candidate = Candidate::new(client.clone(), LEASE_NAMESPACE, LEASE, &identity, now);
    loop {
        campaign(&mut candidate, &standing).await;
        if candidate.leads() {
            info!(lease = %format!("{LEASE_NAMESPACE}/{LEASE}"), "gives addresses to services");
            let led = lead(&client, &mut candidate, &standing, now, &stop).await;
            info!(why = led, "gives no addresses any more");
            say_standing(&standing, |standing| standing.services = None);
        }
        tokio::select! {
            () = sleep(RENEW_EVERY) => {}
            () = stop.cancelled() => {
                candidate.resign().await;
                return;
            }
        }
    }
}

/// Stands for it, and says how it went; a trouble once, until it is another one.
async fn campaign(candidate: &mut Candidate, standing: &ArcSwap<LoadBalancerIpam>) {
    let trouble = match timeout(ANSWER, candidate.campaign()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {ANSWER:?}")),
    };
    if let Some(why) = &trouble
        && standing.load().trouble != trouble
    {
        warn!(
            lease = LEASE,
            why, "addresses for services: who leads is not known"
        );
    }
    let leader = candidate.leader().map(str::to_owned);
    say_standing(standing, |standing| {
        (standing.leader, standing.trouble) = (leader, trouble);
    });
}

/// For whoever asks. Nobody else writes it.
fn say_standing(standing: &ArcSwap<LoadBalancerIpam>, change: impl FnOnce(&mut LoadBalancerIpam)) {
    let mut new = LoadBalancerIpam::clone(&standing.load());
    change(&mut new);
    standing.store(Arc::new(new));
}

/// Gives addresses until another leads or it is told to stop; says why it ended.
async fn lead(
    client: &Client,
    candidate: &mut Candidate,
    standing: &ArcSwap<LoadBalancerIpam>,
    now: fn() -> Instant,
    stop: &CancellationToken,
) -> &'static str {
    let mut known = Known::default();
    let services: Api<Service> = Api::all(client.clone());
    let mut service_events = pin!(follow(services, watcher::Config::default()));
    let resource = loop {
        match pool_resource(client).await {
            Some(resource) => break resource,
            None if !candidate.leads() => return "the lease was not renewed",
            None => {}
        }
        // Nothing to give: the lease is kept all the same, so that others need not look.
        let next = now() + LOOK_AGAIN;
        while now() < next {
            tokio::select! {
                () = sleep(RENEW_EVERY) => campaign(candidate, standing).await,
                () = stop.cancelled() => return "the agent stops",
            }
        }
    };
    let pools: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut pool_events = pin!(follow(pools, watcher::Config::default()));
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK_AGAIN);
    look.reset();
    let mut due: Option<Instant> = None;
    loop {
        let is_changed = tokio::select! {
            event = service_events.next() => match event {
                Some(event) => known.hear_service(event),
                None => return "the watch of services ended",
            },
            event = pool_events.next() => match event {
                Some(event) => known.hear_pool(event),
                None => return "the watch of pools ended",
            },
            _ = renew.tick() => {
                campaign(candidate, standing).await;
                if !candidate.leads() {
                    return "another agent leads, or the lease was not renewed";
                }
                false
            }
            // While a list is read anew, who is not in it yet has an address all the same.
            () = moment(due), if known.is_complete == (true, true) => {
                due = None;
                // A write that failed is tried again.
                if !give(client, &resource, candidate, &mut known, standing).await {
                    due = Some(now() + LOOK_AGAIN);
                }
                false
            }
            _ = look.tick() => {
                if pool_resource(client).await.is_some_and(|found| found != resource) {
                    return "the pools are served in another version";
                }
                false
            }
            () = stop.cancelled() => return "the agent stops",
        };
        if is_changed && known.is_complete == (true, true) {
            due = Some(now() + GATHER);
        }
    }
}

async fn moment(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn follow<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let events = watcher(api, config).default_backoff();
    events.filter_map(|event| async {
        event
            .inspect_err(|error| warn!(%error, "watching for addresses of services"))
            .ok()
    })
}

/// The pools' kind, in the newest version that the server has.
async fn pool_resource(client: &Client) -> Option<ApiResource> {
    for version in ["v2", "v2alpha1"] {
        let resource = ApiResource {
            group: "cilium.io".to_owned(),
            version: version.to_owned(),
            api_version: format!("cilium.io/{version}"),
            kind: "CiliumLoadBalancerIPPool".to_owned(),
            plural: "ciliumloadbalancerippools".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let one = kube::api::ListParams::default().limit(1);
        if let Ok(Ok(_)) = timeout(ANSWER, api.list(&one)).await {
            return Some(resource);
        }
    }
    None
}

impl Known {
    /// Whether something may follow from it.
    fn hear_service(&mut self, event: Event<Service>) -> bool {
        match event {
            Event::Init => {
                self.services.clear();
                self.is_complete.0 = false;
            }
            Event::InitDone => {
                self.is_complete.0 = true;
                return true;
            }
            Event::InitApply(service) | Event::Apply(service) => {
                let name = name(&service);
                if service::read(&service).is_none() {
                    return self.services.remove(&name).is_some();
                }
                let version = service.resource_version();
                let before = self.services.insert(name, service);
                return before.and_then(|before| before.resource_version()) != version;
            }
            Event::Delete(service) => return self.services.remove(&name(&service)).is_some(),
        }
        false
    }

    /// Whether something may follow from it.
    fn hear_pool(&mut self, event: Event<DynamicObject>) -> bool {
        match event {
            Event::Init => {
                self.pools.clear();
                self.is_complete.1 = false;
                false
            }
            Event::InitDone => {
                self.is_complete.1 = true;
                true
            }
            Event::InitApply(pool) | Event::Apply(pool) => {
                let value = serde_json::to_value(&pool).unwrap_or_default();
                self.pools.insert(pool.name_any(), value);
                true
            }
            Event::Delete(pool) => self.pools.remove(&pool.name_any()).is_some(),
        }
    }

    /// The pools that can be read, and what is wrong with the others.
    fn readable(&self) -> (Vec<Pool>, BTreeMap<String, String>) {
        let (mut pools, mut wrong) = (Vec::new(), BTreeMap::new());
        for (name, value) in &self.pools {
            let read = serde_json::from_value::<Written>(value.clone())
                .map_err(|error| error.to_string())
                .and_then(|written| written.pool());
            match read {
                Ok(pool) => pools.push(pool),
                Err(why) => drop(wrong.insert(name.clone(), why)),
            }
        }
        (pools, wrong)
    }
}

fn name(service: &Service) -> ObjectName {
    ObjectName {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
    }
}

/// Decides and writes what is new; `false` when a write failed.
async fn give(
    client: &Client,
    resource: &ApiResource,
    candidate: &Candidate,
    known: &mut Known,
    standing: &ArcSwap<LoadBalancerIpam>,
) -> bool {
    let (pools, wrong) = known.readable();
    let requests: Vec<_> = known.services.values().filter_map(service::read).collect();
    let allocation = allocate(&pools, wrong.is_empty(), &requests);
    let content = allocation.services.values();
    let tally = Tally {
        good: content.clone().filter(|given| given.lack.is_none()).count(),
        all: content.len(),
    };
    say_standing(standing, |standing| standing.services = Some(tally));
    let time = jiff::Timestamp::now();
    let mut is_whole = true;
    for (name, given) in &allocation.services {
        let Some(before) = known.services.get(name) else {
            continue;
        };
        let Some(patch) = service::patch(before, given, time) else {
            continue;
        };
        if !candidate.leads() {
            return true;
        }
        let api: Api<Service> = Api::namespaced(client.clone(), &name.namespace);
        let (how, patch) = (manager(), Patch::Merge(&patch));
        let written = timeout(ANSWER, api.patch_status(&name.name, &how, &patch)).await;
        match written {
            Ok(Ok(after)) => {
                say(name, given);
                known.services.insert(name.clone(), after);
            }
            // Changed or gone meanwhile: the watch tells.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => {
                warn!(service = %name, %error, "writing its addresses");
                is_whole = false;
            }
            Err(_) => is_whole = false,
        }
    }
    is_whole & tell_pools(client, resource, candidate, known, (&allocation, &wrong)).await
}

/// Writes how full the pools are.
async fn tell_pools(
    client: &Client,
    resource: &ApiResource,
    candidate: &Candidate,
    known: &mut Known,
    (allocation, wrong): (&Allocation, &BTreeMap<String, String>),
) -> bool {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let none = Usage::default();
    let mut is_whole = true;
    for (name, value) in &mut known.pools {
        let usage = allocation.pools.get(name).unwrap_or(&none);
        let why = wrong.get(name).map(String::as_str);
        let time = jiff::Timestamp::now();
        let Some(patch) = service::pool_status(value, usage, why, time) else {
            continue;
        };
        if !candidate.leads() {
            return true;
        }
        let (how, patch) = (manager(), Patch::Merge(&patch));
        match timeout(ANSWER, api.patch_status(name, &how, &patch)).await {
            Ok(Ok(after)) => *value = serde_json::to_value(&after).unwrap_or_default(),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => {
                warn!(pool = name, %error, "writing its status");
                is_whole = false;
            }
            Err(_) => is_whole = false,
        }
    }
    is_whole
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn say(service: &ObjectName, given: &super::allocate::Given) {
    let addresses: Vec<_> = given.addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(", ");
    match &given.lack {
        None => info!(%service, addresses, "has its addresses"),
        Some(lack) => warn!(%service, addresses, reason = lack.reason, "{}", lack.message),
    }
}
