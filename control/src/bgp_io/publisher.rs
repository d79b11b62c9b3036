//! The task that tells the node what came of the speaker: the learnt routes, and what happened.
//!
//! ```text
//!   driver ──(routes that changed, events: one line)──> publisher ──> watch: learnt, broadcast: events, history
//! ```
//! # Why
//! Beside the driver, whose time is what a large table costs: to sort a million routes into the table that the node
//! reads is an eighth of that.
//!
//! All goes through one line, so that who hears that these were all routes finds them.

use std::sync::Arc;

use fairlead_bgp::{Event, LearntPath};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tracing::debug;

use super::LearntRoutes;
use super::history::{Happened, History};

type Changes = Vec<(IpNetwork, Arc<[LearntPath]>)>;

/// Tells the task. It ends when this is gone.
#[derive(Debug)]
pub(super) struct Publisher {
    line: mpsc::UnboundedSender<News>,
    /// Taken while changes are on their way: others gather in the speaker meanwhile, each prefix once.
    turn: Arc<Semaphore>,
}

#[derive(Debug)]
enum News {
    Routes(Changes, Timestamp, Option<Turn>),
    Event(Event, Timestamp),
    History(oneshot::Sender<Vec<Happened>>),
}

/// The right to publish changes; given back when they can be read.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "its end counts")] OwnedSemaphorePermit);

impl Publisher {
    /// Starts the task.
    pub(super) fn start(
        learnt: watch::Sender<Arc<LearntRoutes>>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let (line, news) = mpsc::unbounded_channel();
        tokio::spawn(publish(news, learnt, events));
        Self {
            line,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// The right to publish, unless earlier changes are still on their way.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.turn.clone().try_acquire_owned().ok().map(Turn)
    }

    /// Publishes changes of learnt routes; out of turn where an event needs them.
    pub(super) fn routes(&self, changes: Changes, turn: Option<Turn>) {
        self.tell(News::Routes(changes, Timestamp::now(), turn));
    }

    /// Tells what happened, after all that was published.
    pub(super) fn event(&self, event: Event) {
        self.tell(News::Event(event, Timestamp::now()));
    }

    /// Answers with what happened until now.
    pub(super) fn history(&self, answer: oneshot::Sender<Vec<Happened>>) {
        self.tell(News::History(answer));
    }

    fn tell(&self, news: News) {
        // The task ends with the runtime, and then nobody listens.
        let _ = self.line.send(news);
    }
}

async fn publish(
    mut news: mpsc::UnboundedReceiver<News>,
    learnt: watch::Sender<Arc<LearntRoutes>>,
    events: broadcast::Sender<Event>,
) {
    let mut history = History::default();
    while let Some(news) = news.recv().await {
        match news {
            News::Routes(changes, at, _turn) => {
                debug!(prefixes = changes.len(), "routes changed");
                let known = learnt.borrow().clone();
                history.remember_routes(&changes, |prefix| known.contains_key(prefix), at);
                // In place: the table is copied only while a reader holds it.
                drop(known);
                learnt.send_modify(|table| apply(Arc::make_mut(table), changes));
            }
            News::Event(event, at) => {
                history.remember(&event, at);
                // Without subscribers nobody wants to know.
                let _ = events.send(event);
            }
            News::History(answer) => {
                // An asker that went away does not want its answer.
                let _ = answer.send(history.all());
            }
        }
    }
}

fn apply(table: &mut LearntRoutes, changes: Changes) {
    for (prefix, paths) in changes {
        if paths.is_empty() {
            table.remove(&prefix);
        } else {
            table.insert(prefix, paths);
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_bgp::Family;

    use super::*;

    fn route(paths: &[&str]) -> (IpNetwork, Arc<[LearntPath]>) {
        let path = |hop: &&str| LearntPath {
            next_hop: hop.parse().unwrap(),
            link_local: None,
            interface: None,
            peer: "tor".to_owned(),
        };
        let prefix = "2001:db8::/32".parse().unwrap();
        (prefix, paths.iter().map(path).collect())
    }

    #[tokio::test]
    async fn one_turn_at_a_time_and_an_event_after_the_routes_before_it() {
        let (learnt_in, learnt) = watch::channel(Arc::default());
        let (events_in, mut events) = broadcast::channel(8);
        let publisher = Publisher::start(learnt_in, events_in);
        let all_told = || Event::EndOfRib {
            peer: "tor".to_owned(),
            family: Family::Ipv6Unicast,
        };

        let turn = publisher.turn();
        assert!(turn.is_some() && publisher.turn().is_none());
        publisher.routes(vec![route(&["2001:db8::1"])], turn);
        publisher.event(all_told());
        events.recv().await.unwrap();
        assert_eq!(learnt.borrow().keys().collect::<Vec<_>>(), [route(&[]).0]);
        assert!(publisher.turn().is_some(), "given back");

        // Out of turn, and a withdrawal.
        publisher.routes(vec![route(&[])], None);
        publisher.event(all_told());
        events.recv().await.unwrap();
        assert_eq!(learnt.borrow().keys().count(), 0);

        let (ask, answer) = oneshot::channel();
        publisher.history(ask);
        let happened: Vec<_> = answer.await.unwrap().into_iter().map(|h| h.what).collect();
        let [all, lost] = ["all routes received", "route lost"];
        assert_eq!(happened, ["route learnt", all, lost, all]);
    }
}
