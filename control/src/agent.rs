//! The composition root: the only room that knows every task and channel.
//!
//! ```text
//!  files, API server ─> source ──┐
//!  netlink ─> host/{links,ways} ┤                        ┌─> dataplane (pinned tables, links)
//!  bgp_io ──> learnt routes ────┼─> Agent: one round ────┼─> host (routes, neighbours)
//!  clock ───> ends of windows ──┤   after another        ├─> bgp_io (peers, announcements)
//!  health ──> verdicts ─────────┤                        ├─> health (whom to ask)
//!  api ─────> stop, drain ──────┘                        ├─> view (what dpctl and scrapers ask)
//!                                                        └─> telemetry (health, meter)
//! ```
//!
//! One task owns all state and does one round at a time: read what is wanted, plan, carry out, tell.
//! Whatever happens meanwhile starts the next round; nothing is missed, because a round looks at
//! everything.

mod clearing;
mod devices;
mod drains;
mod epoch;
mod lifecycle;
mod owner;
mod paths;
mod pod_network;
mod round;
mod sockets;
mod speakers;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_common::tables::{Services, Table};
use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::lifecycle::{
    add_pod, attach_decap, check_manifests, cleanup, detach_decap, list_pods, remove_pod,
};

use self::devices::Devices;
use self::drains::DrainBook;
use self::epoch::Epochs;
use self::paths::Paths;
use self::pod_network::PodNetwork;
use self::sockets::Sockets;
use self::speakers::Speakers;
use crate::api::server::{self, Order};
use crate::api::types::DrainOutcome;
use crate::bgp_io::record::Recorder;
use crate::config::Document;
use crate::dataplane::apply::KernelStore;
use crate::dataplane::load;
use crate::dataplane::observe;
use crate::dataplane::pins::Pins;
use crate::desired::drain::Drain;
use crate::desired::{Condition, Desired, announce, merge, readiness};
use crate::health::Prober;
use crate::host::adverts::Adverts;
use crate::host::reach::Enquirer;
use crate::host::{Netlink, links, namespace, sysctl, ways};
#[cfg(feature = "kubernetes")]
use crate::ipam;
use crate::plan::{Actual, Memory, Store};
use crate::source::Source;
#[cfg(feature = "kubernetes")]
use crate::source::kubernetes::Kubernetes;
use crate::source::manifests::Manifests;
use crate::source::resource::Resources;
use crate::telemetry::exporter::{Exporter, Told};
use crate::telemetry::health::Health;
use crate::telemetry::health_checks::HealthChecks;
use crate::telemetry::metrics::Meter;
use crate::view::View;

/// How often the host is looked at though nothing was heard: netlink may lose a message.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// How long routes of an earlier agent stay when the peers do not say that they have told theirs (RFC
/// 4724 §4.1's deferral).
const DEFERRAL: Duration = Duration::from_secs(30);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long changes are collected before a round that follows another one, so that a burst makes two.
const GATHER: Duration = Duration::from_millis(2);
/// How often the service manager hears that the loop turns.
const PING_EVERY: Duration = Duration::from_secs(1);
/// What peers are told by an agent that is stopped on purpose.
const FAREWELL: &str = "fairlead is stopped on this node";

/// Everything that the agent owns.
#[derive(Debug)]
struct Agent {
    document: Document,
    node_name: String,
    started: Instant,
    pins: Pins,
    netlink: Netlink,
    devices: Devices,
    sockets: Sockets,
    store: KernelStore,
    speakers: Speakers,
    adverts: Adverts,
    prober: Prober,
    drains: DrainBook,
    resources: Resources,
    merged: merge::Memory,
    offered: announce::Memory,
    checked: readiness::Checked,
    desired: Arc<Desired>,
    enquirer: Enquirer,
    paths: Paths,
    memory: Memory,
    /// What the tables hold; unknown after a step that failed.
    actual: Option<Arc<Actual>>,
    /// The cookie of the network namespace that the agent is in.
    namespace: u64,
    port_secret: u64,
    /// Whether routes that are not learnt (again) may be removed: at the start, those of an earlier
    /// agent stay until the peers have told theirs.
    settled: bool,
    /// What the last round found wrong, so that a log line is written once.
    said: Vec<Condition>,
    view: Arc<View>,
    health: Arc<Health>,
    meter: Meter,
    exporter: Exporter,
    health_checks: HealthChecks,
    pod_network: PodNetwork,
}

/// Runs until a signal or an order; leaves the datapath in place.
///
/// # Errors
/// The datapath cannot be loaded, another agent holds the pins or the socket, the recording cannot be written, or
/// a task failed.
pub async fn run(document: Document, withdraw_on_exit: bool, record: Option<&Path>) -> Result<()> {
    load::check_capabilities()?;
    let pins = Pins::new(&document.bpf.pin_path);
    pins.prepare()?;
    let lock = owner::lock(&pins, &document.socket).await?;
    let recorder = record
        .map(|file| {
            Recorder::create(file).with_context(|| format!("recording into {}", file.display()))
        })
        .transpose()?;
    // From here on: whoever is told to stop while the source is read stops as well.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = server::bind(&document.socket).await?;
    let loaded = load::load(&pins, &lock)?;
    // An earlier agent's services are in the kernel: packets are forwarded while nobody speaks for us.
    let restarting = loaded
        .fresh
        .iter()
        .all(|table| table.table != Services::NAME);
    for table in loaded.fresh.iter().filter(|table| table.replaced.is_some()) {
        info!("{table}");
    }
    let loaded_how = if loaded.reused {
        "used again"
    } else {
        "loaded"
    };
    for program in &loaded.programs {
        info!(
            program = program.name,
            tag = program.tag,
            instructions = program.verified_instructions,
            "{loaded_how}"
        );
    }
    for change in sysctl::forwarding()? {
        info!("{change}");
    }
    let (learnt_changed, mut learnt_changes) = mpsc::channel(1);
    let (verdict_changed, mut verdict_changes) = mpsc::channel(1);
    let (orders_in, mut orders) = mpsc::channel(1);
    let view = Arc::new(View::new(pins.clone(), observe::now_s()?));
    let stop = CancellationToken::new();
    let told = Told {
        view: view.clone(),
        meter: Meter::new(sysctl::kernel_release()?),
        health: Arc::new(Health::new(now())),
        now,
    };
    let mut agent = Agent {
        node_name: node_name(&document)?,
        started: now(),
        netlink: Netlink::open()?,
        devices: Devices::new(loaded),
        sockets: Sockets::default(),
        store: KernelStore::open(&pins)?,
        speakers: Speakers::new(learnt_changed, restarting, recorder)?,
        adverts: Adverts::default(),
        prober: Prober::start(random_u64()?, verdict_changed, now, stop.clone()),
        drains: DrainBook::open(&document.state_dir),
        resources: Resources::default(),
        merged: merge::Memory::default(),
        offered: announce::Memory::default(),
        checked: readiness::Checked::default(),
        desired: Arc::default(),
        enquirer: Enquirer::open()?,
        paths: Paths::default(),
        memory: Memory::default(),
        actual: None,
        namespace: namespace::cookie()?,
        port_secret: random_u64()?,
        settled: !restarting,
        said: Vec::new(),
        view: view.clone(),
        health: told.health.clone(),
        meter: told.meter.clone(),
        health_checks: HealthChecks::new(told.health.clone(), stop.clone()),
        pod_network: PodNetwork::new(&document, restarting),
        exporter: Exporter::new(document.telemetry.listen, told, stop.clone()),
        pins,
        document,
    };
    clearing::start(&agent.pins, agent.meter.clone(), stop.clone())?;
    info!(node = agent.node_name, pins = %agent.pins.root().display(), restarting, "agent started");

    let health = agent.health.clone();
    let api = server::serve(listener, view, health, orders_in, stop.clone());
    let api = tokio::spawn(api);
    let mut source = open_source(&agent.document, &mut agent.resources).await?;
    // While the source is read, which takes longer. A failure is told by the round, which reads again.
    agent.actual = agent.store.observe().ok().map(Arc::new);
    #[cfg(feature = "kubernetes")]
    let giver = start_ipam(&source, &agent, &stop);
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut epochs = None;
    let farewell = 'rounds: {
        // The first round must know everything, or routes that peers kept for us would be withdrawn.
        while !matches!(source, Source::Nowhere) {
            agent.health.beat(now());
            tokio::select! {
                () = source.next(&mut agent.resources) => break,
                _ = pings.tick() => ping_watchdog(),
                _ = terminate.recv() => break 'rounds withdraw_on_exit.then_some(FAREWELL),
                _ = interrupt.recv() => break 'rounds withdraw_on_exit.then_some(FAREWELL),
            }
        }
        let mut links = links::Watch::open()?;
        let mut ways = ways::Watch::open()?;
        epochs = Some(Epochs::begin(&agent.pins)?);

        // A moment, not a time to wait: the loop turns for other reasons meanwhile.
        let mut next_look = moment_after(agent.round().await);
        let mut round_ended = now();
        tell_service_manager(&agent.node_name);
        // Who gave an order is answered once a round has carried it out.
        let mut answers: Vec<(oneshot::Sender<Result<DrainOutcome>>, Result<DrainOutcome>)> =
            Vec::new();
        loop {
            agent.health.beat(now());
            let is_round_due = tokio::select! {
                () = source.next(&mut agent.resources) => true,
                change = links.next() => {
                    change.context("netlink has closed")?;
                    agent.paths.doubt();
                    true
                }
                change = ways.changed() => {
                    if change.context("netlink has closed")? == ways::Change::Routes {
                        agent.paths.doubt();
                    }
                    true
                }
                _ = learnt_changes.recv() => true,
                _ = verdict_changes.recv() => true,
                () = tokio::time::sleep_until(next_look.into()) => {
                    agent.paths.take_turn();
                    true
                }
                _ = pings.tick() => {
                    ping_watchdog();
                    false
                }
                order = orders.recv() => match order {
                    None => break None,
                    Some(Order::Stop) => break Some(FAREWELL),
                    Some(Order::Drain(drain, answer)) => {
                        answers.push((answer, agent.drain(&drain)));
                        true
                    }
                    Some(Order::Undrain(drain, answer)) => {
                        answers.push((answer, agent.undrain(&drain)));
                        true
                    }
                },
                _ = terminate.recv() => break withdraw_on_exit.then_some(FAREWELL),
                _ = interrupt.recv() => break withdraw_on_exit.then_some(FAREWELL),
            };
            if is_round_due {
                tokio::time::sleep_until((round_ended + GATHER).into()).await;
                // The round looks at everything: what was heard until now is in it.
                while links.next().now_or_never().flatten().is_some() {
                    agent.paths.doubt();
                }
                if ways.drain() == Some(ways::Change::Routes) {
                    agent.paths.doubt();
                }
                next_look = moment_after(agent.round().await);
                round_ended = now();
                for (answer, outcome) in answers.drain(..) {
                    // Who asked may have gone.
                    let _ = answer.send(outcome);
                }
            }
        }
    };
    info!(
        withdraw = farewell.is_some(),
        "agent stops; the datapath stays"
    );
    agent.speakers.stop(farewell).await;
    if let Some(epochs) = epochs
        && let Err(error) = epochs.end().await
    {
        warn!(%error, "ways that the datapath has learnt may be old for some seconds");
    }
    stop.cancel();
    #[cfg(feature = "kubernetes")]
    if let Some(giver) = giver {
        // It gives its lease back; a server that is away is not waited for.
        let _ = tokio::time::timeout(Duration::from_millis(500), giver).await;
    }
    // A client may hold its connection open: it is not waited for.
    if let Ok(served) = tokio::time::timeout(Duration::from_millis(200), api).await {
        served.context("the API's task")??;
    }
    if let Err(error) = std::fs::remove_file(&agent.document.socket) {
        warn!(%error, "removing the socket");
    }
    // Last: the next agent, which may wait for the lock, would lose its socket above.
    drop(lock);
    Ok(())
}

impl Agent {
    /// Drains backends that a service has.
    fn drain(&mut self, drain: &Drain) -> Result<DrainOutcome> {
        let backends = self.view.backends_of(drain);
        let mut changed = Vec::new();
        if !backends.is_empty() && self.drains.add(drain.clone())? {
            info!(%drain, "drained");
            changed.push(drain.to_string());
        }
        Ok(self.drain_outcome(changed, backends))
    }

    /// Takes away every drain that lies within what is named.
    fn undrain(&mut self, named: &Drain) -> Result<DrainOutcome> {
        let removed = self.drains.remove(named)?;
        for drain in &removed {
            info!(%drain, "drained no more");
        }
        let changed = removed.iter().map(ToString::to_string).collect();
        Ok(self.drain_outcome(changed, self.view.backends_of(named)))
    }

    fn drain_outcome(&self, changed: Vec<String>, backends: Vec<String>) -> DrainOutcome {
        DrainOutcome {
            changed,
            backends,
            drained: self
                .drains
                .drains()
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }

    /// Logs each condition when it appears and when it goes.
    fn say(&mut self, conditions: &[Condition]) {
        for c in conditions.iter().filter(|c| !self.said.contains(c)) {
            warn!(
                object = c.object,
                at = c.origin,
                reason = c.reason,
                "{}",
                c.message
            );
        }
        for c in self.said.iter().filter(|c| !conditions.contains(c)) {
            info!(
                object = c.object,
                reason = c.reason,
                "resolved: {}",
                c.message
            );
        }
        self.said = conditions.to_vec();
    }
}

async fn open_source(document: &Document, resources: &mut Resources) -> Result<Source> {
    #[cfg(feature = "kubernetes")]
    if document.kubernetes.enabled {
        let secrets = document.bgp.namespace_of_secrets();
        let (config, state) = (&document.kubernetes, &document.state_dir);
        let node = node_name(document)?;
        let kubernetes = Kubernetes::open(config, secrets, &node, state, now, resources);
        return Ok(Source::Kubernetes(Box::new(kubernetes.await?)));
    }
    Ok(match &document.manifests {
        Some(folder) => Source::Manifests(Box::new(
            Manifests::open(folder.clone()).context("watching the manifests")?,
        )),
        None => Source::Nowhere,
    })
}

/// Starts what gives addresses to services, where that is wanted.
#[cfg(feature = "kubernetes")]
fn start_ipam(
    source: &Source,
    agent: &Agent,
    stop: &CancellationToken,
) -> Option<tokio::task::JoinHandle<()>> {
    let Source::Kubernetes(kubernetes) = source else {
        return None;
    };
    agent.document.kubernetes.load_balancer_ipam.then(|| {
        let client = kubernetes.client();
        let identity = agent.node_name.clone();
        let standing = Arc::default();
        agent.view.hear_giver(Arc::clone(&standing));
        let giver = ipam::controller::run(client, identity, now, standing, stop.clone());
        tokio::spawn(giver)
    })
}

#[expect(clippy::disallowed_methods, reason = "the edge where time comes in")]
fn now() -> Instant {
    Instant::now()
}

fn moment_after(wait: Duration) -> Instant {
    now() + wait
}

fn node_name(document: &Document) -> Result<String> {
    match &document.node_name {
        Some(name) => Ok(name.clone()),
        None => nix::unistd::gethostname()
            .context("asking for the host name; set nodeName")?
            .into_string()
            .map_err(|name| {
                anyhow::anyhow!(
                    "the host name {} is not UTF-8; set nodeName",
                    name.display()
                )
            }),
    }
}

/// From the kernel's generator: outsiders must not predict ports.
fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(
        &mut std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?,
        &mut bytes,
    )?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Tells the service manager that the loop turns, when it wants to know (`WatchdogSec=`).
fn ping_watchdog() {
    if sd_notify::watchdog_enabled().is_some() {
        // A manager that cannot be told restarts the agent; traffic goes on.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn tell_service_manager(node: &str) {
    let status = format!("running on {node}");
    let states = [
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(&status),
    ];
    // Not run by a service manager: nobody to tell.
    let _ = sd_notify::notify(&states);
}
