//! One neighbour: its two sessions, which of them stays, and what follows from that.
//!
//! One session dials, the other is dialled. When both get an OPEN they collide and one is closed
//! (RFC 4271 §6.8). While one is past its OPENs the other rests; when that one ends both start
//! again, damped after a fault.
//!
//! Not for: what is said about a route (`advertise`), keeping routes over a restart (`restart`).

mod advertise;
mod intake;
mod reach;
mod refresh;
mod restart;
mod standing;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::{PeerConfig, SpeakerConfig};
use crate::fsm::{Event, State};
use crate::originated::Table;
use crate::rib::PeerId;
use crate::session::{Context, Direction, Negotiated, Output, Session, Timer, Trigger};
use crate::snapshot::Counters;
use crate::speaker::{ConnectionId, ConnectionRequest, Distance, DownReason, Shared, Transmit};
use crate::wire::{Family, Notification, Open};
use reach::Reach;

/// A session younger than this is not replaced by a new connection: that one is a collision.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    id: PeerId,
    config: PeerConfig,
    /// The range that let it in.
    range: Option<Range>,
    enabled: bool,
    dialling: Session,
    dialled: Session,
    starts: BTreeMap<Direction, Instant>,
    faults: u32,
    established: Option<Established>,
    /// The latest session, by whose terms routes kept over a restart are judged.
    latest: Option<Established>,
    established_count: u64,
    /// State as shown, and since when.
    shown: (State, Instant),
    last_error: Option<DownReason>,
    /// How and when the last established session ended.
    last_reset: Option<(Instant, DownReason)>,
    /// The last NOTIFICATION of either side, when, and whether it was ours.
    last_notification: Option<(Instant, bool, Notification)>,
    /// Its latest OPEN.
    heard: Option<Open>,
    /// Families of which it has told all in this session.
    end_of_rib: BTreeSet<Family>,
    /// The R bit of the next OPEN.
    restarting: bool,
    /// Families whose routes are kept while the peer restarts.
    stale: BTreeMap<Family, Kept>,
    /// Families that it is telling again, and until when it may take (RFC 7313 §4).
    confirming: BTreeMap<Family, Instant>,
    /// Families that it is told again, and not yet that this is over.
    told_again: BTreeSet<Family>,
    /// Adj-RIB-Out of our own prefixes.
    sent: Table,
    end_of_rib_sent: bool,
    without_next_hop: BTreeMap<Family, usize>,
    reach: Reach,
    counters: Counters,
}

/// The range that a peer came from.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    pub(crate) name: String,
    /// The ASes that it may be of; any when empty.
    pub(crate) asns: BTreeSet<u32>,
}

/// How long routes are kept that the peer has not confirmed.
#[derive(Debug, Clone, Copy)]
struct Kept {
    until: Instant,
    /// Not longer than this, however often the peer comes and goes (RFC 8538 §4.1).
    bound: Instant,
    /// Its restart time is over (RFC 9494 §4.2).
    is_long_lived: bool,
}

/// A session in which routes flow.
#[derive(Debug, Clone)]
struct Established {
    direction: Direction,
    since: Instant,
    terms: Arc<Negotiated>,
    local_address: Option<IpAddr>,
}

impl Peer {
    pub(crate) fn new(id: PeerId, config: PeerConfig, now: Instant) -> Self {
        Self {
            id,
            range: None,
            enabled: true,
            dialling: Session::new(Direction::Active),
            dialled: Session::new(Direction::Passive),
            starts: BTreeMap::new(),
            faults: 0,
            established: None,
            latest: None,
            established_count: 0,
            shown: (State::Idle, now),
            last_error: None,
            last_reset: None,
            last_notification: None,
            heard: None,
            end_of_rib: BTreeSet::new(),
            restarting: config
                .graceful_restart
                .is_some_and(|restart| restart.restarting),
            stale: BTreeMap::new(),
            confirming: BTreeMap::new(),
            told_again: BTreeSet::new(),
            sent: Table::default(),
            end_of_rib_sent: false,
            without_next_hop: BTreeMap::new(),
            reach: Reach::default(),
            counters: Counters::default(),
            config,
        }
    }

    /// Makes it a peer of a range.
    pub(crate) fn belong(&mut self, range: Range) {
        self.range = Some(range);
    }

    /// The name of the range that let it in.
    pub(crate) fn range(&self) -> Option<&str> {
        self.range.as_ref().map(|range| range.name.as_str())
    }

    /// Whether a range let it in and nothing is left of it: no connection, no rest after a fault, no routes that are
    /// kept over a restart.
    pub(crate) fn is_over(&self) -> bool {
        self.range.is_some() && self.dialled.state() == State::Active && self.stale.is_empty()
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.config.address
    }

    pub(crate) const fn interface(&self) -> Option<u32> {
        self.config.interface
    }

    /// Whether a connection from here is the peer's.
    pub(crate) fn is_at(&self, remote: SocketAddr) -> bool {
        let scope = match remote {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => Some(v6.scope_id()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => None,
        };
        let is_on_link =
            self.config.interface.is_none() || scope.is_none() || self.config.interface == scope;
        self.config.address == remote.ip().to_canonical() && is_on_link
    }

    /// How far away the peer may be; internal peers any number of hops, unless RFC 5082 guards them.
    pub(crate) fn distance(&self, speaker: &SpeakerConfig) -> Distance {
        let is_external = self.config.remote_as != speaker.local_as;
        match self.config.ttl_security {
            Some(hops) => Distance {
                ttl: Some(u8::MAX),
                least_ttl: Some(u8::MAX - hops.saturating_sub(1)),
            },
            None => Distance {
                ttl: is_external.then_some(self.config.ebgp_multihop_ttl),
                least_ttl: None,
            },
        }
    }

    /// Starts both sessions, without delay, unless the configuration wants none.
    pub(crate) fn start(&mut self, now: Instant, shared: &mut Shared) {
        if let Some(text) = &self.config.shutdown {
            self.enabled = false;
            self.last_error = Some(DownReason::ShutDown(text.clone()));
            return;
        }
        self.enabled = true;
        self.schedule(Direction::Passive, now);
        self.schedule(Direction::Active, now);
        self.run_starts(now, shared);
    }

    /// Ends both sessions for good and keeps them down.
    pub(crate) fn stop(&mut self, why: &Notification, now: Instant, shared: &mut Shared) {
        let trigger = || Trigger::answered_for_good(Event::ManualStop, why.clone());
        self.stop_by(trigger, now, shared);
    }

    /// Ends both sessions and keeps them down.
    fn stop_by(&mut self, trigger: impl Fn() -> Trigger, now: Instant, shared: &mut Shared) {
        self.enabled = false;
        self.starts.clear();
        for direction in Direction::BOTH {
            self.step(direction, trigger(), now, shared);
        }
    }

    /// Takes a new configuration; resets the session only if that is needed.
    pub(crate) fn reconfigure(&mut self, config: PeerConfig, now: Instant, shared: &mut Shared) {
        let reset = self.config.needs_reset(&config);
        let was_shut_down = self.config.shutdown.is_some();
        let stop_dialling = config.passive && !self.config.passive;
        let start_dialling = !config.passive && self.config.passive;
        let judge_again = self.config.import != config.import
            || self.config.next_hop_v4 != config.next_hop_v4
            || self.config.next_hop_v6 != config.next_hop_v6;
        let is_another = self.config.address != config.address
            || self.config.remote_as != config.remote_as
            || config.graceful_restart.is_none();
        let watched_by = |config: &PeerConfig| config.bfd_session().map(|(key, _)| key);
        if watched_by(&self.config) != watched_by(&config) {
            self.forget_standing();
        }
        self.config = config;
        if let Some(text) = self.config.shutdown.clone() {
            let farewell = Notification::administrative_shutdown(&text);
            self.stop(&farewell, now, shared);
            self.forget_routes(shared);
            self.start(now, shared);
            return;
        }
        if was_shut_down {
            self.start(now, shared);
            return;
        }
        if reset {
            let why = Notification::CONFIGURATION_CHANGED;
            if is_another {
                // Nobody is coming back for what was kept over a restart.
                self.stop(&why, now, shared);
                self.forget_routes(shared);
            } else {
                let trigger = || Trigger::answered(Event::ManualStop, why.clone());
                self.stop_by(trigger, now, shared);
            }
            self.start(now, shared);
            return;
        }
        if stop_dialling && self.dialling.state() < State::OpenSent {
            self.starts.remove(&Direction::Active);
            self.step(
                Direction::Active,
                Trigger::of(Event::AutomaticStop),
                now,
                shared,
            );
        }
        if start_dialling && self.enabled && self.dialled.state() < State::OpenSent {
            self.schedule(Direction::Active, now);
            self.run_starts(now, shared);
        }
        if judge_again {
            self.judge_all_again(shared);
        }
        self.limit_prefixes(now, shared);
        self.find_group(shared);
        self.advertise(now, shared);
        // A session may have waited for a BFD session that is not wanted any more.
        self.end_rests(now, shared);
    }

    pub(crate) fn handle_incoming(
        &mut self,
        local: SocketAddr,
        now: Instant,
        shared: &mut Shared,
    ) -> Option<ConnectionId> {
        if let Some(established) = &self.established
            && self.keeps_routes()
            && now.duration_since(established.since) >= REPLACEABLE_AFTER
        {
            let direction = established.direction;
            let trigger = Trigger::because(Event::TcpFails, DownReason::Replaced);
            self.step(direction, trigger, now, shared);
        } else if self.dialled.state() == State::OpenSent {
            // The peer gave up the connection before this one.
            let trigger = Trigger::because(Event::TcpFails, DownReason::Replaced);
            self.step(Direction::Passive, trigger, now, shared);
        }
        if self.dialled.state() != State::Active {
            return None;
        }
        shared.next_connection += 1;
        let id = ConnectionId(shared.next_connection);
        shared.connections.insert(id, (self.id, Direction::Passive));
        self.dialled.accept(id, local);
        let trigger = Trigger::of(Event::TcpConfirmed);
        self.step(Direction::Passive, trigger, now, shared);
        Some(id)
    }

    pub(crate) fn handle_connected(
        &mut self,
        direction: Direction,
        local: SocketAddr,
        now: Instant,
        shared: &mut Shared,
    ) {
        self.session_mut(direction).connected_from(local);
        self.step(direction, Trigger::of(Event::TcpAcked), now, shared);
    }

    pub(crate) fn handle_closed(
        &mut self,
        direction: Direction,
        why: &str,
        now: Instant,
        shared: &mut Shared,
    ) {
        self.session_mut(direction).forget_connection();
        // What a peer said says more than that it does not answer since.
        let said = matches!(
            self.last_error,
            Some(DownReason::Sent(_) | DownReason::Received(_))
        );
        if self.session(direction).state() < State::Established && !said {
            self.last_error = Some(DownReason::Closed(why.to_owned()));
        }
        let trigger = Trigger::because(Event::TcpFails, DownReason::Closed(why.to_owned()));
        self.step(direction, trigger, now, shared);
    }

    pub(crate) fn handle_written(&mut self, direction: Direction, octets: usize, now: Instant) {
        self.session_mut(direction).written(octets, now);
    }

    /// The connections on which nothing was heard for the hold time.
    pub(crate) fn silent(&self, now: Instant) -> impl Iterator<Item = ConnectionId> {
        let sessions = [&self.dialling, &self.dialled].into_iter();
        sessions.filter_map(move |session| session.silent(now))
    }

    pub(crate) fn handle_unread(&mut self, direction: Direction, now: Instant) {
        self.session_mut(direction).heard_unread(now);
    }

    pub(crate) fn handle_bytes(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        now: Instant,
        shared: &mut Shared,
    ) {
        let connection = self.session(direction).connection();
        self.session_mut(direction).receive(bytes);
        while connection.is_some() && self.session(direction).connection() == connection {
            match self.session_mut(direction).next_message() {
                Ok(Some(message)) => {
                    self.handle_message(direction, message, now, shared);
                }
                Ok(None) => break,
                Err(trigger) => self.step(direction, trigger, now, shared),
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.dialling.poll_timeout(), self.dialled.poll_timeout()]
            .into_iter()
            .flatten()
            .chain(self.starts.values().copied())
            .chain(self.stale.values().map(|kept| kept.until))
            .chain(self.confirming.values().copied())
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        self.sweep_overdue(now, shared);
        self.end_overdue_confirming(now, shared);
        self.run_starts(now, shared);
        for direction in Direction::BOTH {
            while let Some(timer) = self.session_mut(direction).take_due_timer(now) {
                let trigger = match timer {
                    Timer::ConnectRetry => Trigger::of(Event::ConnectRetryExpires),
                    Timer::Hold => Trigger::of(Event::HoldExpires),
                    Timer::Keepalive => Trigger::of(Event::KeepaliveExpires),
                    Timer::SendHold => {
                        Trigger::because(Event::SendHoldExpires, DownReason::SendHoldExpired)
                    }
                };
                self.step(direction, trigger, now, shared);
            }
        }
    }

    fn step(&mut self, direction: Direction, trigger: Trigger, now: Instant, shared: &mut Shared) {
        let outputs = self.outputs_of(direction, trigger, now, shared);
        self.perform(direction, outputs, now, shared);
    }

    fn outputs_of(
        &mut self,
        direction: Direction,
        trigger: Trigger,
        now: Instant,
        shared: &mut Shared,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        let session = match direction {
            Direction::Active => &mut self.dialling,
            Direction::Passive => &mut self.dialled,
        };
        let mut context = Context {
            speaker: &shared.config,
            peer: &self.config,
            jitter: &mut shared.jitter,
            next_connection: &mut shared.next_connection,
            restarting: self.restarting,
            now,
        };
        session.step(trigger, &mut context, &mut outputs);
        outputs
    }

    fn perform(
        &mut self,
        direction: Direction,
        outputs: Vec<Output>,
        now: Instant,
        shared: &mut Shared,
    ) {
        for output in outputs {
            match output {
                Output::Dial(connection) => {
                    shared.connections.insert(connection, (self.id, direction));
                    shared.requests.push_back(ConnectionRequest::Connect {
                        connection,
                        peer: self.config.name.clone(),
                        address: self.config.address,
                        interface: self.config.interface,
                        port: self.config.port,
                        local_address: self.config.local_address,
                        local_port: self.config.local_port,
                        distance: self.distance(&shared.config),
                        password: self.config.password.clone(),
                    });
                }
                Output::Close(connection) => {
                    shared.connections.remove(&connection);
                    shared
                        .requests
                        .push_back(ConnectionRequest::Close { connection });
                }
                Output::Transmit(connection, bytes) => self.transmit(connection, bytes, shared),
                Output::Established => self.establish(direction, now, shared),
                Output::Deliver => {}
                Output::Refresh => self.advertise(now, shared),
                Output::Down {
                    was,
                    failed,
                    reason,
                } => self.went_down(direction, was, failed, &reason, now, shared),
            }
        }
        self.end_rests(now, shared);
        let state = self.state();
        if state != self.shown.0 {
            self.shown = (state, now);
        }
    }

    fn transmit(&mut self, connection: ConnectionId, bytes: Bytes, shared: &mut Shared) {
        self.counters.sent.count(&bytes);
        shared.transmits.push_back(Transmit { connection, bytes });
    }

    const fn session(&self, direction: Direction) -> &Session {
        match direction {
            Direction::Active => &self.dialling,
            Direction::Passive => &self.dialled,
        }
    }

    const fn session_mut(&mut self, direction: Direction) -> &mut Session {
        match direction {
            Direction::Active => &mut self.dialling,
            Direction::Passive => &mut self.dialled,
        }
    }
}
