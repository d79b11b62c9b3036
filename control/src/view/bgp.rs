//! Answers about the BGP speakers: their peers, paths, rules and past.

mod group;
mod neighbor;
mod policy;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fairlead_bgp::Speaker;
use fairlead_bgp::bfd::Hops;
use fairlead_bgp::snapshot::{PathSnapshot, PeerSnapshot, RouteSnapshot};
use fairlead_bgp::wire::Attributes;
use ipnetwork::IpNetwork;

use super::{State, View, hint};
use crate::api::types::{self, RouteSet};
use crate::bgp_io::bfd::BfdSnapshot;
use crate::bgp_io::{Md5Drops, record};

impl View {
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

    /// `GET /v1/bgp/neighbor`: everything about a peer; two, where two virtual routers have it.
    ///
    /// # Errors
    /// There is no such peer, or a speaker has stopped.
    pub async fn neighbor(&self, peer: &str) -> Result<Vec<types::Neighbor>> {
        let drops = Md5Drops::read().unwrap_or_default();
        let found = self
            .of_peers(Some(peer), |speaker, now, name| {
                let router_id = speaker.config().router_id;
                Some((router_id, speaker.neighbor(name, now)?))
            })
            .await?;
        Ok(found
            .into_iter()
            .map(|(asn, (router_id, neighbor))| neighbor::row(asn, router_id, neighbor, drops))
            .collect())
    }

    /// `GET /v1/bgp/routes`.
    ///
    /// # Errors
    /// There is no such peer, or a speaker has stopped.
    pub async fn bgp_routes(
        &self,
        set: RouteSet,
        peer: Option<&str>,
    ) -> Result<Vec<types::BgpRoute>> {
        match set {
            RouteSet::Available => {
                let state = self.state.load_full();
                let mut rows = Vec::new();
                for speaker in state.speakers.values() {
                    let asn = speaker.local_as();
                    let routes = speaker.look(|speaker, _| speaker.loc_rib()).await?;
                    rows.extend(path_rows(asn, routes));
                }
                Ok(rows)
            }
            RouteSet::Received => {
                let told = self
                    .of_peers(peer, |speaker, _, name| Some(speaker.adj_rib_in(name)))
                    .await?;
                let rows = told.into_iter();
                Ok(rows
                    .flat_map(|(asn, routes)| path_rows(asn, routes))
                    .collect())
            }
            RouteSet::Advertised => {
                let told = self
                    .of_peers(peer, |speaker, _, name| {
                        Some((name.to_owned(), speaker.adj_rib_out(name)))
                    })
                    .await?;
                let mut rows = Vec::new();
                for (asn, (peer, routes)) in told {
                    rows.extend(routes.iter().map(|route| types::BgpRoute {
                        peer: peer.clone(),
                        reason: "advertised".to_owned(),
                        ..attributes_row(asn, route.prefix, &route.attributes)
                    }));
                }
                Ok(rows)
            }
        }
    }

    /// `GET /v1/bgp/why`: every path of one prefix, and what decides about each; none: nobody told it and
    /// it is not originated.
    ///
    /// # Errors
    /// A speaker has stopped.
    pub async fn bgp_why(&self, prefix: IpNetwork) -> Result<Vec<types::BgpRoute>> {
        let prefix = IpNetwork::new(prefix.network(), prefix.prefix())?;
        let state = self.state.load_full();
        let mut rows = Vec::new();
        for speaker in state.speakers.values() {
            let asn = speaker.local_as();
            let paths = speaker
                .look(move |speaker, _| speaker.paths(&prefix))
                .await?;
            rows.extend(paths.into_iter().map(|path| path_row(asn, prefix, path)));
        }
        Ok(rows)
    }

    /// `GET /v1/bgp/groups`: the peers that are told the same.
    ///
    /// # Errors
    /// A speaker has stopped.
    pub async fn bgp_groups(&self) -> Result<Vec<types::BgpGroup>> {
        let state = self.state.load_full();
        let mut rows = Vec::new();
        for speaker in state.speakers.values() {
            let asn = speaker.local_as();
            let groups = speaker.look(|speaker, _| speaker.groups()).await?;
            rows.extend(groups.into_iter().map(|group| group::row(asn, group)));
        }
        Ok(rows)
    }

    /// `GET /v1/bgp/policy`: the rules that decide which routes the sessions carry.
    ///
    /// # Errors
    /// There is no such peer, or a speaker has stopped.
    pub async fn bgp_policy(&self, peer: Option<&str>) -> Result<Vec<types::Policy>> {
        let found = self
            .of_peers(peer, |speaker, _, name| speaker.policy(name))
            .await?;
        let rows = found.into_iter();
        Ok(rows
            .flat_map(|(asn, policy)| policy::rows(asn, &policy))
            .collect())
    }

    /// `GET /v1/bgp/events`: what happened last, by time.
    ///
    /// # Errors
    /// A speaker has stopped.
    pub async fn bgp_events(&self) -> Result<Vec<types::BgpEvent>> {
        let state = self.state.load_full();
        let mut rows = Vec::new();
        for speaker in state.speakers.values() {
            let asn = speaker.local_as();
            let events = speaker.history().await?;
            rows.extend(events.into_iter().map(|event| types::BgpEvent {
                number: event.number,
                local_asn: asn,
                at: event.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
                peer: event.peer,
                what: event.what,
                why: event.why,
            }));
        }
        rows.sort_by(|a, b| a.at.cmp(&b.at));
        Ok(rows)
    }

    /// Asks the speakers about a peer, by its address, name or host name; about all of them without one.
    async fn of_peers<T: Send + 'static>(
        &self,
        peer: Option<&str>,
        question: impl Fn(&Speaker, Instant, &str) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Vec<(u32, T)>> {
        let state = self.state.load_full();
        let mut found = Vec::new();
        for speaker in state.speakers.values() {
            let asn = speaker.local_as();
            let (wanted, question) = (peer.map(ToOwned::to_owned), question.clone());
            let answers = speaker
                .look(move |speaker, now| {
                    let peers = speaker.peers(now).into_iter();
                    peers
                        .filter(|peer| wanted.as_ref().is_none_or(|name| is_called(peer, name)))
                        .filter_map(|peer| question(speaker, now, &peer.name))
                        .collect::<Vec<_>>()
                })
                .await?;
            found.extend(answers.into_iter().map(|answer| (asn, answer)));
        }
        if let Some(name) = peer
            && found.is_empty()
        {
            bail!("no peer has the address or the name {name:?}; `dpctl bgp peers` lists them");
        }
        Ok(found)
    }
}

/// The paths that a recording of speakers comes to, by their AS.
///
/// # Errors
/// The file is no whole recording.
pub fn replayed(file: &Path) -> Result<Vec<types::BgpRoute>> {
    let replay = record::replay(file)?;
    let speakers = replay.speakers.values();
    Ok(speakers
        .flat_map(|speaker| path_rows(speaker.config().local_as, speaker.loc_rib()))
        .collect())
}

fn is_called(peer: &PeerSnapshot, name: &str) -> bool {
    peer.name == name
        || peer.alias.as_deref() == Some(name)
        || peer.hostname.as_deref() == Some(name)
        || name.parse::<IpAddr>() == Ok(peer.address)
}

fn path_rows(local_asn: u32, routes: Vec<RouteSnapshot>) -> impl Iterator<Item = types::BgpRoute> {
    routes.into_iter().flat_map(move |route| {
        let paths = route.paths.into_iter();
        paths.map(move |path| path_row(local_asn, route.prefix, path))
    })
}

pub(super) async fn peers_of(state: &State) -> Vec<(u32, PeerSnapshot)> {
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

pub(super) fn is_established(peer: &PeerSnapshot) -> bool {
    peer.state == fairlead_bgp::fsm::State::Established
}

pub(super) fn peer_row(local_asn: u32, peer: PeerSnapshot, drops: Md5Drops) -> types::Peer {
    types::Peer {
        local_asn,
        peer_asn: peer.remote_as,
        address: peer.address.to_string(),
        port: peer.port,
        state: format!("{:?}", peer.state),
        since_s: peer.in_state.as_secs(),
        hint: hint::of(local_asn, &peer, drops),
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
        messages_received: peer.counters.received.total(),
        messages_sent: peer.counters.sent.total(),
        last_error: peer.last_error,
    }
}

pub(super) async fn bfd_of(state: &State) -> types::Bfd {
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
        path_identifier: Some(path.identifier).filter(|identifier| *identifier != 0),
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
    let rare = attributes.rare();
    communities.extend(rare.extended_communities.iter().map(ToString::to_string));
    let hex = |octets: &[u8]| {
        octets
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect::<String>()
    };
    communities.extend(
        rare.ipv6_extended_communities
            .iter()
            .map(|octets| format!("0x{}", hex(octets))),
    );
    let aggregator = rare.aggregator.map(|by| format!("aggregator {by}"));
    let others =
        rare.atomic_aggregate
            .then(|| "atomic-aggregate".to_owned())
            .into_iter()
            .chain(aggregator)
            .chain(
                rare.only_to_customer
                    .map(|asn| format!("only-to-customer {asn}")),
            )
            .chain(rare.unknown.iter().map(|attribute| {
                format!("attribute {} = 0x{}", attribute.code, hex(&attribute.value))
            }))
            .collect();
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
        others,
        path_identifier: None,
        best: false,
        multipath: false,
        reason: String::new(),
    }
}
