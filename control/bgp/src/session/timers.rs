//! The timers of one connection as a small table of instants.

use std::time::Instant;

/// A timer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// When to dial again.
    ConnectRetry,
    /// When the peer counts as gone.
    Hold,
    /// When to say that we live.
    Keepalive,
    /// When a peer that takes nothing from us counts as gone (RFC 9687).
    SendHold,
}

const ALL: [Timer; 4] = [
    Timer::ConnectRetry,
    Timer::Hold,
    Timer::Keepalive,
    Timer::SendHold,
];

/// When each timer is due.
#[derive(Debug)]
pub(super) struct Timers([Option<Instant>; 4]);

impl Timers {
    pub(super) const fn new() -> Self {
        Self([None; 4])
    }

    pub(super) fn start(&mut self, timer: Timer, due: Instant) {
        self.0[timer as usize] = Some(due);
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn stop_all(&mut self) {
        self.0 = [None; 4];
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    pub(super) fn is_due(&self, timer: Timer, now: Instant) -> bool {
        self.0[timer as usize].is_some_and(|due| due <= now)
    }

    /// The timer that is longest overdue, stopped; the first of the table on a tie.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let timer = ALL
            .into_iter()
            .filter(|timer| self.is_due(*timer, now))
            .min_by_key(|timer| self.0[*timer as usize])?;
        self.stop(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the origin"
    )]
    fn timers_are_taken_in_the_order_in_which_they_are_due() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut timers = Timers::new();
        timers.start(Timer::Keepalive, start + second);
        timers.start(Timer::Hold, start + 2 * second);
        timers.start(Timer::SendHold, start + 9 * second);
        assert_eq!(timers.next(), Some(start + second));
        assert_eq!(timers.take_due(start), None);
        let later = start + 5 * second;
        assert_eq!(timers.take_due(later), Some(Timer::Keepalive));
        assert_eq!(timers.take_due(later), Some(Timer::Hold));
        assert_eq!(timers.take_due(later), None);
        assert_eq!(timers.next(), Some(start + 9 * second));
    }
}
