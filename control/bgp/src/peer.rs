//! One neighbour: its two sessions, which of them stays, and what follows from that.
//!
//! One session dials, the other is dialled. When both get an OPEN they collide and one is closed
//! (RFC 4271 §6.8). While one is past its OPENs the other rests; when that one ends both start
//! again, damped after a fault.
//!
//! Not for: what is said about a route (`advertise`), keeping routes over a restart (`restart`).

mod advertise;
mod restart;
mod view;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ipnetwork::IpNetwork;

use crate::best_path::Source;
use crate::config::{PeerConfig, SpeakerConfig};
use crate::fsm::{Event, State};
use crate::policy::Judge;
use crate::rib::{Path, PeerId};
use crate::session::{Context, Direction, Negotiated, Output, Session, Timer, Trigger, negotiate};
use crate::snapshot::Counters;
use crate::speaker::{self, ConnectionId, ConnectionRequest, DownReason, Shared, Transmit};
use crate::wire::{
    self, Attributes, Family, FaultAction, Message, Notification, RawUpdate, Update,
};

/// First rest after a fault; doubled with each further one.
const FIRST_REST: Duration = Duration::from_secs(5);
/// Longest rest after faults.
const LONGEST_REST: Duration = Duration::from_mins(2);
/// A session that lasted this long forgives earlier faults.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// How soon a lost connection is dialled again; used as `[t, 2t)`.
const REDIAL: Duration = Duration::from_secs(1);
/// A session younger than this is not replaced by a new connection: that one is a collision.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    id: PeerId,
    config: PeerConfig,
    enabled: bool,
    dialling: Session,
    dialled: Session,
    starts: BTreeMap<Direction, Instant>,
    faults: u32,
    established: Option<Established>,
    established_count: u64,
    /// State as shown, and since when.
    shown: (State, Instant),
    last_error: Option<DownReason>,
    /// The R bit of the next OPEN.
    restarting: bool,
    /// Families whose routes are kept while the peer restarts, and until when.
    stale: BTreeMap<Family, Instant>,
    /// Adj-RIB-Out.
    sent: BTreeMap<IpNetwork, Arc<Attributes>>,
    end_of_rib_sent: bool,
    without_next_hop: BTreeMap<Family, usize>,
    counters: Counters,
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
            enabled: true,
            dialling: Session::new(Direction::Active),
            dialled: Session::new(Direction::Passive),
            starts: BTreeMap::new(),
            faults: 0,
            established: None,
            established_count: 0,
            shown: (State::Idle, now),
            last_error: None,
            restarting: config
                .graceful_restart
                .is_some_and(|restart| restart.restarting),
            stale: BTreeMap::new(),
            sent: BTreeMap::new(),
            end_of_rib_sent: false,
            without_next_hop: BTreeMap::new(),
            counters: Counters::default(),
            config,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.config.address
    }

    /// TTL of packets to the peer; internal peers may be any number of hops away.
    pub(crate) fn ttl(&self, speaker: &SpeakerConfig) -> Option<u8> {
        (self.config.remote_as != speaker.local_as).then_some(self.config.ebgp_multihop_ttl)
    }

    /// Starts both sessions, without delay.
    pub(crate) fn start(&mut self, now: Instant, shared: &mut Shared) {
        self.enabled = true;
        self.schedule(Direction::Passive, now);
        self.schedule(Direction::Active, now);
        self.run_starts(now, shared);
    }

    /// Ends both sessions and keeps them down.
    pub(crate) fn stop(&mut self, why: &Notification, now: Instant, shared: &mut Shared) {
        self.enabled = false;
        self.starts.clear();
        for direction in Direction::BOTH {
            let trigger = Trigger::answered(Event::ManualStop, why.clone());
            self.step(direction, trigger, now, shared);
        }
    }

    /// Takes a new configuration; resets the session only if that is needed.
    pub(crate) fn reconfigure(&mut self, config: PeerConfig, now: Instant, shared: &mut Shared) {
        let reset = self.config.needs_reset(&config);
        let stop_dialling = config.passive && !self.config.passive;
        let start_dialling = !config.passive && self.config.passive;
        let judge_again = self.config.import != config.import;
        self.config = config;
        if reset {
            self.stop(&Notification::CONFIGURATION_CHANGED, now, shared);
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
        self.advertise(now, shared);
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
                    self.counters.received += 1;
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
            .chain(self.stale.values().copied())
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        self.sweep_overdue(now, shared);
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

    fn handle_message(
        &mut self,
        direction: Direction,
        message: Message,
        now: Instant,
        shared: &mut Shared,
    ) {
        match message {
            Message::Open(open) => match negotiate(open, &shared.config, &self.config) {
                Ok(terms) => self.handle_open(direction, terms, now, shared),
                Err(refusal) => {
                    let trigger = Trigger::answered(Event::OpenError, refusal);
                    self.step(direction, trigger, now, shared);
                }
            },
            Message::Update(raw) => {
                self.counters.updates_received += 1;
                self.handle_update(direction, &raw, now, shared);
            }
            Message::Notification(notification) => {
                let event = if notification.is_version_error() {
                    Event::VersionNotification
                } else {
                    Event::Notification
                };
                let trigger = Trigger::because(event, DownReason::Received(notification));
                self.step(direction, trigger, now, shared);
            }
            Message::Keepalive => {
                self.step(direction, Trigger::of(Event::Keepalive), now, shared);
            }
            Message::RouteRefresh(family) => {
                if let Some(family) = family {
                    self.forget_sent(family);
                }
                self.step(direction, Trigger::of(Event::RouteRefresh), now, shared);
            }
        }
    }

    /// RFC 4271 §6.8, RFC 6286 §2.3: of two connections the one stays that was opened by the
    /// side with the higher identifier, or else the higher AS.
    fn handle_open(
        &mut self,
        direction: Direction,
        terms: Negotiated,
        now: Instant,
        shared: &mut Shared,
    ) {
        if self.session(direction).state() == State::OpenSent {
            let other = direction.other();
            let ours = (u32::from(shared.config.router_id), shared.config.local_as);
            let theirs = (u32::from(terms.router_id), terms.asn);
            let preferred = if ours > theirs {
                Direction::Active
            } else {
                Direction::Passive
            };
            let dumped = match self.session(other).state() {
                State::Established => Some(direction),
                State::OpenConfirm => Some(preferred.other()),
                State::Idle | State::Connect | State::Active | State::OpenSent => None,
            };
            if let Some(dumped) = dumped {
                let trigger = Trigger::answered(Event::CollisionDump, Notification::COLLISION);
                self.step(dumped, trigger, now, shared);
                if dumped == direction {
                    return;
                }
            }
            self.session_mut(direction).negotiated = Some(terms);
        }
        self.step(direction, Trigger::of(Event::Open), now, shared);
        let other = direction.other();
        if matches!(self.session(other).state(), State::Connect | State::Active) {
            self.step(other, Trigger::of(Event::AutomaticStop), now, shared);
        }
    }

    fn handle_update(
        &mut self,
        direction: Direction,
        raw: &RawUpdate,
        now: Instant,
        shared: &mut Shared,
    ) {
        let Some((four_octet_as, internal)) = self
            .session(direction)
            .negotiated
            .as_ref()
            .map(|terms| (terms.four_octet_as, terms.internal))
        else {
            self.step(direction, Trigger::of(Event::Update), now, shared);
            return;
        };
        match wire::decode_update(raw, four_octet_as, internal) {
            Ok(update) => {
                let outputs = self.outputs_of(direction, Trigger::of(Event::Update), now, shared);
                let deliver = outputs
                    .iter()
                    .any(|output| matches!(output, Output::Deliver));
                self.perform(direction, outputs, now, shared);
                if deliver {
                    self.learn(update, now, shared);
                }
            }
            Err(error) => {
                let trigger = Trigger::answered(Event::UpdateError, error);
                self.step(direction, trigger, now, shared);
            }
        }
    }

    fn learn(&mut self, update: Update, now: Instant, shared: &mut Shared) {
        let Some(established) = self.established.clone() else {
            return;
        };
        let negotiated =
            |prefix: &IpNetwork| established.terms.families.contains(&Family::of(prefix));
        if !update.faults.is_empty() {
            let withdrawn = update
                .faults
                .iter()
                .any(|fault| fault.action == FaultAction::Withdraw);
            if withdrawn {
                self.counters.treated_as_withdraw += 1;
            } else {
                self.counters.attributes_discarded += 1;
            }
            shared.events.push_back(speaker::Event::UpdateFaults {
                peer: self.config.name.clone(),
                faults: update.faults,
            });
        }
        for prefix in update.withdrawn.into_iter().filter(negotiated) {
            shared.rib.withdraw(prefix, self.id);
        }
        for reach in update.reach {
            let judge = judge(&self.config, &established, shared_parts(shared));
            let refused = judge.attributes(&reach.attributes);
            let verdicts: Vec<_> = reach
                .prefixes
                .iter()
                .map(|prefix| refused.or_else(|| judge.prefix(prefix)))
                .collect();
            for (prefix, rejection) in reach.prefixes.into_iter().zip(verdicts) {
                if negotiated(&prefix) {
                    let path = Path {
                        peer: self.id,
                        attributes: Arc::clone(&reach.attributes),
                        rejection,
                        stale: false,
                    };
                    shared.rib.learn(prefix, path);
                }
            }
        }
        if let Some(family) = update.end_of_rib {
            self.end_stale(family, shared);
            shared.events.push_back(speaker::Event::EndOfRib {
                peer: self.config.name.clone(),
                family,
            });
        }
        let too_many = self.config.max_prefixes.is_some_and(|limit| {
            Family::ALL
                .into_iter()
                .any(|family| shared.rib.count(self.id, family).received > limit)
        });
        if too_many {
            let trigger = Trigger::answered(Event::UpdateError, Notification::MAX_PREFIXES);
            self.step(established.direction, trigger, now, shared);
        }
    }

    /// Judges paths inside a prefix again after our own prefixes changed.
    pub(crate) fn judge_again_within(&self, outer: &IpNetwork, shared: &mut Shared) {
        if let Some(established) = &self.established {
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, established, parts);
            rib.judge_again_within(self.id, outer, |prefix, attributes| {
                judge
                    .attributes(attributes)
                    .or_else(|| judge.prefix(prefix))
            });
        }
    }

    fn judge_all_again(&self, shared: &mut Shared) {
        if let Some(established) = &self.established {
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, established, parts);
            rib.judge_again(self.id, |prefix, attributes| {
                judge
                    .attributes(attributes)
                    .or_else(|| judge.prefix(prefix))
            });
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
                        port: self.config.port,
                        local_address: self.config.local_address,
                        ttl: self.ttl(&shared.config),
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
        let state = self.state();
        if state != self.shown.0 {
            self.shown = (state, now);
        }
    }

    fn transmit(&mut self, connection: ConnectionId, bytes: Bytes, shared: &mut Shared) {
        self.counters.sent += 1;
        shared.transmits.push_back(Transmit { connection, bytes });
    }

    fn establish(&mut self, direction: Direction, now: Instant, shared: &mut Shared) {
        let session = self.session(direction);
        let Some(terms) = session.negotiated.clone() else {
            return;
        };
        let local_address = session.local().map(|local| local.ip().to_canonical());
        let terms = Arc::new(terms);
        self.established = Some(Established {
            direction,
            since: now,
            terms: Arc::clone(&terms),
            local_address,
        });
        self.established_count += 1;
        self.last_error = None;
        self.restarting = false;
        shared.rib.introduce(
            self.id,
            Source {
                internal: terms.internal,
                router_id: terms.router_id,
                address: self.config.address,
            },
        );
        shared.events.push_back(speaker::Event::PeerUp {
            peer: self.config.name.clone(),
            remote_as: terms.asn,
            router_id: terms.router_id,
        });
        self.starts.clear();
        let trigger = Trigger::answered(Event::AutomaticStop, Notification::COLLISION);
        self.step(direction.other(), trigger, now, shared);
        self.judge_stale(&terms, now, shared);
        self.advertise(now, shared);
    }

    fn went_down(
        &mut self,
        direction: Direction,
        was: State,
        failed: bool,
        reason: &DownReason,
        now: Instant,
        shared: &mut Shared,
    ) {
        let ended = self
            .established
            .take_if(|established| established.direction == direction);
        if let Some(established) = &ended {
            if now.duration_since(established.since) >= FORGIVEN_AFTER {
                self.faults = 0;
            }
            self.release(established, reason, now, shared);
        }
        let silent =
            *reason == DownReason::Stopped || *reason == DownReason::Sent(Notification::COLLISION);
        if !silent {
            self.last_error = Some(reason.clone());
            let peer = self.config.name.clone();
            shared.events.push_back(if was == State::Established {
                speaker::Event::PeerDown {
                    peer,
                    reason: reason.clone(),
                }
            } else {
                speaker::Event::AttemptFailed {
                    peer,
                    reason: reason.clone(),
                }
            });
        }
        if !self.enabled || self.session(direction.other()).state() >= State::OpenSent {
            return;
        }
        let rest = match reason {
            DownReason::Stopped if !failed => None,
            DownReason::Closed(_) | DownReason::Replaced => None,
            DownReason::Received(notification) if notification.is_cease() => None,
            DownReason::Sent(notification) if *notification == Notification::COLLISION => None,
            DownReason::Sent(_)
            | DownReason::Received(_)
            | DownReason::SendHoldExpired
            | DownReason::Stopped => {
                let doubled = FIRST_REST * 2_u32.saturating_pow(self.faults.min(10));
                self.faults = self.faults.saturating_add(1);
                let rest = doubled.min(LONGEST_REST);
                Some(shared.jitter.between(rest * 3 / 4, rest / 4))
            }
        };
        let redial = shared.jitter.between(REDIAL, REDIAL);
        match rest {
            Some(rest) => self.schedule(direction, now + rest),
            None if direction == Direction::Passive => self.schedule(direction, now),
            None => self.schedule(direction, now + redial),
        }
        let other = direction.other();
        if self.session(other).state() == State::Idle && !self.starts.contains_key(&other) {
            let wait = match (rest, other) {
                (Some(rest), _) => rest,
                (None, Direction::Passive) => Duration::ZERO,
                (None, Direction::Active) => redial,
            };
            self.schedule(other, now + wait);
        }
        self.run_starts(now, shared);
    }

    fn schedule(&mut self, direction: Direction, at: Instant) {
        if direction == Direction::Passive || !self.config.passive {
            self.starts.insert(direction, at);
        }
    }

    fn run_starts(&mut self, now: Instant, shared: &mut Shared) {
        for direction in Direction::BOTH {
            let due = self.starts.get(&direction).is_some_and(|at| *at <= now);
            if !due {
                continue;
            }
            self.starts.remove(&direction);
            if self.session(direction.other()).state() >= State::OpenConfirm {
                continue;
            }
            let event = match (direction, self.faults) {
                (Direction::Active, 0) => Event::AutomaticStart,
                (Direction::Active, _) => Event::DampedStart,
                (Direction::Passive, 0) => Event::AutomaticStartPassive,
                (Direction::Passive, _) => Event::DampedStartPassive,
            };
            self.step(direction, Trigger::of(event), now, shared);
        }
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

type Parts<'a> = (&'a SpeakerConfig, &'a crate::policy::OwnPrefixes);

const fn shared_parts(shared: &Shared) -> Parts<'_> {
    (&shared.config, &shared.own)
}

impl Shared {
    /// The table, and beside it what a path is judged by.
    const fn rib_and_parts(&mut self) -> (&mut crate::rib::Rib, Parts<'_>) {
        (&mut self.rib, (&self.config, &self.own))
    }
}

fn judge<'a>(
    config: &'a PeerConfig,
    established: &Established,
    (speaker, own): Parts<'a>,
) -> Judge<'a> {
    Judge {
        policy: &config.import,
        own,
        local_as: speaker.local_as,
        router_id: speaker.router_id,
        local_address: established.local_address,
        remote_as: established.terms.asn,
        internal: established.terms.internal,
    }
}
