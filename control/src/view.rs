//! Answers to questions, composed from what the agent has published and what the tables count.
//!
//! The agent stores a [`State`] after each round; a question reads it without a lock, and reads
//! counters and translations from the pinned tables when it is asked. Not here: who asks
//! (`api::server`) and how it is printed (`dpctl`).

pub mod bgp;
mod figures;
mod flows;
mod hint;
mod services;
pub mod trace;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use arc_swap::ArcSwap;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::snat;
use fairlead_common::tables;
use ipnetwork::IpNetwork;

use self::bgp::{is_established, peers_of};
pub use self::flows::FlowQuestion;
use crate::api::types;
use crate::bgp_io::BgpHandle;
use crate::bgp_io::bfd::Bfd;
use crate::dataplane::pins::Pins;
use crate::dataplane::table::Pinned;
use crate::dataplane::{apply, observe};
use crate::desired::announce::Prefixes;
use crate::desired::drain::Drains;
use crate::desired::readiness::Verdicts;
use crate::desired::{Condition, Desired, Frontend};
use crate::health::Reporter;
use crate::plan::{Actual, Reach};

/// What the agent publishes after each round.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What the node should be.
    pub desired: Arc<Desired>,
    /// What the kernel's tables hold.
    pub actual: Arc<Actual>,
    /// Whether the last plan was carried out in full.
    pub in_sync: bool,
    /// Programs on devices.
    pub attachments: Vec<types::Attachment>,
    /// What is announced by each virtual router, and what is withheld and why.
    pub announcements: BTreeMap<String, Prefixes>,
    /// Learnt routes and what became of them.
    pub routes: Vec<types::Route>,
    /// Pods of this node.
    pub pods: Vec<types::Pod>,
    /// What is wrong or in conflict.
    pub conditions: Vec<Condition>,
    /// The speakers, by their instances' names.
    pub speakers: BTreeMap<String, BgpHandle>,
    /// BFD, while it runs.
    pub bfd: Option<Bfd>,
    /// Who knows what health checks found; absent: nobody checks yet.
    pub reporter: Option<Reporter>,
    /// What health checks said when the round began.
    pub verdicts: Verdicts,
    /// Which backends operators have drained.
    pub drains: Drains,
    /// How packets get to each backend's address.
    pub reach: imbl::OrdMap<IpAddr, Reach>,
}

/// Answers questions.
#[derive(Debug)]
pub struct View {
    state: ArcSwap<State>,
    /// Who gives addresses to services; it changes between rounds.
    giver: OnceLock<Arc<ArcSwap<types::LoadBalancerIpam>>>,
    pins: Pins,
    started_s: u32,
}

impl View {
    /// A view of nothing yet. `started_s` is the coarse boot time at which the agent started.
    pub fn new(pins: Pins, started_s: u32) -> Self {
        Self {
            state: ArcSwap::default(),
            giver: OnceLock::new(),
            pins,
            started_s,
        }
    }

    /// A view without an agent: what the pinned tables hold, and no names.
    pub fn of_pins(pins: Pins) -> Result<Self> {
        let actual = Arc::new(apply::observe(&pins)?);
        let view = Self::new(pins, 0);
        view.publish(State {
            actual,
            ..State::default()
        });
        Ok(view)
    }

    /// Replaces what was published before.
    pub fn publish(&self, state: State) {
        self.state.store(Arc::new(state));
    }

    /// From now on it is known who gives addresses to services.
    pub fn hear_giver(&self, giver: Arc<ArcSwap<types::LoadBalancerIpam>>) {
        // There is one in the life of an agent.
        let _ = self.giver.set(giver);
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<types::Status> {
        let state = self.state.load_full();
        let peers = peers_of(&state).await;
        let services: Vec<bool> = state
            .desired
            .services
            .iter()
            .filter(|(frontend, service)| service.is_announceable(frontend))
            .map(|(frontend, _)| announcement(&state, frontend).0)
            .collect();
        Ok(types::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: u64::from(observe::now_s()?.wrapping_sub(self.started_s)),
            node: state.desired.node.name.clone(),
            pod: std::env::var("FAIRLEAD_POD").ok(),
            pin_path: self.pins.root().display().to_string(),
            in_sync: state.in_sync,
            attachments: state.attachments.clone(),
            services: types::Tally {
                good: services.iter().filter(|announced| **announced).count(),
                all: services.len(),
            },
            peers: types::Tally {
                good: peers
                    .iter()
                    .filter(|(_, peer)| is_established(peer))
                    .count(),
                all: peers.len(),
            },
            learnt_routes: types::Tally {
                good: state.routes.iter().filter(|route| route.installed).count(),
                all: state.routes.len(),
            },
            egress_address: state.desired.egress.as_ref().map(|e| e.address.to_string()),
            pods: state.pods.clone(),
            drained: state.drains.iter().map(ToString::to_string).collect(),
            load_balancer_ipam: self.giver.get().map(|giver| (**giver.load()).clone()),
            conditions: state.conditions.clone(),
        })
    }

    /// `GET /v1/routes`.
    pub fn routes(&self) -> Result<Vec<types::Route>> {
        Ok(self.state.load().routes.clone())
    }

    /// `GET /v1/nat`.
    pub fn bindings(&self) -> Result<Vec<types::Binding>> {
        let now_s = observe::now_s()?;
        let table: Pinned<tables::SnatRev> = Pinned::open(&self.pins)?;
        let mut rows = Vec::new();
        for row in table.rows() {
            let (key, binding) = row?;
            let state = snat::State::from_row(binding.state);
            let idle = now_s.saturating_sub(binding.last_seen_s);
            let left = snat::timeout_s(key.proto, state).saturating_sub(idle);
            if snat::is_expired(&binding, key.proto, now_s) {
                continue;
            }
            rows.push(types::Binding {
                protocol: key.proto.to_string(),
                inside: endpoint(binding.inside, binding.inside_port),
                egress: endpoint(key.src, key.src_port),
                // An echo has one identifier, and no port at the other end.
                remote: match key.proto {
                    Proto::ICMP => key.dst.to_string(),
                    _ => endpoint(key.dst, key.dst_port),
                },
                state: state.name().to_owned(),
                idle_s: u64::from(idle),
                expires_in_s: u64::from(left),
            });
        }
        rows.sort_by(|a, b| (&a.inside, &a.remote).cmp(&(&b.inside, &b.remote)));
        Ok(rows)
    }

    /// `GET /v1/drops`: every reason, drops first.
    pub fn reasons(&self) -> Result<Vec<types::ReasonCount>> {
        let table: Pinned<tables::Reasons> = Pinned::open(&self.pins)?;
        let mut reasons: Vec<_> = Reason::ALL.iter().collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.verdict()));
        reasons
            .into_iter()
            .map(|&reason| {
                let count = table.count(&(reason as u32))?;
                Ok(types::ReasonCount {
                    reason: reason.name().to_owned(),
                    verdict: reason.verdict().name().to_owned(),
                    packets: count.packets,
                    bytes: count.bytes,
                    about: reason.about().to_owned(),
                })
            })
            .collect()
    }
}

/// Whether a service's address is announced by any virtual router, and why or why not.
fn announcement(state: &State, frontend: &Frontend) -> (bool, String) {
    let prefix = IpNetwork::from(frontend.addr);
    let found: Vec<_> = state
        .announcements
        .values()
        .filter_map(|all| all.get(&prefix))
        .map(|announcement| announcement.state)
        .collect();
    match found.iter().min() {
        Some(best) => (best.is_announced(), best.to_string()),
        None => (
            false,
            "no BGP peering policy or cluster configuration selects this node".to_owned(),
        ),
    }
}

fn endpoint(addr: Addr, port: Port) -> String {
    std::net::SocketAddr::new(addr.ip(), port.number()).to_string()
}
