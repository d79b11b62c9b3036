//! Keeps one BGP speaker per virtual router: started, changed by difference, stopped.
//!
//! A change of peers or announcements reaches the running speaker and resets no session that it need
//! not; a change of the router itself (its identifier, its port) starts it anew.
//!
//! Sessions have threads of their own: peers want a keepalive in time, whatever else the agent has to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use fairlead_bgp::config::{
    Announcement as Told, Announcements, ExportRule, GracefulRestart, ImportPolicy, PeerConfig,
    PeerRange, PrefixRule, SpeakerConfig,
};
use fairlead_bgp::wire::Family;
use fairlead_bgp::{Event, LearntPath};
use ipnetwork::IpNetwork;
use tokio::runtime::{self, Runtime};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bgp_io::bfd::Bfd;
use crate::bgp_io::record::Recorder;
use crate::bgp_io::{self, BgpHandle, LearntRoutes, Stopped};
use crate::config::document::{Bgp, Import};
use crate::desired::announce::{Prefixes, of_diff};
use crate::desired::{
    self, Condition, Desired, Neighbor, NodeState, PathAttributes, VirtualRouter,
};
use crate::telemetry::cause;

/// How many equal paths are used together, as routers of this class do.
const MULTIPATH: usize = 64;
/// Threads for all sessions: one speaker works while another one's octets are read and written.
const THREADS: usize = 2;

/// The speakers of this node.
#[derive(Debug)]
pub struct Speakers {
    /// By the instance's name.
    running: BTreeMap<String, Running>,
    /// Runs while a peer wants to be watched.
    bfd: Option<Bfd>,
    /// A learnt route changed somewhere.
    changed: mpsc::Sender<()>,
    /// The routers' peers kept the routes of an agent that ran before this one.
    restarting: bool,
    /// What the speakers are told is written down here.
    recorder: Option<Recorder>,
    /// Where they run; there until this is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Speakers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It is dropped inside another one, which must not wait.
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Running {
    config: SpeakerConfig,
    listen: Option<u16>,
    peers: Vec<PeerConfig>,
    ranges: Vec<PeerRange>,
    told: Option<Announcements>,
    /// What that was made from.
    prefixes: Prefixes,
    /// What announcements carry towards each peer.
    export: BTreeMap<IpAddr, Vec<ExportRule>>,
    handle: BgpHandle,
    /// Who has told all its routes, of which family.
    complete: watch::Receiver<BTreeSet<(String, Family)>>,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Speakers {
    /// None yet. `restarting`: the datapath of an earlier agent was found forwarding.
    ///
    /// # Errors
    /// No more threads can be started.
    pub fn new(
        changed: mpsc::Sender<()>,
        restarting: bool,
        recorder: Option<Recorder>,
    ) -> Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("fairlead-bgp")
            .enable_all()
            .build()
            .context("starting the threads of BGP sessions")?;
        Ok(Self {
            running: BTreeMap::new(),
            bfd: None,
            changed,
            restarting,
            recorder,
            runtime: Some(runtime),
        })
    }

    /// Makes the speakers those that are desired; says which could not be.
    pub async fn follow(&mut self, desired: &Desired, bgp: &Bgp) -> Vec<Condition> {
        let gone: Vec<String> = self
            .running
            .keys()
            .filter(|name| !desired.routers.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            info!(instance = name, "the virtual router is no longer desired");
            self.end(&name, Some("this BGP instance was removed")).await;
        }
        let mut conditions = Vec::new();
        conditions.extend(self.follow_bfd(desired).await);
        for (name, router) in &desired.routers {
            if let Err(error) = self.follow_one(name, router, &desired.node, bgp).await {
                warn!(
                    instance = name,
                    error = cause::line(&error),
                    "no BGP for this virtual router"
                );
                conditions.push(Condition {
                    object: router.object.clone(),
                    origin: String::new(),
                    reason: "SpeakerFailed".to_owned(),
                    message: cause::line(&error),
                });
            }
        }
        conditions
    }

    /// Runs BFD while a peer wants it.
    async fn follow_bfd(&mut self, desired: &Desired) -> Option<Condition> {
        let mut neighbors = desired.routers.values().flat_map(|r| r.neighbors.values());
        let is_wanted = neighbors.any(|neighbor| neighbor.profile.bfd.is_some());
        if is_wanted == self.bfd.is_some() {
            return None;
        }
        if let Some(bfd) = self.bfd.take() {
            bfd.stop().await;
        } else {
            match Bfd::start() {
                Ok(bfd) => self.bfd = Some(bfd),
                Err(error) => {
                    return Some(Condition {
                        object: "BFD".to_owned(),
                        origin: String::new(),
                        reason: "BfdFailed".to_owned(),
                        message: format!(
                            "{error}; peers are not watched, and strict ones stay down: is another BFD daemon running?"
                        ),
                    });
                }
            }
        }
        for running in self.running.values() {
            let watch = self.bfd.as_ref().map(Bfd::watch);
            // A speaker that has stopped is missed where it is asked.
            let _ = running.handle.set_bfd(watch).await;
        }
        None
    }

    async fn follow_one(
        &mut self,
        name: &str,
        router: &VirtualRouter,
        node: &NodeState,
        bgp: &Bgp,
    ) -> Result<()> {
        let asn = router.local_asn;
        let router_id = router
            .router_id
            .or(node.ipv4)
            .with_context(|| {
                format!(
                    "AS {asn} has no router id: give the Node an IPv4 InternalIP, the annotation cilium.io/bgp-virtual-router.{asn}: router-id=A.B.C.D, or a CiliumBGPNodeConfigOverride with routerID"
                )
            })?;
        let config = SpeakerConfig {
            local_as: asn,
            router_id,
            hostname: Some(bgp.hostname.clone().unwrap_or_else(|| node.name.clone())),
            multipath_limit: MULTIPATH,
        };
        let is_other =
            |running: &Running| running.config != config || running.listen != router.local_port;
        if self.running.get(name).is_some_and(is_other) {
            info!(
                instance = name,
                "the virtual router changed: its sessions start anew"
            );
            self.end(name, None).await;
        }
        if !self.running.contains_key(name) {
            let running = self.start(config, router.local_port)?;
            let watch = self.bfd.as_ref().map(Bfd::watch);
            running.handle.set_bfd(watch).await?;
            info!(instance = name, asn, %router_id, listen = router.local_port, "BGP speaker started");
            self.running.insert(name.to_owned(), running);
        }
        let peers = self.peers(router, node, bgp);
        let ranges = self.ranges(router, node, bgp);
        if let Some(running) = self.running.get_mut(name) {
            running.set_peers(peers, ranges).await?;
        }
        Ok(())
    }

    fn start(&self, config: SpeakerConfig, listen: Option<u16>) -> Result<Running> {
        let stop = CancellationToken::new();
        // The jitter must differ between nodes, not be secret.
        let seed = u64::from(u32::from(config.router_id)) << 32 | u64::from(config.local_as);
        let (handle, driver) = {
            let _inside = self.runtime.as_ref().map(Runtime::enter);
            bgp_io::start(
                config.clone(),
                seed,
                listen,
                self.recorder.as_ref(),
                stop.clone(),
            )
            .with_context(|| format!("listening on port {}", listen.unwrap_or_default()))?
        };
        let (complete_in, complete) = watch::channel(BTreeSet::new());
        let watcher = tokio::spawn(watch_speaker(
            handle.learnt(),
            handle.events(),
            complete_in,
            self.changed.clone(),
        ));
        Ok(Running {
            config,
            listen,
            peers: Vec::new(),
            ranges: Vec::new(),
            told: None,
            prefixes: Prefixes::new(),
            export: BTreeMap::new(),
            handle,
            complete,
            stop,
            tasks: [driver, watcher],
        })
    }

    fn peers(&self, router: &VirtualRouter, node: &NodeState, bgp: &Bgp) -> Vec<PeerConfig> {
        router
            .neighbors
            .iter()
            .filter(|(_, neighbor)| neighbor.profile.range.is_none())
            .map(|(&at, neighbor)| self.peer(at, neighbor, node, bgp))
            .collect()
    }

    fn ranges(&self, router: &VirtualRouter, node: &NodeState, bgp: &Bgp) -> Vec<PeerRange> {
        router
            .neighbors
            .iter()
            .filter_map(|(&at, neighbor)| {
                let range = neighbor.profile.range.as_ref()?;
                let mut template = self.peer(at, neighbor, node, bgp);
                // With a choice it is learnt from the OPEN.
                template.remote_as = match range.asns.iter().collect::<Vec<_>>()[..] {
                    [only] => *only,
                    _ => 0,
                };
                Some(PeerRange {
                    prefix: range.prefix,
                    asns: range.asns.clone(),
                    limit: range.limit,
                    template,
                })
            })
            .collect()
    }

    fn peer(
        &self,
        (address, port): (IpAddr, u16),
        neighbor: &Neighbor,
        node: &NodeState,
        bgp: &Bgp,
    ) -> PeerConfig {
        PeerConfig {
            alias: neighbor.name.clone(),
            port,
            hold_time: neighbor.hold,
            keepalive_time: neighbor.keepalive,
            connect_retry_time: neighbor.connect_retry,
            ebgp_multihop_ttl: neighbor.ebgp_multihop_ttl,
            families: neighbor.advertised.keys().copied().map(family).collect(),
            import: import(&bgp.import),
            max_prefixes: neighbor
                .profile
                .max_prefixes
                .or(bgp.max_prefixes)
                .map(|limit| limit as usize),
            graceful_restart: neighbor
                .graceful_restart
                .map(|restart_time| GracefulRestart {
                    restart_time,
                    restarting: self.restarting,
                    // The pinned datapath forwards without us.
                    forwarding_preserved: true,
                }),
            next_hop_v4: node.ipv4,
            next_hop_v6: node.ipv6,
            password: neighbor.password.clone(),
            bfd: neighbor.profile.bfd,
            ttl_security: neighbor.profile.ttl_security,
            passive: neighbor.profile.passive,
            shutdown: neighbor.profile.shutdown.clone(),
            graceful_shutdown: neighbor.profile.graceful_shutdown,
            transit: neighbor.profile.transit,
            long_lived_stale_time: neighbor.profile.long_lived_stale_time,
            add_path: neighbor.profile.add_path,
            role: neighbor.profile.role,
            role_strict: neighbor.profile.role_strict,
            local_address: neighbor.local_address,
            local_port: neighbor.local_port,
            interface: neighbor.interface,
            extended_next_hop: neighbor.interface.is_some(),
            ..PeerConfig::new(address.to_string(), address, neighbor.asn)
        }
    }

    /// Tells the peers what is announced.
    pub async fn announce(&mut self, all: &BTreeMap<String, Prefixes>) {
        for (instance, running) in &mut self.running {
            let all = all.get(instance).cloned().unwrap_or_default();
            if running.told.is_some() && running.prefixes.ptr_eq(&all) {
                continue;
            }
            // Before the announcements, so that none is told without its attributes.
            running.export = export(&all);
            let (peers, ranges) = (running.peers.clone(), running.ranges.clone());
            // A speaker that has stopped is missed where it is asked.
            let _ = running.set_peers(peers, ranges).await;
            let mut told = running.told.clone().unwrap_or_default();
            for change in running.prefixes.diff(&all) {
                let prefix = of_diff(&change);
                match all.get(&prefix).filter(|now| now.state.is_announced()) {
                    Some(announcement) => {
                        let peers = announcement.peers.keys().map(ToString::to_string);
                        let now = Told {
                            peers: Some(peers.collect()),
                            ..Told::default()
                        };
                        if told.insert(prefix, now).is_none() {
                            info!(instance, %prefix, "announced");
                        }
                    }
                    None => {
                        if told.remove(&prefix).is_some() {
                            info!(instance, %prefix, "withdrawn");
                        }
                    }
                }
            }
            if running.told.as_ref() == Some(&told) {
                running.prefixes = all;
                continue;
            }
            // A speaker that has stopped is missed where it is asked.
            if running.handle.set_announcements(told.clone()).await.is_ok() {
                running.told = Some(told);
                running.prefixes = all;
            }
        }
    }

    /// The learnt routes of all speakers together; of two with one prefix those of the first by name stand.
    pub fn learnt(&self) -> BTreeMap<IpNetwork, Arc<[LearntPath]>> {
        let mut all = BTreeMap::new();
        for running in self.running.values() {
            let learnt: Arc<LearntRoutes> = running.handle.learnt().borrow().clone();
            for (prefix, paths) in learnt.iter() {
                all.entry(prefix).or_insert_with(|| paths.clone());
            }
        }
        all
    }

    /// Whether every peer has told all its routes (End-of-RIB, RFC 4724 §2).
    pub fn are_complete(&self) -> bool {
        self.running.values().all(|running| {
            let complete = running.complete.borrow();
            running.peers.iter().all(|peer| {
                let families = peer.families.iter();
                families
                    .map(|family| (peer.name.clone(), *family))
                    .all(|told| complete.contains(&told))
            })
        })
    }

    /// Asks BFD, while it runs.
    pub fn bfd(&self) -> Option<Bfd> {
        self.bfd.clone()
    }

    /// Ways to ask them.
    pub fn handles(&self) -> BTreeMap<String, BgpHandle> {
        self.running
            .iter()
            .map(|(name, running)| (name.clone(), running.handle.clone()))
            .collect()
    }

    /// Stops all. With a text the peers are told that it is on purpose, and drop our routes; without
    /// one the connections just end, and peers with graceful restart keep them.
    pub async fn stop(&mut self, farewell: Option<&str>) {
        let all: Vec<String> = self.running.keys().cloned().collect();
        for name in all {
            self.end(&name, farewell).await;
        }
        // After the sessions: a peer that keeps routes over a restart has seen the session go by then.
        if let Some(bfd) = self.bfd.take() {
            bfd.stop().await;
        }
    }

    async fn end(&mut self, name: &str, farewell: Option<&str>) {
        let Some(running) = self.running.remove(name) else {
            return;
        };
        if let Some(text) = farewell {
            // Stopped already: there is nobody left to tell.
            let _ = running.handle.shutdown(text).await;
        }
        running.stop.cancel();
        drop(running.handle);
        for task in running.tasks {
            if let Err(error) = task.await {
                warn!(instance = name, %error, "a task of the speaker failed");
            }
        }
    }
}

impl Running {
    /// Makes the peers and ranges these, with what announcements carry towards each.
    async fn set_peers(
        &mut self,
        mut peers: Vec<PeerConfig>,
        mut ranges: Vec<PeerRange>,
    ) -> Result<(), Stopped> {
        let templates = ranges.iter_mut().map(|range| &mut range.template);
        for peer in peers.iter_mut().chain(templates) {
            let export = self.export.get(&peer.address);
            peer.export = export.cloned().unwrap_or_default();
        }
        if self.peers != peers {
            self.handle.set_peers(peers.clone()).await?;
            self.peers = peers;
        }
        if self.ranges != ranges {
            self.handle.set_ranges(ranges.clone()).await?;
            self.ranges = ranges;
        }
        Ok(())
    }
}

/// Wakes the agent when learnt routes change or a peer has told them all.
async fn watch_speaker(
    mut learnt: watch::Receiver<Arc<LearntRoutes>>,
    mut events: broadcast::Receiver<Event>,
    complete: watch::Sender<BTreeSet<(String, Family)>>,
    changed: mpsc::Sender<()>,
) {
    loop {
        tokio::select! {
            alive = learnt.changed() => if alive.is_err() {
                return;
            },
            event = events.recv() => match event {
                Ok(Event::EndOfRib { peer, family }) => {
                    complete.send_modify(|complete| {
                        complete.insert((peer, family));
                    });
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
        // A full channel holds a change that nobody has looked at: one is enough.
        let _ = changed.try_send(());
    }
}

fn family(family: desired::Family) -> Family {
    match family {
        desired::Family::Ipv4 => Family::Ipv4Unicast,
        desired::Family::Ipv6 => Family::Ipv6Unicast,
    }
}

/// What announcements carry towards each peer, as one rule for all prefixes that carry the same.
fn export(all: &Prefixes) -> BTreeMap<IpAddr, Vec<ExportRule>> {
    let mut prefixes: BTreeMap<IpAddr, Vec<(&PathAttributes, BTreeSet<IpNetwork>)>> =
        BTreeMap::new();
    let announced = all.iter().filter(|(_, one)| one.state.is_announced());
    for (prefix, announcement) in announced {
        for (peer, attributes) in &announcement.peers {
            if *attributes == PathAttributes::default() {
                continue;
            }
            let alike = prefixes.entry(*peer).or_default();
            match alike.iter_mut().find(|(known, _)| *known == attributes) {
                Some((_, prefixes)) => {
                    prefixes.insert(*prefix);
                }
                None => alike.push((attributes, BTreeSet::from([*prefix]))),
            }
        }
    }
    let rule = |(attributes, prefixes): (&PathAttributes, BTreeSet<IpNetwork>)| ExportRule {
        prefixes,
        communities: attributes.communities.clone(),
        large_communities: attributes.large_communities.clone(),
        local_pref: attributes.local_preference,
    };
    prefixes
        .into_iter()
        .map(|(peer, alike)| (peer, alike.into_iter().map(rule).collect()))
        .collect()
}

fn import(import: &Import) -> ImportPolicy {
    match import {
        Import::None => ImportPolicy::Nothing,
        Import::All => ImportPolicy::All,
        Import::Prefixes(rules) => ImportPolicy::Prefixes(
            rules
                .iter()
                .map(|rule| PrefixRule {
                    prefix: rule.prefix,
                    ge: Some(rule.ge),
                    le: Some(rule.le),
                })
                .collect(),
        ),
    }
}
