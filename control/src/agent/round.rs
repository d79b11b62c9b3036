//! One round: what is wanted, what is there, the difference, carried out, told.
//!
//! A part that fails becomes a condition and leaves the other parts in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::route::{Node, node_flags};
use fairlead_common::service::ServiceKey;
use imbl::OrdMap;
use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use super::{Agent, DEFERRAL, LOOK_ANYWAY, RETRY, now};
use crate::api::types;
use crate::dataplane::affinity;
use crate::dataplane::apply::{self, Outcome};
use crate::desired::announce::{Programmed, aggregates, announcements_since};
use crate::desired::merge::merge_since;
use crate::desired::readiness::{self, Verdicts};
use crate::desired::surroundings::Surroundings;
use crate::desired::{BackendAddr, Condition, Desired, Frontend};
use crate::host::links::Link;
use crate::host::{self, pods, sysctl};
use crate::plan::routes::{NextHop, RouteStep, Routes};
use crate::plan::{self, Actual, Plan, Step, Store, Wanted};
use crate::telemetry::health::Latch;
use crate::view::State;

/// What became of the tables in a round.
struct Tables {
    actual: Arc<Actual>,
    programmed: OrdMap<Frontend, u32>,
    wake: Option<Duration>,
    in_sync: bool,
}

impl Agent {
    /// Does one round; returns how long the next may wait when nothing happens.
    pub(super) async fn round(&mut self) -> Duration {
        let began = now();
        let links = match self.links().await {
            Ok(links) => links,
            Err(error) => {
                // Nothing is concluded from not seeing: programs stay where they are.
                warn!(%error, "this round is left out");
                return RETRY;
            }
        };
        let (around, unseen) = self.look_around(&links).await;
        let mut desired = merge_since(
            &mut self.merged,
            &self.resources,
            &self.document,
            &self.node_name,
            Some(&around),
        );
        let mut conditions = desired.conditions.clone();
        conditions.extend(unseen);
        conditions.extend(self.advertise(&desired, &links));
        let verdicts = self
            .judge(&mut desired, began - self.started, &mut conditions)
            .await;
        let desired = Arc::new(desired);
        self.desired = Arc::clone(&desired);
        conditions.extend(self.exporter.follow().await);
        conditions.extend(self.health_checks.follow(&desired.health_checks).await);
        let without_speaker = self.speakers.follow(&desired, &self.document.bgp).await;
        let has_speakers = without_speaker.is_empty();
        conditions.extend(without_speaker);
        // Before the tables: a backend may be behind a route that has just been learnt.
        let routes = self.route(&mut conditions).await;
        // Before the programs: one that is attached to empty tables would let pods leave untranslated.
        let tables = self
            .program(&desired, &links, began - self.started, &mut conditions)
            .await;
        let answers_leave = |node: &Node| node.flags & node_flags::ANSWERS_LEAVE != 0;
        let found = self.devices.follow(
            &self.document.devices,
            self.document.bpf.xdp_mode,
            &links,
            tables.actual.node.as_ref().is_some_and(answers_leave),
        );
        let has_programs = found.covers(&self.document.devices);
        conditions.extend(found.conditions);
        let mut attachments = found.attachments;
        let sockets = self.sockets.follow(
            self.devices.loaded(),
            &self.document.socket_load_balancing,
            tables.actual.services.keys().any(ServiceKey::is_inside),
        );
        attachments.extend(sockets.attachment);
        conditions.extend(sockets.condition);
        let programmed = Programmed {
            services: tables.programmed,
            attached: found.uplink_attached,
        };
        let announcements = announcements_since(&mut self.offered, &desired, &programmed);
        // Before they are announced: what comes for them then finds its end.
        let wholes = announcements.values().flat_map(aggregates).collect();
        if let Err(error) = self.netlink.keep_blackholes(&wholes).await {
            conditions.push(trouble("host", "BlackholeRefused", &error));
        }
        self.speakers.announce(&announcements).await;

        let pods = self.pods(&mut conditions).await;
        let in_sync = tables.in_sync;
        // Last: pods come when it is written.
        let is_ready = in_sync && has_programs && has_speakers;
        let cidrs = &desired.node.pod_cidrs;
        let untold = self
            .pod_network
            .follow(&self.document, cidrs, &links, is_ready);
        conditions.extend(untold);
        self.say(&conditions);
        self.view.publish(State {
            actual: tables.actual,
            in_sync,
            attachments,
            announcements,
            routes,
            pods,
            conditions,
            speakers: self.speakers.handles(),
            bfd: self.speakers.bfd(),
            reporter: Some(self.prober.reporter()),
            drains: self.drains.drains().clone(),
            verdicts,
            reach: self.paths.reach.clone(),
            desired,
        });
        // After what they speak of can be seen.
        self.health.open_when(Latch::Tables, in_sync);
        self.health.open_when(Latch::Programs, has_programs);
        self.health.open_when(Latch::Speakers, has_speakers);
        debug!(took = ?(now() - began), "round");
        let wake = tables
            .wake
            .map(|at| at.saturating_sub(now() - self.started));
        wake.unwrap_or(LOOK_ANYWAY).min(LOOK_ANYWAY)
    }

    /// Takes away the backends that health checks find dead or that operators drain, and checks those that are
    /// to be checked.
    async fn judge(
        &mut self,
        desired: &mut Desired,
        now: Duration,
        conditions: &mut Vec<Condition>,
    ) -> Verdicts {
        self.checked.follow(desired);
        let targets = self.checked.targets(desired);
        let is_known = targets.iter().all(|target| self.prober.knows(target));
        let in_use = if is_known {
            BTreeSet::new()
        } else {
            self.backends_in_use(conditions)
        };
        let mut presumed: BTreeMap<_, bool> =
            targets.into_iter().map(|target| (target, false)).collect();
        if !in_use.is_empty() {
            for service in self.checked.services(desired) {
                let Some(check) = &service.check else {
                    continue;
                };
                let used = service.backends.keys().filter(|at| in_use.contains(at));
                presumed.extend(used.map(|at| (check.target(at), true)));
            }
        }
        self.prober.check(presumed).await;
        if let Err(error) = self.drains.forget_missing(desired, now) {
            conditions.push(trouble("drains", "DrainsUnwritable", &error));
        }
        conditions.extend(self.drains.condition());
        let verdicts = self.prober.verdicts();
        readiness::judge(
            desired,
            &self.checked,
            &verdicts,
            self.drains.drains(),
            &self.desired,
        );
        verdicts
    }

    /// The backends that rings name now: packets are sent to them.
    fn backends_in_use(&mut self, conditions: &mut Vec<Condition>) -> BTreeSet<BackendAddr> {
        let known = self.actual.clone();
        let actual = match known.map_or_else(|| self.store.observe().map(Arc::new), Ok) {
            Ok(actual) => actual,
            Err(error) => {
                conditions.push(trouble("tables", "TablesUnreadable", &error));
                return BTreeSet::new();
            }
        };
        let slots = actual.rings.values().flat_map(|slots| slots.iter());
        let named: BTreeSet<u32> = slots
            .flat_map(|slot| [slot.current, slot.previous])
            .collect();
        let rows = actual.backends.iter().filter(|(id, _)| named.contains(id));
        let in_use = rows.map(|(_, row)| plan::services::address(row)).collect();
        self.actual = Some(actual);
        in_use
    }

    async fn links(&self) -> Result<BTreeMap<String, Link>, host::Error> {
        let links = self.netlink.links().await?.into_values();
        Ok(links.map(|link| (link.name.clone(), link)).collect())
    }

    async fn pods(&self, conditions: &mut Vec<Condition>) -> Vec<types::Pod> {
        match self.netlink.pods().await {
            Ok(pods) => pods
                .into_iter()
                .map(|pod| types::Pod {
                    addresses: pod.addresses.iter().map(ToString::to_string).collect(),
                    device: pod.device,
                    name: pod.name,
                })
                .collect(),
            Err(error) => {
                conditions.push(trouble("host", "PodsUnreadable", &error));
                Vec::new()
            }
        }
    }

    /// Brings the tables to what is desired.
    async fn program(
        &mut self,
        desired: &Arc<Desired>,
        links: &BTreeMap<String, Link>,
        now: Duration,
        conditions: &mut Vec<Condition>,
    ) -> Tables {
        let configured = self
            .document
            .devices
            .iter()
            .filter_map(|d| links.get(&d.name));
        let pods = links.values().filter(|link| pods::name_of(link).is_some());
        let managed: Vec<&Link> = configured.chain(pods).collect();
        let ports = managed.iter().map(|link| link.index).collect();
        self.paths
            .follow(
                &mut self.enquirer,
                &self.netlink,
                desired,
                links,
                &ports,
                conditions,
            )
            .await;
        if let Err(error) = apply::set_tx_ports(&self.pins, &ports) {
            conditions.push(trouble("table TX_PORTS", "TableRefused", &error));
        }
        let host = plan::Host {
            devices: managed.iter().map(|link| (link.index, link.mac)).collect(),
            mtus: managed.iter().map(|link| (link.index, link.mtu)).collect(),
            veths: managed
                .iter()
                .filter(|link| link.is_veth)
                .map(|link| link.index)
                .collect(),
            busy_ports: busy_ports(conditions),
            namespace: self.namespace,
            port_secret: self.port_secret,
        };
        let wanted = Wanted {
            desired,
            reach: &self.paths.reach,
            ways: &self.paths.ways,
            host: &host,
            ring_sizes: plan::maglev::Sizes::FLEET,
            drain_window: self.document.load_balancer.drain_window,
        };
        let known = self
            .actual
            .take()
            .map_or_else(|| self.store.observe().map(Arc::new), Ok);
        let actual = match known {
            Ok(actual) => actual,
            Err(error) => {
                conditions.push(trouble("tables", "TablesUnreadable", &error));
                return Tables {
                    actual: Arc::default(),
                    programmed: OrdMap::new(),
                    wake: Some(now + RETRY),
                    in_sync: false,
                };
            }
        };
        let began = super::now();
        let carry_out = |steps: &[Step]| apply::run(steps, &mut self.store);
        let (plan, outcome) = plan::plan_and(&wanted, &actual, &self.memory, now, carry_out);
        conditions.extend(plan.conditions.iter().cloned());
        let left_out = outcome.obstacles.iter().filter(|o| o.left_out).count();
        let failed = outcome.obstacles.len() - left_out;
        self.meter
            .planned(super::now() - began, outcome.done, failed, left_out);
        conditions.extend(outcome.obstacles.iter().map(|obstacle| {
            Condition {
                object: "tables".to_owned(),
                origin: String::new(),
                reason: if obstacle.left_out {
                    "StepLeftOut"
                } else {
                    "StepFailed"
                }
                .to_owned(),
                message: format!("{}: {}", obstacle.step, obstacle.why),
            }
        }));
        let tables = self.after(plan, &outcome, actual, now);
        // After the rings: whoever comes now is given a backend by them.
        if let Err(error) = affinity::let_go(&self.pins, &tables.actual) {
            conditions.push(trouble("table AFFINITY", "TableRefused", &error));
        }
        tables
    }

    fn after(
        &mut self,
        plan: Plan,
        outcome: &Outcome,
        before: Arc<Actual>,
        now: Duration,
    ) -> Tables {
        let in_sync = outcome.is_complete();
        if outcome.done > 0 {
            info!(
                steps = outcome.done,
                failed = outcome.obstacles.len(),
                "tables programmed"
            );
        }
        let actual = if in_sync {
            Arc::new(plan.tables)
        } else {
            self.store.observe().map_or(before, Arc::new)
        };
        let mut programmed = plan.programmed;
        if in_sync {
            self.memory = plan.memory;
            self.actual = Some(actual.clone());
        } else {
            // Only what the kernel shows counts.
            let is_there = |frontend: &Frontend| {
                let row = actual.services.get(&plan::services::key(frontend));
                row.is_some_and(|row| row.slots > 0)
            };
            programmed = programmed
                .into_iter()
                .filter(|(frontend, _)| is_there(frontend))
                .collect();
        }
        Tables {
            actual,
            programmed,
            wake: if in_sync {
                plan.wake
            } else {
                Some(now + RETRY)
            },
            in_sync,
        }
    }

    /// Who is around, when peers are sought there, or spoken with from a device, or told its addresses.
    async fn look_around(
        &self,
        links: &BTreeMap<String, Link>,
    ) -> (Surroundings, Option<Condition>) {
        let mut configs = self.resources.cluster_configs.values();
        let mut peer_configs = self.resources.peer_configs.values();
        let mut advertisements = self.resources.advertisements.values();
        let is_asked = configs.any(|config| config.object.seeks_peers())
            || peer_configs.any(|config| config.object.spec.transport.source_interface.is_some())
            || advertisements.any(|told| told.object.names_a_device());
        if !is_asked {
            return (Surroundings::default(), None);
        }
        match self.netlink.surroundings(links).await {
            Ok(around) => (around, None),
            Err(error) => {
                let condition = trouble("host", "SurroundingsUnreadable", &error);
                (Surroundings::default(), Some(condition))
            }
        }
    }

    /// Lets peers that are sought on a link find us.
    fn advertise(
        &mut self,
        desired: &Desired,
        links: &BTreeMap<String, Link>,
    ) -> impl Iterator<Item = Condition> + use<> {
        let wanted: BTreeSet<&String> = desired
            .routers
            .values()
            .flat_map(|router| &router.links)
            .collect();
        let links = links.values().filter(|link| wanted.contains(&link.name));
        let failed = self.adverts.follow(links);
        failed.into_iter().map(|(name, error)| {
            let object = format!("device {name}");
            trouble(
                &object,
                "AdvertisementFailed",
                &format!("{error}; peers on this link do not find us"),
            )
        })
    }

    /// Puts learnt routes into the kernel's table and takes others of ours out.
    async fn route(&mut self, conditions: &mut Vec<Condition>) -> Vec<types::Route> {
        let learnt = self.speakers.learnt();
        let wanted: Routes = learnt
            .iter()
            .map(|(prefix, paths)| {
                let hops = paths.iter().map(|path| {
                    // On a link without addresses of its own only the link-local one is reached.
                    let on_link = path.interface.and(path.link_local).map(IpAddr::V6);
                    NextHop {
                        via: on_link.unwrap_or(path.next_hop),
                        dev: path.interface,
                    }
                });
                (*prefix, hops.collect())
            })
            .collect();
        self.settled |= self.speakers.are_complete() || now() - self.started > DEFERRAL;
        let mut refused: BTreeMap<IpNetwork, String> = BTreeMap::new();
        match self.netlink.learnt_routes().await {
            Ok(kernel) => {
                for step in plan::routes::plan(&wanted, &kernel) {
                    if !self.settled && matches!(step, RouteStep::Remove(_)) {
                        continue;
                    }
                    // A backend may be behind it.
                    self.paths.doubt();
                    if let Err(error) = self.netlink.apply_route(&step).await {
                        refused.insert(step.prefix(), error.to_string());
                    }
                }
            }
            Err(error) => {
                conditions.push(trouble("host", "RoutesUnreadable", &error));
                refused.extend(wanted.keys().map(|prefix| (*prefix, error.to_string())));
            }
        }
        conditions.extend(refused.iter().map(|(prefix, why)| Condition {
            object: format!("route {prefix}"),
            origin: String::new(),
            reason: "RouteRefused".to_owned(),
            message: why.clone(),
        }));
        wanted
            .iter()
            .map(|(prefix, hops)| {
                let why = refused.get(prefix);
                types::Route {
                    prefix: prefix.to_string(),
                    next_hops: hops.iter().map(|hop| hop.via.to_string()).collect(),
                    installed: why.is_none(),
                    reason: why.cloned().unwrap_or_else(|| "best path".to_owned()),
                }
            })
            .collect()
    }
}

fn busy_ports(conditions: &mut Vec<Condition>) -> Vec<RangeInclusive<u16>> {
    match sysctl::local_ports() {
        Ok(range) => vec![range],
        Err(error) => {
            conditions.push(trouble("host", "PortRangeUnreadable", &error));
            // The kernel's default.
            vec![32768..=60999]
        }
    }
}

pub(super) fn trouble(object: &str, reason: &str, error: &impl std::fmt::Display) -> Condition {
    Condition {
        object: object.to_owned(),
        origin: String::new(),
        reason: reason.to_owned(),
        message: error.to_string(),
    }
}
