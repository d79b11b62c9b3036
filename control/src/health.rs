//! Whether backends serve, by asking them: for services whose objects ask for it
//! ([`crate::desired::check`]), because nobody else says.
//!
//! ```text
//!   desired ─ targets ─> Prober ─> checks (when, and what answers mean; no socket, no clock)
//!                          └─────> probe  (one question over a socket)
//!   round <─ verdicts ─────┘
//! ```
//! A backend is asked at its own address, from this node's network, also when it serves an address of the
//! service (DSR): what is checked is the process, not the way of its answers.
//!
//! Not here: what a verdict means for the ring (`desired::readiness`).

pub mod checks;
mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::checks::{Checks, Question, Standing, Verdict};
use crate::desired::check::Target;
use crate::desired::readiness::Verdicts;

/// How many backends are asked at a time.
const AT_A_TIME: usize = 256;

/// Checks backends in a task of its own.
#[derive(Debug)]
pub struct Prober {
    orders: mpsc::Sender<Order>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
    told: Arc<BTreeMap<Target, bool>>,
}

/// What is known of each target, for who asks.
#[derive(Clone, Debug)]
pub struct Reporter(mpsc::Sender<Order>);

#[derive(Debug)]
enum Order {
    Check(Arc<BTreeMap<Target, bool>>),
    Report(oneshot::Sender<Report>),
}

/// What is known at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// When.
    pub at: Instant,
    /// Of each target.
    pub standings: BTreeMap<Arc<Target>, Standing>,
}

impl Prober {
    /// Starts without targets. `changed` hears that a verdict has changed; `now` is the clock.
    pub fn start(
        seed: u64,
        changed: mpsc::Sender<()>,
        now: fn() -> Instant,
        stop: CancellationToken,
    ) -> Self {
        let (orders, taken) = mpsc::channel(8);
        let (publish, verdicts) = watch::channel(Arc::default());
        let driver = Driver {
            checks: Checks::new(seed, AT_A_TIME),
            probes: JoinSet::new(),
            publish,
            changed,
            now,
        };
        tokio::spawn(stop.run_until_cancelled_owned(driver.run(taken)));
        Self {
            orders,
            verdicts,
            told: Arc::default(),
        }
    }

    /// Whether this target was among those of the last [`Self::check`].
    pub fn knows(&self, target: &Target) -> bool {
        self.told.contains_key(target)
    }

    /// Checks these and no others; true: it carries traffic, so it is taken to be healthy until it fails.
    pub async fn check(&mut self, targets: BTreeMap<Target, bool>) {
        if targets.keys().eq(self.told.keys()) {
            return;
        }
        self.told = Arc::new(targets);
        // A task that has stopped checks nothing, and the agent ends.
        let _ = self.orders.send(Order::Check(self.told.clone())).await;
    }

    /// What is known now; a target without an answer yet is what [`Self::check`] was told of it.
    pub fn verdicts(&self) -> Verdicts {
        let known = self.verdicts.borrow();
        let told = self.told.iter();
        told.map(|(target, &presumed)| {
            let verdict = known.get(target).copied();
            (target.clone(), verdict.unwrap_or(presumed))
        })
        .collect()
    }

    /// A handle for who only asks.
    pub fn reporter(&self) -> Reporter {
        Reporter(self.orders.clone())
    }
}

impl Reporter {
    /// What is known of each target now; absent once the task has stopped.
    pub async fn report(&self) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Order::Report(answer)).await.ok()?;
        answered.await.ok()
    }
}

struct Driver {
    checks: Checks,
    probes: JoinSet<(Question, Result<(), String>)>,
    publish: watch::Sender<Arc<Verdicts>>,
    changed: mpsc::Sender<()>,
    now: fn() -> Instant,
}

impl Driver {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            while let Some(question) = self.checks.poll_probe((self.now)()) {
                self.probes.spawn(async move {
                    let result = probe::ask(&question.target).await;
                    (question, result)
                });
            }
            self.tell();
            let next = self.checks.poll_timeout();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Check(targets)) => {
                        self.checks.handle_targets(&targets, (self.now)());
                        self.publish();
                    }
                    Some(Order::Report(answer)) => {
                        let report = Report {
                            at: (self.now)(),
                            standings: self.checks.standings().clone(),
                        };
                        // Who asked may have gone.
                        let _ = answer.send(report);
                    }
                    None => return,
                },
                Some(done) = self.probes.join_next() => {
                    let Ok((question, result)) = done else {
                        unreachable!("a probe neither panics nor is aborted while its task runs")
                    };
                    self.checks.handle_result(&question, result, (self.now)());
                }
                () = until(next) => {}
            }
        }
    }

    /// Publishes verdicts when one has changed.
    fn tell(&mut self) {
        let mut has_changed = false;
        while let Some(change) = self.checks.poll_change() {
            has_changed = true;
            let (at, check) = (change.target.at, &change.target.check);
            match change.failure {
                None => info!(backend = %at, %check, "serves"),
                Some(why) => warn!(backend = %at, %check, why, "does not serve"),
            }
        }
        if has_changed {
            self.publish();
            // Full: a round is due already.
            let _ = self.changed.try_send(());
        }
    }

    fn publish(&self) {
        let standings = self.checks.standings().iter();
        let known = standings.filter_map(|(target, standing)| match standing.verdict {
            Verdict::Pending => None,
            Verdict::Healthy => Some(((**target).clone(), true)),
            Verdict::Unhealthy => Some(((**target).clone(), false)),
        });
        self.publish.send_replace(Arc::new(known.collect()));
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
