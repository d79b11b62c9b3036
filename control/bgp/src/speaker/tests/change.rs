//! What a change of a peer's configuration does to a running session.

use super::*;
use crate::config::ExportRule;

#[test]
fn a_lowered_limit_of_prefixes_counts_at_once() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    let mut changed = toward(2, 65002);
    changed.max_prefixes = Some(1);
    let now = network.now();
    network.speaker(1).set_peer(changed, now);
    assert_ne!(state(&mut network, 1), State::Established);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn export_rules_mark_what_they_name_and_their_change_resets_nothing() {
    for (remote_as, local_pref) in [(65002, None), (65001, Some(200))] {
        let mut network = pair(65001, remote_as, |_| {});
        let now = network.now();
        network
            .speaker(1)
            .set_announcements(announce(&["10.1.0.0/24", "10.1.1.0/24"]), now);
        network.run(20 * SECOND);
        let rule = |community, local_pref| ExportRule {
            prefixes: [net("10.1.0.0/24")].into(),
            communities: [community].into(),
            large_communities: BTreeSet::new(),
            local_pref: Some(local_pref),
        };
        let mut marked = toward(2, remote_as);
        marked.export = vec![rule(8, 50), rule(7, 200)];
        let now = network.now();
        network.speaker(1).set_peer(marked, now);
        network.run(SECOND);
        assert_eq!(network.sessions_up(1), 1);
        let heard: BTreeMap<_, _> = network
            .speaker(2)
            .adj_rib_in("node1")
            .into_iter()
            .map(|mut route| (route.prefix, route.paths.remove(0).attributes))
            .collect();
        assert_eq!(heard[&net("10.1.0.0/24")].communities, [7, 8]);
        assert_eq!(heard[&net("10.1.0.0/24")].local_pref, local_pref);
        assert!(heard[&net("10.1.1.0/24")].communities.is_empty());
    }
}
