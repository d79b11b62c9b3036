//! Peers that are told the same by one computation know what each alone would have been told.

mod star;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::config::ExportRule;
use crate::wire::{self, Refresh};
use star::{ASES, OTHER_NEXT_HOP, OURS, PREFIXES, Star};

/// Peers 2 to 5 are external and told the same, 6 and 7 internal and told the same.
#[test]
fn peers_that_are_told_the_same_are_told_it_in_the_same_bytes() {
    let mut star = Star::new(6);
    let groups = star.speaker.groups();
    let peers: Vec<_> = groups.iter().map(|group| group.peers.clone()).collect();
    assert_eq!(
        peers,
        [
            vec!["node2", "node3", "node4", "node5"],
            vec!["node6", "node7"]
        ]
    );
    star.sent.clear();
    star.announce(2, PREFIXES[1], 6);
    let to: BTreeMap<u8, &Bytes> = star.sent.iter().map(|(peer, sent)| (*peer, sent)).collect();
    assert_eq!(star.sent.len(), 5, "once each, and not who told it");
    assert_eq!(to.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    for (one, other, is_shared) in [(3, 4, true), (3, 5, true), (6, 7, true), (3, 6, false)] {
        assert_eq!(to[&one].as_ptr() == to[&other].as_ptr(), is_shared);
    }
}

#[test]
fn what_we_originate_is_written_once_for_all_that_hear_the_same_of_it() {
    let mut star = Star::new(6);
    let mut marked = star.configs[&4].clone();
    marked.export.push(ExportRule {
        prefixes: [net(PREFIXES[0])].into(),
        communities: [42].into(),
        ..ExportRule::default()
    });
    star.configure(4, marked);
    star.sent.clear();
    let mut ours = announce(&[PREFIXES[0], PREFIXES[5]]);
    let for_two = ours.get_mut(&net(PREFIXES[5])).unwrap();
    for_two.peers = Some(["node2", "node3"].map(ToOwned::to_owned).into());
    star.originate(ours);
    star.check().unwrap();
    let to: BTreeMap<u8, &Bytes> = star.sent.iter().map(|(peer, sent)| (*peer, sent)).collect();
    for (one, other, is_shared) in [(2, 3, true), (6, 7, true), (2, 5, false), (4, 5, false)] {
        let is_same = to[&one].as_ptr() == to[&other].as_ptr();
        assert_eq!(is_same, is_shared, "node{one} and node{other}");
    }
    star.sent.clear();
    star.originate(Announcements::new());
    star.check().unwrap();
    let (first, second) = (&star.sent[0], &star.sent[1]);
    assert_eq!((first.0, second.0), (2, 3));
    assert_eq!(first.1.as_ptr(), second.1.as_ptr());
}

#[test]
fn who_told_the_better_path_itself_hears_that_the_other_one_is_gone_and_nothing_else() {
    let mut star = Star::new(4);
    star.announce(2, PREFIXES[1], 7);
    assert!(star.peers[&3].told.contains_key(&net(PREFIXES[1])));
    star.sent.clear();
    star.announce(3, PREFIXES[1], 6);
    let to: Vec<u8> = star.sent.iter().map(|(peer, _)| *peer).collect();
    assert_eq!(to, [2, 3, 4, 5]);
    assert!(star.peers[&3].told.is_empty());
    star.check().unwrap();
    star.sent.clear();
    star.withdraw(3, PREFIXES[1]);
    assert!(star.peers[&2].told.is_empty(), "its own is best again");
    star.check().unwrap();
}

#[test]
fn a_slow_peer_falls_behind_holds_up_nobody_and_catches_up() {
    let mut star = Star::new(4);
    star.stall(5);
    for (at, prefix) in PREFIXES.iter().enumerate() {
        star.announce(2, prefix, 6 + at as u8 % 3);
        star.check().unwrap();
    }
    star.withdraw(2, PREFIXES[6]);
    star.announce(2, PREFIXES[7], 6);
    star.check().unwrap();
    assert_eq!(star.speaker.groups()[0].behind, ["node5"]);
    let late = &star.peers[&5].told;
    assert!(!late.contains_key(&net(PREFIXES[7])));
    star.sent.clear();
    star.go_on(5);
    star.check().unwrap();
    assert!(star.sent.iter().all(|(peer, _)| *peer == 5));
    assert!(star.speaker.groups()[0].behind.is_empty());
    star.sent.clear();
    star.announce(2, PREFIXES[0], 8);
    let to_4 = star.sent.iter().find(|(peer, _)| *peer == 4).unwrap();
    let to_5 = star.sent.iter().find(|(peer, _)| *peer == 5).unwrap();
    assert_eq!(to_4.1.as_ptr(), to_5.1.as_ptr(), "it is in step again");
}

#[test]
fn while_nobody_takes_more_changes_are_said_once_and_to_all() {
    let mut star = Star::new(4);
    for peer in 3..=5 {
        star.stall(peer);
    }
    for prefix in &PREFIXES[..4] {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    for kind in [7, 8, 6, 7] {
        for prefix in PREFIXES {
            star.announce(2, prefix, kind);
        }
    }
    let group = &star.speaker.groups()[0];
    assert_eq!(group.waiting, PREFIXES.len());
    assert!(group.behind.is_empty());
    assert!(star.sent.is_empty());
    for peer in 3..=5 {
        star.go_on(peer);
    }
    star.check().unwrap();
    let told = star.sent.iter().filter(|(peer, _)| *peer == 4);
    let told: usize = told.map(|(_, bytes)| bytes.len()).sum();
    assert!(told < 500, "each prefix once: {told} octets");
}

#[test]
fn who_joins_is_told_all_before_the_end_and_who_leaves_takes_nothing_from_others() {
    let mut star = Star::new(4);
    for prefix in PREFIXES {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    star.reset(4);
    star.check().unwrap();
    assert!(
        star.sent.iter().all(|(peer, _)| *peer == 4),
        "others hear nothing of it"
    );
    let last = star.sent.last().unwrap();
    let end = wire::end_of_rib(Family::Ipv6Unicast);
    assert!(last.1.ends_with(&end), "the end comes last");
    for peer in 3..=5 {
        let connection = star.peers[&peer].connection.unwrap();
        star.speaker.handle_closed(connection, "reset", star.now);
    }
    assert_eq!(star.speaker.groups()[0].peers, ["node2"]);
    star.reset(2);
    assert_eq!(
        star.speaker.groups().len(),
        1,
        "none is left without a peer"
    );
}

#[test]
fn a_changed_export_moves_one_peer_and_tells_the_others_nothing() {
    let mut star = Star::new(4);
    for prefix in PREFIXES {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    let mut changed = star.configs[&4].clone();
    changed.next_hop_v4 = Some(OTHER_NEXT_HOP);
    star.configure(4, changed);
    star.check().unwrap();
    assert!(star.sent.iter().all(|(peer, _)| *peer == 4));
    let groups = star.speaker.groups();
    assert_eq!(groups[0].peers, ["node2", "node3", "node5"]);
    assert_eq!(groups[1].peers, ["node4"]);

    // What it need not be told again it is not.
    star.sent.clear();
    let mut marked = star.configs[&4].clone();
    marked.max_prefixes = Some(1000);
    star.configure(4, marked);
    assert!(star.sent.is_empty());
    let mut back = star.configs[&4].clone();
    back.next_hop_v4 = None;
    star.configure(4, back);
    star.check().unwrap();
    assert_eq!(star.speaker.groups().len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Announce(u8, usize, u8),
    Withdraw(u8, usize),
    /// Of what may be ours the prefixes of these bits, those of the second to two peers only.
    Originate(u8, u8),
    Stall(u8),
    GoOn(u8),
    Refresh(u8, Family),
    Reset(u8),
    /// Which switches of a peer's export are on.
    Configure(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 2..2 + ASES.len() as u8;
    let prefix = || 0..PREFIXES.len();
    prop_oneof![
        8 => (peer(), prefix(), 0..12_u8).prop_map(|(peer, at, kind)| Step::Announce(peer, at, kind)),
        4 => (peer(), prefix()).prop_map(|(peer, at)| Step::Withdraw(peer, at)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(ours, chosen)| Step::Originate(ours, chosen)),
        2 => peer().prop_map(Step::Stall),
        2 => peer().prop_map(Step::GoOn),
        1 => (peer(), any::<bool>()).prop_map(|(peer, v4)| Step::Refresh(peer, Family::ALL[usize::from(v4)])),
        1 => peer().prop_map(Step::Reset),
        2 => (peer(), any::<u8>()).prop_map(|(peer, switches)| Step::Configure(peer, switches)),
    ]
}

fn take_step(star: &mut Star, step: &Step) {
    match *step {
        Step::Announce(peer, prefix, kind) => star.announce(peer, PREFIXES[prefix], kind),
        Step::Withdraw(peer, prefix) => star.withdraw(peer, PREFIXES[prefix]),
        Step::Originate(ours, chosen) => {
            let ours = OURS.iter().filter(|at| ours & (1 << **at) != 0);
            let all = ours.map(|at| {
                let names = ["node2", "node5"].map(ToOwned::to_owned);
                let announcement = Announcement {
                    peers: (chosen & (1 << at) != 0).then(|| names.into()),
                    ..Announcement::default()
                };
                (net(PREFIXES[*at]), announcement)
            });
            star.originate(all.collect());
        }
        Step::Stall(peer) => star.stall(peer),
        Step::GoOn(peer) => star.go_on(peer),
        Step::Refresh(peer, family) => {
            star.hear(peer, &wire::encode_route_refresh(family, Refresh::Ask));
        }
        Step::Reset(peer) => star.reset(peer),
        Step::Configure(peer, switches) => {
            let is_on = |bit: u8| switches & (1 << bit) != 0;
            let mut config = star.configs[&peer].clone();
            config.transit = is_on(0) || is_on(1);
            config.graceful_shutdown = is_on(2) && is_on(3);
            config.next_hop_v4 = (is_on(4) && is_on(5)).then_some(OTHER_NEXT_HOP);
            config.export = Vec::new();
            if is_on(6) {
                config.export.push(ExportRule {
                    prefixes: [net(PREFIXES[0])].into(),
                    communities: [42].into(),
                    ..ExportRule::default()
                });
            }
            star.configure(peer, config);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn each_peer_knows_what_it_would_be_told_alone(
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut star = Star::new(ASES.len() as u8);
        star.check()?;
        for step in steps {
            take_step(&mut star, &step);
            star.check()?;
        }
        for peer in 2..2 + ASES.len() as u8 {
            star.go_on(peer);
        }
        star.check()?;
    }
}
