//! Routes that are told again, and routes that a NOTIFICATION does not cost (RFC 7313, RFC 8538): a peer of raw bytes.

use super::raw::{AS_PATH, NEXT_HOP, ORIGIN, Raw, open, update, with};
use super::*;
use crate::wire::{self, GracefulRestartOffer, Message, Open, Refresh};

/// A session with a peer that restarts gracefully, of which we learnt a route; `notification` is its N bit.
fn graceful(notification: bool) -> Raw {
    let mut raw = Raw::connected();
    let mut peer = toward(2, 65002);
    peer.passive = true;
    restart::restartable(&mut peer);
    let now = raw.now;
    raw.speaker.set_peer(peer, now);
    let local = SocketAddr::new(address(1), 179);
    let remote = SocketAddr::new(address(2), 50_001);
    raw.connection = raw
        .speaker
        .handle_incoming(local, remote, now)
        .unwrap()
        .connection;
    raw.send(&wire::encode_open(&Open {
        graceful_restart: Some(GracefulRestartOffer {
            restarting: false,
            notification,
            restart_time: 30 * SECOND,
            families: Family::ALL.map(|family| (family, true)).into(),
        }),
        enhanced_route_refresh: true,
        ..open()
    }));
    raw.send(&wire::encode_keepalive());
    raw.send(&with(&[]));
    assert_eq!(raw.speaker.learnt().len(), 1);
    raw.answers();
    raw
}

#[test]
fn a_notification_costs_the_routes_unless_the_peer_agreed_that_it_does_not() {
    let reset = Notification::bare(6, 4);
    for (said, notification, kept) in [
        (reset.clone(), false, 0),
        (reset.clone(), true, 1),
        (Notification::hard_reset(&reset), true, 0),
    ] {
        let mut raw = graceful(notification);
        raw.send(&wire::encode_notification(&said));
        assert_eq!(raw.speaker.learnt().len(), kept, "{said}");
    }
}

#[test]
fn a_peer_without_the_n_bit_is_sent_no_hard_reset() {
    let mut raw = graceful(false);
    let now = raw.now;
    raw.speaker.remove_peer("node2", now);
    let farewell = Message::Notification(Notification::PEER_DECONFIGURED);
    assert_eq!(raw.answers(), [farewell]);
}

/// A session with enhanced route refresh, in which the peer told 10.0.0.0/8 and 11.0.0.0/8.
fn refreshable() -> Raw {
    let mut raw = Raw::connected();
    raw.send(&wire::encode_open(&Open {
        enhanced_route_refresh: true,
        ..open()
    }));
    raw.send(&wire::encode_keepalive());
    let now = raw.now;
    raw.speaker
        .set_announcements(announce(&["10.9.0.0/24"]), now);
    raw.send(&update(
        &[],
        &[ORIGIN, AS_PATH, NEXT_HOP].concat(),
        &[8, 10, 8, 11],
    ));
    assert_eq!(raw.speaker.learnt().len(), 2);
    raw.answers_all();
    raw
}

fn refresh(kind: Refresh) -> bytes::Bytes {
    wire::encode_route_refresh(Family::Ipv4Unicast, kind)
}

#[test]
fn what_is_not_told_again_between_the_marks_of_a_refresh_is_gone() {
    let mut raw = refreshable();
    raw.send(&refresh(Refresh::Begin));
    assert_eq!(raw.speaker.learnt().len(), 2, "used until the end");
    raw.send(&with(&[]));
    raw.send(&refresh(Refresh::End));
    let left: Vec<_> = raw.speaker.learnt().into_keys().collect();
    assert_eq!(left, [net("10.0.0.0/8")]);
    let over = Event::RefreshOver {
        peer: "node2".to_owned(),
        family: Family::Ipv4Unicast,
        dropped: 1,
    };
    assert!(std::iter::from_fn(|| raw.speaker.poll_event()).any(|event| event == over));
    // An end without a beginning means nothing.
    raw.send(&refresh(Refresh::End));
    assert_eq!(raw.speaker.learnt().len(), 1);
}

#[test]
fn a_refresh_that_does_not_end_is_over_after_six_minutes() {
    let mut raw = refreshable();
    raw.send(&refresh(Refresh::Begin));
    for minute in 0..=6 {
        assert_eq!(raw.speaker.learnt().len(), 2, "{minute}");
        raw.now += 60 * SECOND;
        raw.send(&wire::encode_keepalive());
        let now = raw.now;
        raw.speaker.handle_timeout(now);
        if minute == 5 {
            break;
        }
    }
    assert!(raw.speaker.learnt().is_empty());
}

#[test]
fn who_asks_for_our_routes_again_hears_them_between_marks_if_it_knows_them() {
    let mut raw = refreshable();
    raw.send(&refresh(Refresh::Ask));
    let answers = raw.answers_all();
    let (begin, end) = (refresh(Refresh::Begin), refresh(Refresh::End));
    assert!(answers.starts_with(&begin) && answers.ends_with(&end));
    assert_eq!(answers[begin.len() + 18], 2, "an UPDATE");
    assert!(answers.len() > 3 * begin.len());

    let mut raw = Raw::established();
    let now = raw.now;
    raw.speaker
        .set_announcements(announce(&["10.9.0.0/24"]), now);
    raw.answers_all();
    // To who does not know marks they are no marks.
    raw.send(&refresh(Refresh::Begin));
    let answers = raw.answers();
    assert!(matches!(answers[..], [Message::Update(_)]), "{answers:?}");
}

#[test]
fn a_mark_before_an_awaited_end_of_rib_is_ignored() {
    let mut raw = graceful(true);
    assert!(raw.speaker.peers(raw.now)[0].heard.is_some());
    raw.send(&refresh(Refresh::Begin));
    raw.send(&refresh(Refresh::End));
    assert_eq!(raw.speaker.learnt().len(), 1);
    raw.send(&wire::end_of_rib(Family::Ipv4Unicast));
    raw.send(&refresh(Refresh::Begin));
    raw.send(&refresh(Refresh::End));
    assert!(raw.speaker.learnt().is_empty());
}

#[test]
fn a_session_lost_amid_a_refresh_costs_no_route_that_restarts() {
    let mut raw = graceful(true);
    raw.send(&wire::end_of_rib(Family::Ipv4Unicast));
    raw.send(&refresh(Refresh::Begin));
    let (connection, now) = (raw.connection, raw.now);
    raw.speaker.handle_closed(connection, "reset", now);
    assert_eq!(raw.speaker.learnt().len(), 1);
}
