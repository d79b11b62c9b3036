//! One session: what it heard, what it says, and when (RFC 5880 §6.8).

use std::time::{Duration, Instant};

use super::packet::{Diagnostic, Discard, Packet};
use super::state::{Event, State, step};
use super::{Key, Snapshot, Standing, Timing};
use crate::jitter::Jitter;

/// The least interval of our packets while the session is not up (§6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// What the other end says of itself.
#[derive(Debug, Clone, Copy)]
struct Remote {
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    desired_min_transmit: Duration,
    required_min_receive: Duration,
    multiplier: u8,
    demand: bool,
    independent: bool,
}

impl Remote {
    /// What is assumed before the first packet (§6.8.1).
    const UNHEARD: Self = Self {
        state: State::Down,
        diagnostic: Diagnostic::NONE,
        discriminator: 0,
        desired_min_transmit: Duration::ZERO,
        required_min_receive: Duration::from_micros(1),
        multiplier: 0,
        demand: false,
        independent: false,
    };
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    timing: Timing,
    /// What of our timing is in force: less eager than `timing` until the poll sequence is over (§6.8.3).
    in_force: Timing,
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    since: Instant,
    remote: Remote,
    /// We ask for a final bit with each packet.
    polling: bool,
    /// The other end asked for a final bit.
    owes_final: bool,
    /// Something that the other end should hear before its turn (§6.8.7).
    has_news: bool,
    last_sent: Option<Instant>,
    next_transmit: Option<Instant>,
    last_heard: Option<Instant>,
    /// Until when the other end is told that we left.
    leaves_at: Option<Instant>,
    /// Where those who rely on us believe that it stands.
    told: Standing,
    ups: u64,
    failures: u64,
    sent: u64,
    received: u64,
}

impl Session {
    pub(super) const fn new(timing: Timing, discriminator: u32, now: Instant) -> Self {
        Self {
            timing,
            in_force: timing,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            since: now,
            remote: Remote::UNHEARD,
            polling: false,
            owes_final: false,
            has_news: false,
            last_sent: None,
            next_transmit: Some(now),
            last_heard: None,
            leaves_at: None,
            told: Standing::UNHEARD,
            ups: 0,
            failures: 0,
            sent: 0,
            received: 0,
        }
    }

    pub(super) const fn discriminator(&self) -> u32 {
        self.discriminator
    }

    pub(super) const fn standing(&self) -> Standing {
        Standing {
            state: self.state,
            diagnostic: self.diagnostic,
            peer_admin_down: matches!(self.remote.state, State::AdminDown),
            independent: self.remote.independent,
        }
    }

    pub(super) const fn is_leaving(&self) -> bool {
        self.leaves_at.is_some()
    }

    pub(super) fn has_left(&self, now: Instant) -> bool {
        self.leaves_at.is_some_and(|at| at <= now)
    }

    /// Takes no part any more, and says so for as long as the other end might wait for us (§6.8.16).
    pub(super) fn leave(&mut self, now: Instant) {
        if self.is_leaving() {
            return;
        }
        self.take(Event::Disabled, now);
        let told_for = self.transmit_interval() * u32::from(self.timing.multiplier);
        self.leaves_at = Some(now + told_for);
    }

    /// Takes other timing; the other end is asked to confirm it (§6.8.3).
    pub(super) fn retime(&mut self, timing: Timing, now: Instant) {
        if timing == self.timing {
            return;
        }
        self.timing = timing;
        self.in_force.multiplier = timing.multiplier;
        if self.state == State::Up {
            // Sending more slowly and expecting more waits until the other end knows of it.
            self.in_force.min_transmit = self.in_force.min_transmit.min(timing.min_transmit);
            self.in_force.min_receive = self.in_force.min_receive.max(timing.min_receive);
            self.polling = true;
            self.has_news = true;
        } else {
            self.in_force = timing;
        }
        self.hasten(now);
    }

    /// A packet that is for this session (§6.8.6, from "Set bfd.RemoteDiscr").
    pub(super) fn receive(&mut self, packet: &Packet, now: Instant) -> Result<(), Discard> {
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        self.received += 1;
        self.last_heard = Some(now);
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.my_discriminator,
            desired_min_transmit: packet.desired_min_transmit,
            required_min_receive: packet.required_min_receive,
            multiplier: packet.multiplier,
            demand: packet.demand,
            independent: packet.independent,
        };
        if packet.is_final && self.polling {
            self.polling = false;
            self.in_force = self.timing;
        }
        self.take(Event::Heard(packet.state), now);
        self.owes_final |= packet.poll;
        self.hasten(now);
        Ok(())
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.expires_at().is_some_and(|at| at <= now) {
            // §6.8.1: a name that was not heard for that long may be another's by now.
            self.remote = Remote {
                state: State::Down,
                discriminator: 0,
                ..self.remote
            };
            self.last_heard = None;
            self.take(Event::Expired, now);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        [self.expires_at(), self.next_transmit, self.leaves_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// The packet that is due, if one is.
    pub(super) fn poll_packet(&mut self, now: Instant, jitter: &mut Jitter) -> Option<Packet> {
        let is_wanted = self.sends_periodically();
        let is_due = is_wanted && self.next_transmit.is_some_and(|at| at <= now);
        let is_urgent = self.owes_final || (self.has_news && is_wanted);
        if !is_due && !is_urgent {
            if !is_wanted {
                self.next_transmit = None;
                self.has_news = false;
            }
            return None;
        }
        // §6.5: a packet that answers a poll does not ask itself.
        let is_final = std::mem::take(&mut self.owes_final);
        self.has_news = false;
        let packet = Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling && !is_final,
            is_final,
            // Packets come from a thread of the agent: when that restarts, they stop.
            independent: false,
            demand: false,
            multiplier: self.timing.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_transmit: self.desired(self.timing),
            required_min_receive: self.timing.min_receive,
            required_min_echo_receive: Duration::ZERO,
        };
        self.sent += 1;
        self.last_sent = Some(now);
        self.next_transmit = is_wanted.then(|| {
            let interval = self.transmit_interval();
            // §6.8.7: shortened by up to a quarter; with a multiplier of 1 by a tenth at least.
            let most = if self.timing.multiplier == 1 { 15 } else { 25 };
            now + jitter.between(interval * 3 / 4, interval * most / 100)
        });
        Some(packet)
    }

    /// Where the session stands, if nobody was told yet.
    pub(super) fn take_change(&mut self) -> Option<Standing> {
        let standing = self.standing();
        if standing == self.told {
            return None;
        }
        self.told = standing;
        Some(standing)
    }

    pub(super) fn snapshot(&self, key: Key, now: Instant) -> Snapshot {
        Snapshot {
            key,
            standing: self.standing(),
            in_state: now.saturating_duration_since(self.since),
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            transmit_interval: self.transmit_interval(),
            detection_time: self.detection_time(),
            remote_multiplier: self.remote.multiplier,
            discriminator: self.discriminator,
            remote_discriminator: self.remote.discriminator,
            ups: self.ups,
            failures: self.failures,
            sent: self.sent,
            received: self.received,
        }
    }

    fn take(&mut self, event: Event, now: Instant) {
        let Some((next, diagnostic)) = step(self.state, event) else {
            return;
        };
        let was_up = self.state == State::Up;
        self.state = next;
        self.diagnostic = diagnostic;
        self.since = now;
        self.has_news = true;
        if next == State::Up {
            self.ups += 1;
            // The intervals of a session that is up differ from those before (§6.8.3).
            self.polling = true;
        } else {
            self.failures += u64::from(was_up && event != Event::Disabled);
            self.polling = false;
            self.in_force = self.timing;
        }
    }

    /// What we say we would send at; slow while the session is not up.
    fn desired(&self, timing: Timing) -> Duration {
        if self.state == State::Up {
            timing.min_transmit
        } else {
            timing.min_transmit.max(SLOW)
        }
    }

    /// §6.8.2: the slower of what we want and what the other end can take.
    fn transmit_interval(&self) -> Duration {
        self.desired(self.in_force)
            .max(self.remote.required_min_receive)
    }

    /// §6.8.4: by the other end's multiplier and the slower of what it wants and what we can take.
    fn detection_time(&self) -> Duration {
        let interval = self
            .in_force
            .min_receive
            .max(self.remote.desired_min_transmit);
        interval * u32::from(self.remote.multiplier)
    }

    fn expires_at(&self) -> Option<Instant> {
        // An end that wants polls only (demand mode) still sends: only we are quiet.
        let heard = self.last_heard?;
        (self.state != State::AdminDown).then(|| heard + self.detection_time())
    }

    /// §6.8.7: not to one that wants none, and not to one in demand mode while both are up.
    fn sends_periodically(&self) -> bool {
        let is_heard = self.last_heard.is_some();
        let is_quiet =
            self.remote.demand && self.state == State::Up && self.remote.state == State::Up;
        let wants_none = is_heard && self.remote.required_min_receive.is_zero();
        !wants_none && (!is_quiet || self.polling)
    }

    /// Brings the next packet forward when the interval has become shorter.
    fn hasten(&mut self, now: Instant) {
        if !self.sends_periodically() {
            return;
        }
        let by = self
            .last_sent
            .map_or(now, |at| at + self.transmit_interval());
        self.next_transmit = Some(self.next_transmit.map_or(by, |at| at.min(by)));
    }
}
