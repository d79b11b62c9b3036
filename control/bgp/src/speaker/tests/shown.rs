//! What a speaker shows of a peer to who asks why.

use super::*;
use crate::config::PrefixRule;
use crate::snapshot::Said;
use crate::wire::Notification;

#[test]
fn a_neighbor_shows_both_opens_its_messages_and_what_was_refused_for_which_reason() {
    let mut network = pair(65001, 65002, |peer| {
        let rule = |prefix| PrefixRule {
            prefix: net(prefix),
            ge: None,
            le: None,
        };
        peer.passive = peer.name == "node1";
        peer.import = ImportPolicy::Prefixes(vec![rule("10.1.0.0/24"), rule("10.2.0.0/24")]);
    });
    let now = network.now();
    network.speaker(1).set_announcements(
        announce(&["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24"]),
        now,
    );
    network.speaker(2).withdraw_all(now);
    network.run(20 * SECOND);
    let now = network.now();
    let shown = network.speaker(2).neighbor("node1", now).unwrap();
    let heard = shown.peer.heard.unwrap();
    assert_eq!((heard.asn, shown.offered.asn), (65001, 65002));
    assert_eq!(
        shown.rejected,
        BTreeMap::from([(Rejection::NotImported, 2)])
    );
    assert_eq!(shown.end_of_rib, Family::ALL);
    assert!(shown.end_of_rib_sent && shown.opened.is_some());
    let received = shown.peer.counters.received;
    assert_eq!((received.opens, received.notifications), (1, 0));
    assert_eq!(received.updates, 3, "the routes and two End-of-RIB markers");
    assert!(received.keepalives > 0 && received.total() > 4);

    let policy = network.speaker(2).policy("node1").unwrap();
    let counts: Vec<_> = policy.rules.iter().map(|(_, count)| *count).collect();
    assert_eq!((counts, policy.accepted), (vec![1, 0], 1));
    let told = network.speaker(1).policy("node2").unwrap();
    assert_eq!((told.announced, told.passed_on), (3, 0));
    assert!(network.speaker(2).neighbor("nobody", now).is_none());

    let one = network.speaker(2).adj_rib_in("node1");
    assert_eq!(one.len(), 3);
    assert_eq!(
        network.speaker(2).paths(&net("10.1.1.0/24"))[0].rejection,
        Some(Rejection::NotImported)
    );
}

#[test]
fn how_the_last_session_ended_is_known_while_the_next_one_stands() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    let now = network.now();
    network.speaker(1).shutdown("rack moves", now);
    network.run(60 * SECOND);
    let now = network.now();
    let peer = network.speaker(2).peers(now).remove(0);
    let Said {
        by_us,
        notification,
        ago,
    } = peer.last_notification.unwrap();
    assert!(!by_us && ago >= 59 * SECOND);
    assert_eq!(
        notification,
        Notification::administrative_shutdown("rack moves")
    );
    let reset = peer.last_reset.unwrap();
    assert_eq!(
        reset.reason.to_string(),
        "received 6/2 Administrative Shutdown (\"rack moves\")"
    );
}

#[test]
fn an_open_that_was_refused_is_shown() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network.speaker(1).set_peer(toward(2, 65009), now);
    network.run(20 * SECOND);
    let now = network.now();
    let peer = network.speaker(1).peers(now).remove(0);
    assert_eq!(peer.heard.unwrap().asn, 65002);
    assert!(peer.last_notification.unwrap().by_us);
    assert_eq!(peer.last_reset, None, "it was never established");
}
