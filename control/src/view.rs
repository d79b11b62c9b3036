//! Answers to questions, composed from what the agent has published and what the tables count.
//!
//! The agent stores a [`State`] after each round; a question reads it without a lock, and reads
//! counters and translations from the pinned tables when it is asked. Not here: who asks
//! (`api::server`) and how it is printed (`dpctl`).

mod figures;
mod flows;
mod hint;
mod services;
pub mod trace;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use fairlead_bgp::bfd::Hops;
use fairlead_bgp::snapshot::{PathSnapshot, PeerSnapshot};
use fairlead_bgp::wire::Attributes;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::snat;
use fairlead_common::tables;
use ipnetwork::IpNetwork;

pub use self::flows::FlowQuestion;
use crate::api::types::{self, RouteSet};
use crate::bgp_io::bfd::{Bfd, BfdSnapshot};
use crate::bgp_io::{BgpHandle, Md5Drops};
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
    pins: Pins,
    started_s: u32,
}

impl View {
    /// A view of nothing yet. `started_s` is the coarse boot time at which the agent started.
    pub fn new(pins: Pins, started_s: u32) -> Self {
        Self {
            state: ArcSwap::default(),
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
            conditions: state.conditions.clone(),
        })
    }

    /// `GET /v1/bgp/peers`.
    pub async fn peers(&self) -> Result<Vec<types::Peer>> {
        let state = self.state.load_full();
        let peers = peers_of(&state).await;
        // Without the counters a hint says less; that is all.
        let drops = Md5Drops::read().unwrap_or_default();
        Ok(peers
            .into_iter()
            .map(|(asn, peer)| peer_row(asn, peer, drops))
            .collect())
    }

    /// `GET /v1/bgp/bfd`.
    pub async fn bfd(&self) -> Result<types::Bfd> {
        let state = self.state.load_full();
        Ok(bfd_of(&state).await)
    }

    /// `GET /v1/bgp/routes`.
    pub async fn bgp_routes(&self, set: RouteSet) -> Result<Vec<types::BgpRoute>> {
        let state = self.state.load_full();
        let mut rows = Vec::new();
        for speaker in state.speakers.values() {
            let snapshot = speaker.snapshot().await?;
            let asn = snapshot.config.local_as;
            match set {
                RouteSet::Available => {
                    for route in snapshot.routes {
                        let paths = route.paths.into_iter();
                        rows.extend(paths.map(|path| path_row(asn, route.prefix, path)));
                    }
                }
                RouteSet::Advertised => {
                    for (peer, routes) in snapshot.advertised {
                        rows.extend(routes.iter().map(|route| types::BgpRoute {
                            peer: peer.clone(),
                            reason: "advertised".to_owned(),
                            ..attributes_row(asn, route.prefix, &route.attributes)
                        }));
                    }
                }
            }
        }
        Ok(rows)
    }

    /// `GET /v1/bgp/why`: every path of one prefix, and what decides about each; none: nobody told it and
    /// it is not originated.
    pub async fn bgp_why(&self, prefix: IpNetwork) -> Result<Vec<types::BgpRoute>> {
        let prefix = IpNetwork::new(prefix.network(), prefix.prefix())?;
        let mut rows = self.bgp_routes(RouteSet::Available).await?;
        rows.retain(|row| row.prefix == prefix.to_string());
        Ok(rows)
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

async fn peers_of(state: &State) -> Vec<(u32, PeerSnapshot)> {
    let mut peers = Vec::new();
    for speaker in state.speakers.values() {
        let asn = speaker.local_as();
        // A speaker that has stopped has no peers.
        if let Ok(found) = speaker.peers().await {
            peers.extend(found.into_iter().map(|peer| (asn, peer)));
        }
    }
    peers
}

fn is_established(peer: &PeerSnapshot) -> bool {
    peer.state == fairlead_bgp::fsm::State::Established
}

fn peer_row(local_asn: u32, peer: PeerSnapshot, drops: Md5Drops) -> types::Peer {
    let established = is_established(&peer);
    types::Peer {
        local_asn,
        peer_asn: peer.remote_as,
        address: peer.address.to_string(),
        port: peer.port,
        state: format!("{:?}", peer.state),
        since_s: peer.in_state.as_secs(),
        hint: hint::of(&peer, established, drops),
        bfd: peer.bfd.map(|bfd| bfd.state.to_string()),
        hostname: peer.hostname,
        families: peer
            .families
            .iter()
            .map(|(family, counts)| types::PeerFamily {
                family: family.to_string(),
                received: counts.received,
                accepted: counts.accepted,
                advertised: counts.advertised,
            })
            .collect(),
        hold_s: peer.hold_time.map_or(0, |time| time.as_secs()),
        keepalive_s: peer.keepalive_time.map_or(0, |time| time.as_secs()),
        messages_received: peer.counters.received,
        messages_sent: peer.counters.sent,
        last_error: peer.last_error,
    }
}

async fn bfd_of(state: &State) -> types::Bfd {
    let BfdSnapshot {
        sessions,
        discarded,
    } = match &state.bfd {
        Some(bfd) => bfd.snapshot().await,
        None => BfdSnapshot::default(),
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    types::Bfd {
        sessions: sessions
            .into_iter()
            .map(|session| types::BfdSession {
                peer: session.key.peer.to_string(),
                local: session.key.local.map(|local| local.to_string()),
                multihop: session.key.hops == Hops::Multi,
                state: session.standing.state.to_string(),
                reason: session.standing.diagnostic.to_string(),
                since_s: session.in_state.as_secs(),
                transmit_interval_ms: ms(session.transmit_interval),
                detection_time_ms: ms(session.detection_time),
                remote_state: session.remote_state.to_string(),
                remote_reason: session.remote_diagnostic.to_string(),
                discriminator: session.discriminator,
                remote_discriminator: session.remote_discriminator,
                ups: session.ups,
                failures: session.failures,
                packets_sent: session.sent,
                packets_received: session.received,
            })
            .collect(),
        discarded: discarded
            .into_iter()
            .map(|(why, count)| (why.name().to_owned(), count))
            .collect(),
    }
}

fn path_row(local_asn: u32, prefix: IpNetwork, path: PathSnapshot) -> types::BgpRoute {
    let reason = match (&path.rejection, &path.reason) {
        (Some(rejection), _) => format!("rejected: {rejection}"),
        (None, Some(reason)) => reason.to_string(),
        (None, None) => "the only path".to_owned(),
    };
    types::BgpRoute {
        peer: path.peer.unwrap_or_else(|| "local".to_owned()),
        best: path.best,
        multipath: path.used && !path.best,
        reason,
        ..attributes_row(local_asn, prefix, &path.attributes)
    }
}

fn attributes_row(local_asn: u32, prefix: IpNetwork, attributes: &Attributes) -> types::BgpRoute {
    let mut communities: Vec<_> = attributes
        .communities
        .iter()
        .map(|community| format!("{}:{}", community >> 16, community & 0xffff))
        .collect();
    communities.extend(attributes.large_communities.iter().map(ToString::to_string));
    let as_path: Vec<_> = attributes.as_path.iter().map(u32::to_string).collect();
    types::BgpRoute {
        local_asn,
        prefix: prefix.to_string(),
        next_hop: attributes.next_hop.to_string(),
        peer: String::new(),
        as_path: as_path.join(" "),
        origin: format!("{:?}", attributes.origin).to_lowercase(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        communities,
        best: false,
        multipath: false,
        reason: String::new(),
    }
}

fn endpoint(addr: Addr, port: Port) -> String {
    std::net::SocketAddr::new(addr.ip(), port.number()).to_string()
}
