//! One connection with a peer: framing, the state machine, its timers. No sockets, no routes.
//!
//! A peer has two of these: one that dials and one that is dialled. Each is a state machine of
//! its own, as RFC 4271 §8.2.1 wants it; which of two colliding ones stays is `peer`'s decision.

mod negotiation;
mod timers;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::config::{PeerConfig, SpeakerConfig};
use crate::fsm::{self, Action, Event, State};
use crate::jitter::Jitter;
use crate::speaker::{ConnectionId, DownReason};
use crate::wire::{self, Message, Notification};

pub(crate) use negotiation::{Negotiated, negotiate, our_open};
pub(crate) use timers::Timer;
use timers::Timers;

/// How long the peer may take to send its OPEN (RFC 4271 §8.2.2 suggests four minutes).
const LARGE_HOLD: Duration = Duration::from_mins(4);
/// The least send hold time (RFC 9687 §4).
const SEND_HOLD_MINIMUM: Duration = Duration::from_mins(8);

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// We dialled.
    Active,
    /// The peer dialled.
    Passive,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Active, Self::Passive];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
        }
    }
}

/// What a session needs to know of the world to take one step.
pub(crate) struct Context<'a> {
    pub(crate) speaker: &'a SpeakerConfig,
    pub(crate) peer: &'a PeerConfig,
    pub(crate) jitter: &'a mut Jitter,
    pub(crate) next_connection: &'a mut u64,
    /// The R bit of the next OPEN.
    pub(crate) restarting: bool,
    pub(crate) now: Instant,
}

/// An event with what came with it.
#[derive(Debug)]
pub(crate) struct Trigger {
    event: Event,
    notification: Option<Notification>,
    /// Nobody is coming back for the routes.
    is_final: bool,
    reason: Option<DownReason>,
}

impl Trigger {
    pub(crate) const fn of(event: Event) -> Self {
        Self {
            event,
            notification: None,
            is_final: false,
            reason: None,
        }
    }

    /// An event that we answer with a NOTIFICATION where the state has a connection for it.
    pub(crate) const fn answered(event: Event, notification: Notification) -> Self {
        Self {
            event,
            notification: Some(notification),
            is_final: false,
            reason: None,
        }
    }

    /// An event that we answer with a NOTIFICATION after which neither side keeps routes, graceful restart or
    /// not (RFC 8538 §5.1).
    pub(crate) fn answered_for_good(event: Event, notification: Notification) -> Self {
        Self {
            is_final: true,
            ..Self::answered(event, notification)
        }
    }

    /// An event that ends the session without a word from us.
    pub(crate) const fn because(event: Event, reason: DownReason) -> Self {
        Self {
            event,
            notification: None,
            is_final: false,
            reason: Some(reason),
        }
    }
}

/// What a step asks of `peer`.
#[derive(Debug)]
pub(crate) enum Output {
    Dial(ConnectionId),
    Close(ConnectionId),
    Transmit(ConnectionId, Bytes),
    Established,
    Deliver,
    Refresh,
    Down {
        was: State,
        failed: bool,
        reason: DownReason,
    },
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    local: Option<SocketAddr>,
    inbox: BytesMut,
    /// Octets handed out and not yet reported as written.
    unwritten: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    direction: Direction,
    state: State,
    connection: Option<Connection>,
    timers: Timers,
    pub(crate) negotiated: Option<Negotiated>,
}

impl Session {
    pub(crate) const fn new(direction: Direction) -> Self {
        Self {
            direction,
            state: State::Idle,
            connection: None,
            timers: Timers::new(),
            negotiated: None,
        }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        self.connection.as_ref().map(|connection| connection.id)
    }

    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.connection.as_ref()?.local
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The timer that is due, stopped.
    pub(crate) fn take_due_timer(&mut self, now: Instant) -> Option<Timer> {
        self.timers.take_due(now)
    }

    /// The connection, when nothing was heard on it for the hold time.
    pub(crate) fn silent(&self, now: Instant) -> Option<ConnectionId> {
        self.connection()
            .filter(|_| self.timers.is_due(Timer::Hold, now))
    }

    /// The peer has said something that is still to be read: it has the hold time again.
    pub(crate) fn heard_unread(&mut self, now: Instant) {
        if self.silent(now).is_some() {
            let hold = self.negotiated.as_ref().map_or(LARGE_HOLD, |n| n.hold_time);
            self.timers.start(Timer::Hold, now + hold);
        }
    }

    /// Binds the session to a connection that the peer opened.
    pub(crate) fn accept(&mut self, id: ConnectionId, local: SocketAddr) {
        self.connection = Some(Connection::new(id, Some(local)));
    }

    /// Learns the local address of the connection that we opened.
    pub(crate) fn connected_from(&mut self, local: SocketAddr) {
        if let Some(connection) = &mut self.connection {
            connection.local = Some(local);
        }
    }

    /// Forgets a connection that the embedder says is gone.
    pub(crate) fn forget_connection(&mut self) {
        self.connection = None;
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        if let Some(connection) = &mut self.connection {
            connection.inbox.extend_from_slice(bytes);
        }
    }

    /// The next whole message, or the event and NOTIFICATION that bad bytes amount to.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, Trigger> {
        let Some(connection) = &mut self.connection else {
            return Ok(None);
        };
        let inbox = &mut connection.inbox;
        let terms = self.negotiated.as_ref();
        let longest = terms.map_or(wire::MAX_MESSAGE_LEN, |terms| terms.encoding.longest);
        let length = match wire::message_length(inbox, longest) {
            Ok(Some(length)) if inbox.len() >= length => length,
            Ok(_) => return Ok(None),
            Err(error) => return Err(Trigger::answered(Event::HeaderError, error)),
        };
        let message = inbox.split_to(length).freeze();
        let kind = message[18];
        wire::decode(message).map(Some).map_err(|error| {
            let event = match kind {
                1 => Event::OpenError,
                2 => Event::UpdateError,
                3 => return Trigger::because(Event::Notification, DownReason::Received(error)),
                _ => Event::HeaderError,
            };
            Trigger::answered(event, error)
        })
    }

    /// The embedder wrote octets to the socket: the peer takes what we send.
    pub(crate) fn written(&mut self, octets: usize, now: Instant) {
        let hold = self.send_hold();
        let Some(connection) = &mut self.connection else {
            return;
        };
        connection.unwritten = connection.unwritten.saturating_sub(octets);
        if connection.unwritten == 0 {
            self.timers.stop(Timer::SendHold);
        } else {
            self.timers.start(Timer::SendHold, now + hold);
        }
    }

    /// Sends a message on this connection, if there is one.
    pub(crate) fn send(&mut self, bytes: Bytes, now: Instant, outputs: &mut Vec<Output>) {
        let hold = self.send_hold();
        if let Some(connection) = &mut self.connection {
            if connection.unwritten == 0 {
                self.timers.start(Timer::SendHold, now + hold);
            }
            connection.unwritten += bytes.len();
            outputs.push(Output::Transmit(connection.id, bytes));
        }
    }

    /// Octets handed out and not yet written.
    pub(crate) fn unwritten(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.unwritten)
    }

    fn send_hold(&self) -> Duration {
        let hold = self.negotiated.as_ref().map_or(LARGE_HOLD, |n| n.hold_time);
        SEND_HOLD_MINIMUM.max(2 * hold)
    }

    /// Takes one step of the state machine.
    pub(crate) fn step(
        &mut self,
        trigger: Trigger,
        context: &mut Context<'_>,
        outputs: &mut Vec<Output>,
    ) {
        let was = self.state;
        let (next, actions) = fsm::step(was, trigger.event);
        self.state = next;
        let mut reason = trigger.reason;
        for action in actions {
            match action {
                Action::Dial => {
                    *context.next_connection += 1;
                    let id = ConnectionId(*context.next_connection);
                    self.connection = Some(Connection::new(id, None));
                    outputs.push(Output::Dial(id));
                }
                Action::Drop => {
                    if let Some(connection) = self.connection.take() {
                        outputs.push(Output::Close(connection.id));
                    }
                    self.timers.stop(Timer::SendHold);
                }
                Action::SendOpen => {
                    let open = our_open(context.speaker, context.peer, context.restarting);
                    self.send(wire::encode_open(&open), context.now, outputs);
                }
                Action::SendKeepalive => {
                    self.send(wire::encode_keepalive(), context.now, outputs);
                }
                Action::Notify => {
                    let said = trigger.notification.clone();
                    let mut notification = said.unwrap_or(Notification::bare(6, 0));
                    let survives = self.negotiated.as_ref().map(|n| n.survives_notification);
                    if was == State::Established && trigger.is_final && survives == Some(true) {
                        notification = Notification::hard_reset(&notification);
                    }
                    reason = Some(self.notify(notification, context.now, outputs));
                }
                Action::NotifyHoldExpired => {
                    let notification = Notification::HOLD_TIMER_EXPIRED;
                    reason = Some(self.notify(notification, context.now, outputs));
                }
                Action::NotifyFsmError => {
                    let notification = Notification::fsm_error(match was {
                        State::OpenSent => 1,
                        State::OpenConfirm => 2,
                        State::Established => 3,
                        State::Idle | State::Connect | State::Active => 0,
                    });
                    reason = Some(self.notify(notification, context.now, outputs));
                }
                Action::StartConnectRetry => self.start_connect_retry(context),
                Action::StopConnectRetry => self.timers.stop(Timer::ConnectRetry),
                Action::StartLargeHold => self.timers.start(Timer::Hold, context.now + LARGE_HOLD),
                Action::StartHold => {
                    if let Some(hold) = self.agreed(|negotiated| negotiated.hold_time) {
                        self.timers.start(Timer::Hold, context.now + hold);
                    } else {
                        self.timers.stop(Timer::Hold);
                    }
                }
                Action::StartKeepalive => {
                    if let Some(longest) = self.agreed(|negotiated| negotiated.keepalive_time) {
                        // RFC 4271 §10: a factor of 0.75 to 1.
                        let wait = context.jitter.between(longest * 3 / 4, longest / 4);
                        self.timers.start(Timer::Keepalive, context.now + wait);
                    }
                }
                Action::Establish => outputs.push(Output::Established),
                Action::Deliver => outputs.push(Output::Deliver),
                Action::Refresh => outputs.push(Output::Refresh),
                Action::Rest | Action::Fail => {
                    self.timers.stop_all();
                    outputs.push(Output::Down {
                        was,
                        failed: *action == Action::Fail,
                        reason: reason.clone().unwrap_or(DownReason::Stopped),
                    });
                }
            }
        }
        if self.state <= State::Active {
            self.negotiated = None;
            if next != was {
                self.timers.stop(Timer::Hold);
                self.timers.stop(Timer::Keepalive);
            }
        }
    }

    fn notify(
        &mut self,
        notification: Notification,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) -> DownReason {
        self.send(wire::encode_notification(&notification), now, outputs);
        DownReason::Sent(notification)
    }

    fn start_connect_retry(&mut self, context: &mut Context<'_>) {
        if self.direction == Direction::Active {
            let retry = context.peer.connect_retry_time;
            let wait = context.jitter.between(retry, retry);
            self.timers.start(Timer::ConnectRetry, context.now + wait);
        }
    }

    /// A negotiated time, unless it is zero: no timer then (RFC 4271 §4.4).
    fn agreed(&self, time: impl Fn(&Negotiated) -> Duration) -> Option<Duration> {
        self.negotiated
            .as_ref()
            .map(time)
            .filter(|time| !time.is_zero())
    }
}

impl Connection {
    fn new(id: ConnectionId, local: Option<SocketAddr>) -> Self {
        Self {
            id,
            local,
            inbox: BytesMut::new(),
            unwritten: 0,
        }
    }
}
