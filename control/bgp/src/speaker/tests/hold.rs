//! How long a peer may be silent, and how long it may take nothing from us.

use super::*;

#[test]
fn a_silent_peer_is_given_up_after_the_hold_time_and_found_again() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.cut();
    network.run(Duration::from_millis(5999));
    assert_eq!(state(&mut network, 1), State::Established, "too early");
    network.run(3 * SECOND + Duration::from_millis(2));
    assert_ne!(state(&mut network, 1), State::Established);
    assert!(hops(&mut network, 1).is_empty());
    let now = network.now();
    let error = network.speaker(1).peers(now)[0].last_error.clone().unwrap();
    assert!(error.contains("Hold Timer Expired"), "{error}");
    network.heal();
    network.run(12 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(hops(&mut network, 1).len(), 1);
}

#[test]
fn keepalives_keep_a_quiet_session_up_for_a_day() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(24 * 3600 * SECOND);
    assert_eq!(network.sessions_up(1), 1);
    assert_eq!(network.sessions_up(2), 1);
}

#[test]
fn a_peer_whose_words_are_still_to_be_read_has_the_hold_time_again() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    network.cut();
    let begin = network.now();
    let later = begin + 9 * SECOND;
    let speaker = network.speaker(1);
    let silent: Vec<_> = speaker.silent(later).collect();
    assert_eq!(silent.len(), 1, "of two sessions one has a connection");
    assert_eq!(speaker.silent(begin).count(), 0);
    // Of a connection that nothing is due of: nothing changes.
    speaker.handle_unread(silent[0], begin);
    assert_eq!(speaker.silent(later).count(), 1);

    speaker.handle_unread(silent[0], later);
    speaker.handle_timeout(later);
    assert_eq!(speaker.peers(later)[0].state, State::Established);
    let almost = later + Duration::from_millis(8999);
    speaker.handle_timeout(almost);
    assert_eq!(speaker.peers(almost)[0].state, State::Established);
    // Nothing was said since: silence is told from being late.
    speaker.handle_timeout(later + 9 * SECOND);
    let peer = &speaker.peers(later + 9 * SECOND)[0];
    let error = peer.last_error.as_deref().unwrap();
    assert!(error.contains("Hold Timer Expired"), "{error}");
}

#[test]
fn a_peer_that_takes_nothing_is_given_up_after_the_send_hold_time() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    network.stop_reporting_writes(1);
    network.run(470 * SECOND);
    assert_eq!(network.sessions_up(1), 1);
    assert_eq!(state(&mut network, 1), State::Established);
    network.run(40 * SECOND);
    assert!(network.events(1).iter().any(|event| matches!(
        event,
        Event::PeerDown {
            reason: DownReason::SendHoldExpired,
            ..
        }
    )));
}
