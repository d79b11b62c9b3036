//! Whether the agent lives, and whether it has become ready: what `/livez` and `/readyz` answer.
//!
//! Alive: the agent's loop has turned lately. Ready: everything that an agent must do once before its
//! node can carry traffic has been done. Readiness is a latch: what happens later, a session that ends
//! or a table that is full, is a condition and a metric, and restarting this agent would not mend it.
//!
//! Time comes in as an argument. Not here: who asks ([`super::exporter`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the loop may take for one turn; it turns each second when nothing happens.
pub const STALLED: Duration = Duration::from_secs(30);

/// What must be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latch {
    /// A plan was carried out in full.
    Tables,
    /// Every configured device has its programs.
    Programs,
    /// Every desired speaker runs and knows its peers and announcements. Not: sessions are up.
    Speakers,
}

impl Latch {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Tables, Self::Programs, Self::Speakers];

    /// What is waited for while it is closed.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Tables => "tables are not written yet",
            Self::Programs => "a configured device is without its program",
            Self::Speakers => "a BGP speaker is not configured yet",
        }
    }
}

/// The agent's health; written by its loop, read by probes.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// The loop's last turn, in milliseconds after the start.
    beat_ms: AtomicU64,
    open: [AtomicBool; Latch::ALL.len()],
}

impl Health {
    /// An agent that starts now: alive, and ready for nothing.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            beat_ms: AtomicU64::new(0),
            open: [const { AtomicBool::new(false) }; Latch::ALL.len()],
        }
    }

    /// The loop has turned.
    pub fn beat(&self, now: Instant) {
        let age = now.saturating_duration_since(self.started);
        self.beat_ms
            .store(age.as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the loop turned last.
    pub fn since_beat(&self, now: Instant) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started)
            .saturating_sub(beat)
    }

    /// Opens a latch when its condition holds; it never closes.
    pub fn open_when(&self, latch: Latch, holds: bool) {
        if holds {
            self.open[latch as usize].store(true, Ordering::Relaxed);
        }
    }

    /// The latches that are closed; none: ready.
    pub fn waiting_for(&self) -> Vec<Latch> {
        Latch::ALL
            .into_iter()
            .filter(|latch| !self.open[*latch as usize].load(Ordering::Relaxed))
            .collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a moment to count from")]
mod tests {
    use super::*;

    #[test]
    fn an_agent_lives_while_its_loop_turns() {
        let start = Instant::now();
        let health = Health::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);

        assert_eq!(health.since_beat(after(7)), Duration::from_secs(7));
        health.beat(after(40));
        assert_eq!(health.since_beat(after(40)), Duration::ZERO);
        assert_eq!(health.since_beat(after(100)), Duration::from_mins(1));
    }

    #[test]
    fn an_agent_is_ready_when_everything_was_done_once_and_stays_so() {
        let health = Health::new(Instant::now());
        assert_eq!(health.waiting_for(), Latch::ALL);

        health.open_when(Latch::Tables, true);
        health.open_when(Latch::Programs, false);
        health.open_when(Latch::Speakers, true);
        assert_eq!(health.waiting_for(), [Latch::Programs]);

        health.open_when(Latch::Programs, true);
        health.open_when(Latch::Tables, false);
        assert!(health.waiting_for().is_empty());
    }
}
