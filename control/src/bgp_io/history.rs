//! What happened last: a ring of session and route events, for who asks afterwards.
//!
//! Not for counting: events that were pushed out are gone, and a large change of routes is one event.

use std::collections::VecDeque;
use std::sync::Arc;

use fairlead_bgp::{Event, LearntPath};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Events that are kept.
const KEPT: usize = 1024;
/// Routes that may change together and still be named one by one.
const NAMED: usize = 32;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// Its number: each has a higher one than those before.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// The peer that it is about; for a route, whoever told it.
    pub peer: Option<String>,
    /// What: `session up`, `route lost`.
    pub what: String,
    /// What about it, and why.
    pub why: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    ring: VecDeque<Happened>,
    next: u64,
}

impl History {
    /// The oldest first.
    pub(super) fn all(&self) -> Vec<Happened> {
        self.ring.iter().cloned().collect()
    }

    pub(super) fn remember(&mut self, event: &Event, at: Timestamp) {
        let (peer, what, why) = told(event);
        self.push(at, Some(peer.to_owned()), what, why);
    }

    /// Remembers changes of learnt routes; `is_known` says which were there before.
    pub(super) fn remember_routes(
        &mut self,
        changes: &[(IpNetwork, Arc<[LearntPath]>)],
        is_known: impl Fn(&IpNetwork) -> bool,
        at: Timestamp,
    ) {
        if changes.len() > NAMED {
            let lost = changes.iter().filter(|(_, paths)| paths.is_empty()).count();
            let why = format!("{} in use now, {lost} lost", changes.len() - lost);
            let what = format!("{} routes changed", changes.len());
            self.push(at, None, &what, why);
            return;
        }
        for (prefix, paths) in changes {
            let what = match (is_known(prefix), paths.is_empty()) {
                (false, false) => "route learnt",
                (true, false) => "route changed",
                (true, true) => "route lost",
                // It came and went before anybody saw it.
                (false, true) => continue,
            };
            let peer = paths.first().map(|path| path.peer.clone());
            let hops: Vec<_> = paths.iter().map(|p| p.next_hop.to_string()).collect();
            let why = if hops.is_empty() {
                format!("{prefix}: no path of it is left")
            } else {
                format!("{prefix} via {}", hops.join(", "))
            };
            self.push(at, peer, what, why);
        }
    }

    fn push(&mut self, at: Timestamp, peer: Option<String>, what: &str, why: String) {
        self.next += 1;
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(Happened {
            number: self.next,
            at,
            peer,
            what: what.to_owned(),
            why,
        });
    }
}

/// Peer, what and why.
fn told(event: &Event) -> (&str, &'static str, String) {
    match event {
        Event::PeerUp {
            peer,
            remote_as,
            router_id,
        } => (
            peer,
            "session up",
            format!("AS {remote_as}, identifier {router_id}"),
        ),
        Event::PeerDown { peer, reason } => (peer, "session down", reason.to_string()),
        Event::AttemptFailed { peer, reason } => (peer, "attempt failed", reason.to_string()),
        Event::UpdateFaults { peer, faults } => {
            let first = faults.first().map_or("", |fault| &fault.detail);
            (
                peer,
                "faulty update",
                format!("{first} ({} faults)", faults.len()),
            )
        }
        Event::EndOfRib { peer, family } => (peer, "all routes received", family.to_string()),
        Event::RefreshAsked { peer, family } => (peer, "asks for our routes", family.to_string()),
        Event::RoutesOutlive {
            peer,
            family,
            stale_time,
            dropped,
        } => (
            peer,
            "long away",
            format!(
                "{family}: its routes stay for {} s at most, where there are no better ones; {dropped} gone",
                stale_time.as_secs()
            ),
        ),
        Event::RefreshOver {
            peer,
            family,
            dropped,
        } => (
            peer,
            "told its routes again",
            format!("{family}: {dropped} routes gone"),
        ),
        Event::RoutesKept {
            peer,
            family,
            restart_time,
        } => {
            let seconds = restart_time.as_secs();
            (
                peer,
                "restarting",
                format!("{family}: its routes stay for {seconds}s"),
            )
        }
        Event::RestartOver {
            peer,
            family,
            dropped,
        } => {
            let why = format!("{family}: {dropped} routes were not told again");
            (peer, "restart over", why)
        }
        Event::RangeFull { peer, address } => (
            peer,
            "range full",
            format!("{address} dialled; raise the limit of the range"),
        ),
        Event::AnnouncementsRefused { peer, prefixes } => {
            let first = prefixes
                .first()
                .map_or_else(String::new, ToString::to_string);
            let why = format!(
                "the attributes of {} prefixes, {first} among them, do not fit a message",
                prefixes.len()
            );
            (peer, "not announced", why)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fairlead_bgp::{DownReason, Family, Notification};

    use super::*;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    fn change(index: u8, hops: &[u8]) -> (IpNetwork, Arc<[LearntPath]>) {
        let prefix = IpNetwork::new(IpAddr::from([10, index, 0, 0]), 16).unwrap();
        let path = |hop: &u8| LearntPath {
            next_hop: IpAddr::from([192, 0, 2, *hop]),
            link_local: None,
            interface: None,
            peer: "tor".to_owned(),
        };
        (prefix, hops.iter().map(path).collect())
    }

    fn shown(history: &History) -> Vec<String> {
        let all = history.all().into_iter();
        all.map(|event| format!("{}: {}", event.what, event.why))
            .collect()
    }

    #[test]
    fn few_routes_are_named_and_many_are_one_event() {
        let mut history = History::default();
        let known = change(1, &[]).0;
        let some = [change(1, &[7]), change(2, &[7, 8]), change(3, &[])];
        history.remember_routes(&some, |prefix| *prefix == known, AT);
        history.remember_routes(&[change(1, &[])], |_| true, AT);
        let many: Vec<_> = (0..40).map(|index| change(index, &[7])).collect();
        history.remember_routes(&many, |_| false, AT);
        assert_eq!(
            shown(&history),
            [
                "route changed: 10.1.0.0/16 via 192.0.2.7",
                "route learnt: 10.2.0.0/16 via 192.0.2.7, 192.0.2.8",
                "route lost: 10.1.0.0/16: no path of it is left",
                "40 routes changed: 40 in use now, 0 lost"
            ]
        );
    }

    #[test]
    fn the_oldest_go_and_numbers_go_on() {
        let mut history = History::default();
        let peer = "tor".to_owned();
        for index in 0..2000_u64 {
            let event = if index == 1999 {
                Event::PeerDown {
                    peer: peer.clone(),
                    reason: DownReason::Sent(Notification::BFD_DOWN),
                }
            } else {
                Event::EndOfRib {
                    peer: peer.clone(),
                    family: Family::Ipv4Unicast,
                }
            };
            history.remember(&event, AT);
        }
        assert_eq!(history.ring.len(), KEPT);
        let last = history.all().pop().unwrap();
        assert_eq!(last.number, 2000);
        assert_eq!(last.peer.as_deref(), Some("tor"));
        assert_eq!(
            (last.what.as_str(), last.why.as_str()),
            ("session down", "sent 6/10 BFD Down")
        );
    }
}
