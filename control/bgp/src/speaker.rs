//! All sessions and the routes of one virtual router: the only face of this crate.
//!
//! After every `handle_*` or mutator an embedder drains, in this order: [`Speaker::poll_transmit`],
//! [`Speaker::poll_connection`], [`Speaker::poll_event`], and then sleeps until
//! [`Speaker::poll_timeout`]. A connection to close is closed when what was transmitted on it
//! before has been written, so that a NOTIFICATION reaches the peer.

mod output;
mod ranges;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;

use crate::bfd;
use crate::config::{Announcements, PeerConfig, PeerRange, SpeakerConfig};
use crate::group::{Groups, Outlet};
use crate::jitter::Jitter;
use crate::originated::{Originated, of_diff};
use crate::peer::{Peer, Range};
use crate::policy::OwnPrefixes;
use crate::rib::{Hop, PeerId, Ranked, Rib, Selection};
use crate::session::Direction;
use crate::snapshot::{
    AdvertisedRoute, GroupSnapshot, LearntPath, NeighborSnapshot, PathSnapshot, PeerSnapshot,
    PolicySnapshot, RouteSnapshot,
};
use crate::wire::{Attributes, Family, Notification};

pub use output::{
    Accepted, ConnectionId, ConnectionRequest, Distance, DownReason, Event, Transmit,
};

/// See the module.
#[derive(Debug)]
pub struct Speaker {
    peers: BTreeMap<PeerId, Peer>,
    ranges: Vec<PeerRange>,
    next_peer: u32,
    shared: Shared,
}

/// What all peers of a speaker have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: SpeakerConfig,
    pub(crate) jitter: Jitter,
    pub(crate) next_connection: u64,
    pub(crate) connections: BTreeMap<ConnectionId, (PeerId, Direction)>,
    pub(crate) rib: Rib,
    pub(crate) groups: Groups,
    pub(crate) announcements: Announcements,
    /// What of these peers are told.
    pub(crate) originated: Originated,
    pub(crate) own: OwnPrefixes,
    /// Neighbours that BFD lost: paths by them are not used, whoever told them.
    pub(crate) unreachable: BTreeSet<IpAddr>,
    /// The embedder has said what it announces; before, no End-of-RIB is sent.
    pub(crate) announcements_known: bool,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) requests: VecDeque<ConnectionRequest>,
    pub(crate) events: VecDeque<Event>,
}

impl Speaker {
    /// A speaker without peers. The seed feeds the jitter of timers.
    pub fn new(config: SpeakerConfig, seed: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            ranges: Vec::new(),
            next_peer: 0,
            shared: Shared {
                rib: Rib::new(config.multipath_limit),
                groups: Groups::default(),
                config,
                jitter: Jitter::from_seed(seed),
                next_connection: 0,
                connections: BTreeMap::new(),
                announcements: Announcements::new(),
                originated: Originated::default(),
                own: OwnPrefixes::default(),
                unreachable: BTreeSet::new(),
                announcements_known: false,
                transmits: VecDeque::new(),
                requests: VecDeque::new(),
                events: VecDeque::new(),
            },
        }
    }

    /// Adds a peer, or changes the one of that name; starts its session.
    ///
    /// A change resets the session only if it needs another OPEN or another connection.
    pub fn set_peer(&mut self, config: PeerConfig, now: Instant) {
        self.give_way(&config, now);
        if let Some(id) = self.find(&config.name) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.reconfigure(config, now, &mut self.shared);
            }
            self.follow_reach();
            self.pass_on(now);
            return;
        }
        self.add(config, None, now);
    }

    fn add(&mut self, config: PeerConfig, range: Option<Range>, now: Instant) {
        self.next_peer += 1;
        let id = PeerId(self.next_peer);
        let mut peer = Peer::new(id, config, now);
        if let Some(range) = range {
            peer.belong(range);
        }
        peer.start(now, &mut self.shared);
        self.peers.insert(id, peer);
        self.watch_best();
    }

    /// Makes the peers exactly these, by difference; those that ranges let in stay.
    pub fn set_peers(&mut self, configs: Vec<PeerConfig>, now: Instant) {
        let wanted: BTreeSet<_> = configs.iter().map(|config| config.name.clone()).collect();
        let gone: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.range().is_none())
            .map(|peer| peer.name().to_owned())
            .filter(|name| !wanted.contains(name))
            .collect();
        for name in gone {
            self.remove_peer(&name, now);
        }
        for config in configs {
            self.set_peer(config, now);
        }
    }

    /// Removes a peer with Cease/Peer De-configured and forgets its routes.
    pub fn remove_peer(&mut self, name: &str, now: Instant) {
        let Some(mut peer) = self.find(name).and_then(|id| self.peers.remove(&id)) else {
            return;
        };
        peer.stop(&Notification::PEER_DECONFIGURED, now, &mut self.shared);
        peer.forget_routes(&mut self.shared);
        self.follow_reach();
        self.pass_on(now);
    }

    /// Makes the announcements exactly these, by difference, withdrawals first.
    ///
    /// The first call also releases the End-of-RIB markers: call it once everything that should
    /// be announced is known, even if that is nothing, so that a peer that keeps the routes of
    /// our predecessor does not drop them too early.
    pub fn set_announcements(&mut self, announcements: Announcements, now: Instant) {
        let announcements = canonical_all(announcements);
        let Shared {
            announcements: before,
            originated,
            own,
            ..
        } = &mut self.shared;
        originated.follow(before, &announcements);
        let mut differing = Vec::new();
        for change in before.diff(&announcements) {
            let (prefix, old, new) = of_diff(&change);
            match (old, new) {
                (None, Some(_)) => own.insert(*prefix),
                (Some(_), None) => own.remove(prefix),
                (Some(_), Some(_)) | (None, None) => continue,
            }
            differing.push(*prefix);
        }
        self.shared.announcements = announcements;
        self.shared.announcements_known = true;
        for peer in self.peers.values_mut() {
            for prefix in &differing {
                peer.judge_again_within(prefix, &mut self.shared);
            }
            peer.advertise(now, &mut self.shared);
        }
        self.pass_on(now);
    }

    /// Withdraws everything.
    pub fn withdraw_all(&mut self, now: Instant) {
        self.set_announcements(Announcements::new(), now);
    }

    /// Ends all sessions with Cease/Administrative Shutdown; they stay down.
    pub fn shutdown(&mut self, text: &str, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.stop(
                &Notification::administrative_shutdown(text),
                now,
                &mut self.shared,
            );
        }
    }

    /// Asks a peer for its routes of a family again (RFC 2918); whether it could be asked.
    pub fn request_refresh(&mut self, name: &str, family: Family, now: Instant) -> bool {
        let id = self.find(name);
        id.and_then(|id| self.peers.get_mut(&id))
            .is_some_and(|peer| peer.request_refresh(family, now, &mut self.shared))
    }

    /// A peer dialled us. `None`: nobody we know or want now; close it.
    pub fn handle_incoming(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<Accepted> {
        self.admit(remote, now);
        let peer = self.peers.values_mut().find(|peer| peer.is_at(remote))?;
        let connection = peer.handle_incoming(local, now, &mut self.shared);
        let distance = peer.distance(&self.shared.config);
        // A connection may replace another one, whose routes are then stale.
        self.pass_on(now);
        let connection = connection?;
        Some(Accepted {
            connection,
            distance,
        })
    }

    /// A BFD session that watches peers changed; which those are their configuration says.
    pub fn handle_bfd(&mut self, key: &bfd::Key, standing: bfd::Standing, now: Instant) {
        for peer in self.peers.values_mut() {
            if peer.is_watched_by(key) {
                peer.handle_bfd(standing, now, &mut self.shared);
            }
        }
        self.follow_reach();
        self.pass_on(now);
    }

    /// A dial was answered.
    pub fn handle_connected(&mut self, connection: ConnectionId, local: SocketAddr, now: Instant) {
        if let Some((peer, direction, shared)) = self.connection(connection) {
            peer.handle_connected(direction, local, now, shared);
        }
    }

    /// A dial failed.
    pub fn handle_connect_failed(&mut self, connection: ConnectionId, why: &str, now: Instant) {
        self.handle_closed(connection, why, now);
    }

    /// Bytes came in on a connection.
    pub fn handle_bytes(&mut self, connection: ConnectionId, bytes: &[u8], now: Instant) {
        if let Some((peer, direction, shared)) = self.connection(connection) {
            peer.handle_bytes(direction, bytes, now, shared);
        }
        self.dismiss(now);
        self.pass_on(now);
    }

    /// The connections that [`Self::handle_timeout`] would end because nothing was heard for the hold time.
    ///
    /// An embedder that was held up must look first whether the peer has said something meanwhile, and tell it by
    /// [`Self::handle_bytes`] or [`Self::handle_unread`]: the timer tells how long nothing was read, which is not
    /// how long nothing was said (RFC 4271 §6.5).
    pub fn silent(&self, now: Instant) -> impl Iterator<Item = ConnectionId> {
        self.peers.values().flat_map(move |peer| peer.silent(now))
    }

    /// There are bytes on a connection that have not been read yet.
    pub fn handle_unread(&mut self, connection: ConnectionId, now: Instant) {
        if let Some((peer, direction, _)) = self.connection(connection) {
            peer.handle_unread(direction, now);
        }
    }

    /// Bytes that were polled have been handed to the kernel.
    pub fn handle_written(&mut self, connection: ConnectionId, octets: usize, now: Instant) {
        if let Some((peer, direction, _)) = self.connection(connection) {
            peer.handle_written(direction, octets, now);
        }
        self.pass_on(now);
    }

    /// A connection is gone: closed by the peer, or failed.
    pub fn handle_closed(&mut self, connection: ConnectionId, why: &str, now: Instant) {
        if let Some((peer, direction, shared)) = self.connection(connection) {
            shared.connections.remove(&connection);
            peer.handle_closed(direction, why, now, shared);
        }
        self.dismiss(now);
        self.pass_on(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.handle_timeout(now, &mut self.shared);
        }
        self.dismiss(now);
        self.pass_on(now);
    }

    /// Bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.shared.transmits.pop_front()
    }

    /// A connection to open or close.
    pub fn poll_connection(&mut self) -> Option<ConnectionRequest> {
        self.shared.requests.pop_front()
    }

    /// Something that the embedder may want to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.events.pop_front()
    }

    /// Whether [`Self::take_changed_routes`] has something to give.
    pub fn has_changed_routes(&self) -> bool {
        self.shared.rib.has_changes()
    }

    /// The prefixes for which the paths that packets should take changed since the last call, in their
    /// order, with those paths, best first; none means that the prefix is gone.
    ///
    /// An embedder may let changes gather. Before it passes on an [`Event::EndOfRib`] it takes them: the
    /// routes come before the word that they were all.
    pub fn take_changed_routes(&mut self) -> Vec<(IpNetwork, Arc<[LearntPath]>)> {
        let changed = self.shared.rib.take_changed();
        // A table has few next hops.
        let mut known: BTreeMap<Selection, Arc<[LearntPath]>> = BTreeMap::new();
        changed
            .into_iter()
            .map(|(prefix, used)| {
                let paths = known
                    .entry(used)
                    .or_insert_with_key(|used| self.learnt_paths(used.as_slice()).into());
                (prefix, Arc::clone(paths))
            })
            .collect()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().filter_map(Peer::poll_timeout).min()
    }

    /// What this speaker is.
    pub fn config(&self) -> &SpeakerConfig {
        &self.shared.config
    }

    /// All peers, in the order of their names.
    pub fn peers(&self, now: Instant) -> Vec<PeerSnapshot> {
        let mut peers: Vec<_> = self
            .peers
            .values()
            .map(|peer| peer.snapshot(now, &self.shared))
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// Everything about a peer.
    pub fn neighbor(&self, name: &str, now: Instant) -> Option<NeighborSnapshot> {
        let id = self.find(name)?;
        let group = self.shared.groups.of(id);
        let group = group.map(|(number, group)| group.snapshot(number, |peer| self.name_of(peer)));
        Some(self.peers.get(&id)?.neighbor(group, now, &self.shared))
    }

    /// All update groups, in the order in which they came to be.
    pub fn groups(&self) -> Vec<GroupSnapshot> {
        let groups = self.shared.groups.iter();
        groups
            .map(|(number, group)| group.snapshot(number, |peer| self.name_of(peer)))
            .collect()
    }

    /// What decides which routes a peer's session carries.
    pub fn policy(&self, name: &str) -> Option<PolicySnapshot> {
        let peer = self.peers.get(&self.find(name)?)?;
        Some(peer.policy(&self.shared))
    }

    /// Every prefix learnt or originated, with its paths, their places and why.
    pub fn loc_rib(&self) -> Vec<RouteSnapshot> {
        let ranked = self.shared.rib.ranked();
        let mut routes: BTreeMap<_, _> = ranked
            .map(|(prefix, ranked)| (prefix, self.shown(&ranked).collect::<Vec<_>>()))
            .collect();
        for (prefix, announcement) in &self.shared.announcements {
            routes
                .entry(*prefix)
                .or_default()
                .insert(0, output::originated(prefix, announcement));
        }
        routes
            .into_iter()
            .map(|(prefix, paths)| RouteSnapshot { prefix, paths })
            .collect()
    }

    /// The paths of one prefix, learnt or originated, their places and why.
    pub fn paths(&self, prefix: &IpNetwork) -> Vec<PathSnapshot> {
        let announcement = self.shared.announcements.get(prefix);
        let ours = announcement.map(|announcement| output::originated(prefix, announcement));
        let ranked = self.shared.rib.ranked_of(prefix);
        ours.into_iter().chain(self.shown(&ranked)).collect()
    }

    /// What a peer told us, refused paths included.
    pub fn adj_rib_in(&self, name: &str) -> Vec<RouteSnapshot> {
        let Some(peer) = self.find(name) else {
            return Vec::new();
        };
        let mut told: Vec<_> = self.shared.rib.of(peer).map(|(prefix, _)| prefix).collect();
        // Several paths of a prefix stand together.
        told.dedup();
        let told = told.into_iter();
        told.map(|prefix| {
            let mut ranked = self.shared.rib.ranked_of(&prefix);
            ranked.retain(|ranked| ranked.path.peer == peer);
            RouteSnapshot {
                prefix,
                paths: self.shown(&ranked).collect(),
            }
        })
        .collect()
    }

    fn shown<'a>(&'a self, ranked: &'a [Ranked<'_>]) -> impl Iterator<Item = PathSnapshot> + 'a {
        ranked.iter().map(|ranked| PathSnapshot {
            peer: self.name_of(ranked.path.peer),
            attributes: Attributes::clone(&ranked.path.attributes),
            best: ranked.best,
            used: ranked.used,
            reason: ranked.reason,
            rejection: ranked.path.rejection,
            stale: ranked.path.stale,
            identifier: ranked.identifier,
        })
    }

    /// What a peer was told.
    pub fn adj_rib_out(&self, name: &str) -> Vec<AdvertisedRoute> {
        self.find(name)
            .and_then(|id| self.peers.get(&id))
            .map(|peer| peer.advertised(&self.shared))
            .unwrap_or_default()
    }

    /// The learnt routes that packets should take, best path first.
    pub fn learnt(&self) -> BTreeMap<IpNetwork, Vec<LearntPath>> {
        self.shared
            .rib
            .prefixes()
            .map(|prefix| {
                (
                    prefix,
                    self.learnt_paths(self.shared.rib.used(&prefix).as_slice()),
                )
            })
            .filter(|(_, paths)| !paths.is_empty())
            .collect()
    }

    /// Judges the paths again whose next hop BFD lost or found.
    fn follow_reach(&mut self) {
        let unreachable: BTreeSet<IpAddr> = self
            .peers
            .values()
            .filter(|peer| peer.is_unreachable())
            .map(Peer::address)
            .collect();
        let before = std::mem::replace(&mut self.shared.unreachable, unreachable);
        let differing: Vec<IpAddr> = before
            .symmetric_difference(&self.shared.unreachable)
            .copied()
            .collect();
        for next_hop in differing {
            for peer in self.peers.values() {
                peer.judge_again_by(next_hop, &mut self.shared);
            }
        }
    }

    /// Tells the peers that want it of best paths that changed.
    fn pass_on(&mut self, now: Instant) {
        self.watch_best();
        let changed = self.shared.rib.take_best_changed();
        // They are not looked at while they speak.
        let mut groups = std::mem::take(&mut self.shared.groups);
        let mut outlet = Outlet {
            peers: &mut self.peers,
            shared: &mut self.shared,
            now,
            pace: groups.pace,
        };
        groups.pass_on(&changed, &mut outlet);
        self.shared.groups = groups;
        for peer in self.peers.values_mut() {
            peer.mark_ends(now, &mut self.shared);
        }
    }

    fn watch_best(&mut self) {
        let is_wanted = self.peers.values().any(Peer::is_passed_to);
        self.shared.rib.watch_best(is_wanted);
    }

    fn learnt_paths(&self, hops: &[Hop]) -> Vec<LearntPath> {
        hops.iter()
            .filter_map(|hop| {
                let peer = self.peers.get(&hop.peer)?;
                Some(LearntPath {
                    next_hop: hop.next_hop,
                    link_local: hop.link_local,
                    interface: peer.interface(),
                    peer: peer.name().to_owned(),
                })
            })
            .collect()
    }

    fn find(&self, name: &str) -> Option<PeerId> {
        self.peers
            .iter()
            .find(|(_, peer)| peer.name() == name)
            .map(|(id, _)| *id)
    }

    fn name_of(&self, peer: PeerId) -> Option<String> {
        self.peers.get(&peer).map(|peer| peer.name().to_owned())
    }

    fn connection(
        &mut self,
        connection: ConnectionId,
    ) -> Option<(&mut Peer, Direction, &mut Shared)> {
        let (id, direction) = *self.shared.connections.get(&connection)?;
        let peer = self.peers.get_mut(&id)?;
        Some((peer, direction, &mut self.shared))
    }
}

/// The announcements, with host bits zero; they are the very same where that is so already.
fn canonical_all(announcements: Announcements) -> Announcements {
    let is_canonical = |prefix: &IpNetwork| canonical(prefix).as_ref() == Some(prefix);
    if announcements.keys().all(is_canonical) {
        return announcements;
    }
    let all = announcements.into_iter();
    all.filter_map(|(prefix, announcement)| Some((canonical(&prefix)?, announcement)))
        .collect()
}

/// The prefix with its host bits cleared.
fn canonical(prefix: &IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(prefix.network(), prefix.prefix()).ok()
}

#[cfg(test)]
mod tests;
