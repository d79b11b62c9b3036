//! When which backend is asked, and what its answers in a row mean.
//!
//! ```text
//!   handle_targets ──> schedule ── poll_probe ──> (somebody asks) ── handle_result ──> verdict ── poll_change
//!                          └────── poll_timeout
//! ```
//! - A backend that carried traffic when its checks began is healthy until enough failures say otherwise; any
//!   other one has no verdict until its first answer, which decides alone.
//! - After the first question, asked at once, each target has its own place in the interval, by the seed: a
//!   thousand targets that come together are not asked together, nor are one backend's balancers in step.
//! - No target is asked twice at a time, and no more than a limit are asked at a time; the one that has waited
//!   longest is next.
//!
//! Not here: sockets, and the clock: time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::desired::check::Target;

/// What the answers of a target mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There was no answer yet.
    Pending,
    /// It serves.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// A verdict that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub target: Arc<Target>,
    /// What it is from here on.
    pub verdict: Verdict,
    /// Why the last question failed, when it did.
    pub failure: Option<String>,
}

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What its answers mean.
    pub verdict: Verdict,
    /// Since when.
    pub since: Instant,
    /// Answers in a row that speak against the verdict.
    pub against: u32,
    /// Why the last question failed, when it did.
    pub failure: Option<String>,
    /// When it is asked next.
    pub next: Instant,
    /// The number of the question that an answer is awaited to, or was; absent: it was never asked.
    question: Option<u64>,
}

/// Somebody is to be asked, and [`Checks::handle_result`] is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who.
    pub target: Arc<Target>,
    number: u64,
}

/// All targets of this node.
#[derive(Debug)]
pub struct Checks {
    seed: u64,
    limit: usize,
    asked: usize,
    questions: u64,
    targets: BTreeMap<Arc<Target>, Standing>,
    /// Those that are not being asked, by when they will be.
    schedule: BTreeSet<(Instant, Arc<Target>)>,
    changes: VecDeque<Change>,
}

impl Checks {
    /// Nothing is checked yet. `limit`: how many are asked at a time; `seed`: spreads them over time.
    pub fn new(seed: u64, limit: usize) -> Self {
        Self {
            seed,
            limit,
            asked: 0,
            questions: 0,
            targets: BTreeMap::new(),
            schedule: BTreeSet::new(),
            changes: VecDeque::new(),
        }
    }

    /// These and no others are checked; true: it carries traffic, so it is taken to be healthy. What is known
    /// of those that stay is kept.
    pub fn handle_targets(&mut self, wanted: &BTreeMap<Target, bool>, now: Instant) {
        let schedule = &mut self.schedule;
        self.targets.retain(|target, standing| {
            let stays = wanted.contains_key(&**target);
            if !stays {
                schedule.remove(&(standing.next, target.clone()));
            }
            stays
        });
        for (target, &carries_traffic) in wanted {
            if self.targets.contains_key(target) {
                continue;
            }
            let target = Arc::new(target.clone());
            let verdict = if carries_traffic {
                Verdict::Healthy
            } else {
                Verdict::Pending
            };
            self.schedule.insert((now, target.clone()));
            let standing = Standing {
                verdict,
                since: now,
                against: 0,
                failure: None,
                next: now,
                question: None,
            };
            self.targets.insert(target, standing);
        }
    }

    /// What came of a question that [`Self::poll_probe`] gave out; every one must come to this end.
    pub fn handle_result(&mut self, asked: &Question, result: Result<(), String>, now: Instant) {
        self.asked = self.asked.saturating_sub(1);
        let target = &asked.target;
        // It may have been taken away meanwhile, and put back.
        let Some(standing) = self.targets.get_mut(target) else {
            return;
        };
        if standing.question != Some(asked.number) {
            return;
        }
        self.schedule.insert((standing.next, target.clone()));
        let means = match result {
            Ok(()) => Verdict::Healthy,
            Err(_) => Verdict::Unhealthy,
        };
        standing.failure = result.err();
        if means == standing.verdict {
            standing.against = 0;
            return;
        }
        standing.against += 1;
        let needed = match standing.verdict {
            Verdict::Pending => 1,
            Verdict::Healthy => target.check.unhealthy,
            Verdict::Unhealthy => target.check.healthy,
        };
        if standing.against >= needed {
            standing.verdict = means;
            standing.since = now;
            standing.against = 0;
            self.changes.push_back(Change {
                target: target.clone(),
                verdict: means,
                failure: standing.failure.clone(),
            });
        }
    }

    /// Who is to be asked now.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Question> {
        if self.asked >= self.limit || self.schedule.first()?.0 > now {
            return None;
        }
        let (_, target) = self.schedule.pop_first()?;
        let standing = self.targets.get_mut(&target)?;
        let interval = target.check.interval;
        standing.next = match standing.question {
            None => now + phase(self.seed, &target, interval),
            Some(_) => standing.next + interval,
        };
        // After a time in which nobody could ask, the questions are not made up for.
        while standing.next <= now {
            standing.next += interval;
        }
        self.asked += 1;
        self.questions += 1;
        standing.question = Some(self.questions);
        Some(Question {
            target,
            number: self.questions,
        })
    }

    /// The next verdict that has changed.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// When [`Self::poll_probe`] will have something, unless something is handled before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.schedule.first()?.0;
        (self.asked < self.limit).then_some(due)
    }

    /// What is known of each target.
    pub const fn standings(&self) -> &BTreeMap<Arc<Target>, Standing> {
        &self.targets
    }
}

/// A target's place in its interval: more than nothing, and at most the interval.
fn phase(seed: u64, target: &Target, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (seed, target).hash(&mut hasher);
    let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(hasher.finish() % interval_ns.max(1) + 1)
}

#[cfg(test)]
mod tests;
