//! Everything about one peer, as text: what `show bgp neighbor` of a router says, in our words.

use std::fmt::Write as _;

use crate::api::types::{BgpGroup, Neighbor, Past};
use crate::dpctl::args::Global;
use crate::dpctl::render::{Align::Left, Align::Right, age, endpoint, rows};
use crate::dpctl::run::dash;

/// Draws one peer.
pub(super) fn text(global: &Global, neighbor: &Neighbor) -> String {
    let mut text = summary(neighbor);
    text += "\n";
    text += &rows(
        global,
        &[
            ("FAMILY", Left),
            ("RECEIVED", Right),
            ("ACCEPTED", Right),
            ("ADVERTISED", Right),
        ],
        neighbor
            .peer
            .families
            .iter()
            .map(|family| {
                vec![
                    family.family.clone(),
                    family.received.to_string(),
                    family.accepted.to_string(),
                    family.advertised.to_string(),
                ]
            })
            .collect(),
    );
    if !neighbor.rejected.is_empty() {
        text += "\n";
        let rejected = neighbor.rejected.iter();
        text += &rows(
            global,
            &[("NOT ACCEPTED", Left), ("PREFIXES", Right)],
            rejected
                .map(|(reason, count)| vec![reason.clone(), count.to_string()])
                .collect(),
        );
    }
    text += "\n";
    let yes = |is: bool| if is { "yes" } else { "-" }.to_owned();
    text += &rows(
        global,
        &[("CAPABILITY", Left), ("SENT", Left), ("RECEIVED", Left)],
        neighbor
            .capabilities
            .iter()
            .map(|capability| {
                vec![
                    capability.name.clone(),
                    yes(capability.sent),
                    yes(capability.received),
                ]
            })
            .chain(neighbor.other_capabilities.iter().map(|code| {
                vec![
                    format!("code {code} (not known here)"),
                    yes(false),
                    yes(true),
                ]
            }))
            .collect(),
    );
    text += "\n";
    text += &rows(
        global,
        &[("MESSAGE", Left), ("RECEIVED", Right), ("SENT", Right)],
        neighbor
            .messages
            .iter()
            .map(|count| {
                vec![
                    count.kind.clone(),
                    count.received.to_string(),
                    count.sent.to_string(),
                ]
            })
            .collect(),
    );
    text
}

fn summary(neighbor: &Neighbor) -> String {
    let peer = &neighbor.peer;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{name:<18}{value}");
    };
    let hostname = peer.hostname.as_deref();
    let called = hostname.map_or_else(String::new, |name| format!(" ({name})"));
    line(
        "Peer",
        format!("{}{called}", endpoint(&peer.address, peer.port)),
    );
    if let Some(alias) = &neighbor.alias {
        line("Name", alias.clone());
    }
    if let Some(range) = &neighbor.range {
        line("Let in by", format!("range {range}"));
    }
    let relation = match (peer.peer_asn, peer.peer_asn == peer.local_asn) {
        (0, _) => "learnt from its OPEN".to_owned(),
        (asn, true) => format!("{asn}, internal"),
        (asn, false) => format!("{asn}, external; ours is {}", peer.local_asn),
    };
    line("AS", relation);
    let identifier = neighbor.peer_router_id.as_deref().unwrap_or_default();
    line(
        "Identifier",
        format!("{}; ours is {}", dash(identifier), neighbor.local_router_id),
    );
    line(
        "Session",
        format!("{} for {}", peer.state.to_lowercase(), age(peer.since_s)),
    );
    if let (Some(local), Some(by)) = (&neighbor.local_address, &neighbor.opened_by) {
        line("Connection", format!("from {local}, opened by {by}"));
    }
    if let Some(reason) = &neighbor.shutdown {
        line("Shut down", format!("by configuration: {reason}"));
    }
    if let Some(seconds) = neighbor.next_attempt_s {
        line("Next attempt", format!("in {}", age(seconds)));
    }
    line(
        "Established",
        format!("{} times", neighbor.established_count),
    );
    let past = |past: &Option<Past>| match past {
        Some(past) => format!("{} ago: {}", age(past.ago_s), past.what),
        None => "never".to_owned(),
    };
    line("Last reset", past(&neighbor.last_reset));
    line("Last NOTIFICATION", past(&neighbor.last_notification));
    if let Some(error) = &peer.last_error {
        line("Last error", error.clone());
    }
    let proposed = neighbor
        .proposed_hold_s
        .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s"));
    line(
        "Hold time",
        format!(
            "{}s (ours {}s, its {proposed}), keepalive {}s (ours {}s)",
            peer.hold_s,
            neighbor.configured_hold_s,
            peer.keepalive_s,
            neighbor.configured_keepalive_s
        ),
    );
    line(
        "Dialling",
        if neighbor.passive {
            "never: the peer dials".to_owned()
        } else {
            format!(
                "every {0}s to {1}s",
                neighbor.connect_retry_s,
                2 * neighbor.connect_retry_s
            )
        },
    );
    line(
        "TCP MD5",
        if neighbor.md5 { "signed" } else { "not signed" }.to_owned(),
    );
    line("TTL", ttl(neighbor));
    line(
        "BFD",
        peer.bfd.clone().unwrap_or_else(|| "not watched".to_owned()),
    );
    if let Some(role) = &neighbor.role {
        let ours = role.ours.as_deref().unwrap_or("not said");
        let strict = if role.strict { ", strict" } else { "" };
        let its = if role.its.is_empty() {
            "not said".to_owned()
        } else {
            role.its.join(", ")
        };
        line("Role", format!("ours {ours}{strict}; its {its}"));
    }
    line("Graceful restart", graceful_restart(neighbor));
    if let Some(long_lived) = long_lived(neighbor) {
        line("Long-lived", long_lived);
    }
    if !neighbor.graceful_restart.kept_s.is_empty() {
        let kept = neighbor.graceful_restart.kept_s.iter();
        let kept: Vec<_> = kept
            .map(|(family, seconds)| format!("{family} for {} still", age(*seconds)))
            .collect();
        line("Routes kept", kept.join(", "));
    }
    line("End-of-RIB", end_of_rib(neighbor));
    line("Import", neighbor.import.clone());
    if let Some(limit) = neighbor.max_prefixes {
        line("Limit", format!("{limit} prefixes per family"));
    }
    let mut export = vec!["what BGP advertisements select"];
    if neighbor.transit {
        export.push("what other peers told");
    }
    if neighbor.graceful_shutdown {
        export.push("marked GRACEFUL_SHUTDOWN");
    }
    line("Export", export.join(", "));
    if let Some(group) = &neighbor.group {
        line("Update group", update_group(group, &neighbor.name));
    }
    if neighbor.attributes_discarded + neighbor.treated_as_withdraw > 0 {
        line(
            "Faulty UPDATEs",
            format!(
                "{} lost an attribute, {} lost their routes",
                neighbor.attributes_discarded, neighbor.treated_as_withdraw
            ),
        );
    }
    text
}

fn update_group(group: &BgpGroup, name: &str) -> String {
    let others = match group.peers.len() {
        0 | 1 => "alone".to_owned(),
        2 => "with one other peer".to_owned(),
        all => format!("with {} other peers", all - 1),
    };
    let is_behind = group.behind.iter().any(|behind| behind == name);
    let late = if is_behind {
        "; behind the others, catching up"
    } else {
        ""
    };
    format!("{}, {others}{late}", group.number)
}

fn ttl(neighbor: &Neighbor) -> String {
    let ours = neighbor
        .ttl
        .map_or_else(|| "the host's default".to_owned(), |ttl| ttl.to_string());
    match neighbor.least_ttl {
        Some(least) => format!("{ours}; of its packets {least} at least (GTSM)"),
        None => ours,
    }
}

fn graceful_restart(neighbor: &Neighbor) -> String {
    let restart = &neighbor.graceful_restart;
    let ours = restart.offered_s.map_or_else(
        || "not offered".to_owned(),
        |seconds| format!("it keeps our routes for {seconds}s"),
    );
    let theirs = match restart.peer_s {
        None => "it does not offer it".to_owned(),
        Some(seconds) => {
            let preserved = if restart.peer_preserves.is_empty() {
                "no forwarding preserved".to_owned()
            } else {
                format!(
                    "forwarding preserved for {}",
                    restart.peer_preserves.join(", ")
                )
            };
            let restarted = if restart.peer_restarted {
                ", it had restarted"
            } else {
                ""
            };
            format!("we keep its for {seconds}s ({preserved}{restarted})")
        }
    };
    format!("{ours}; {theirs}")
}

/// What follows the restart time, when either side offers it.
fn long_lived(neighbor: &Neighbor) -> Option<String> {
    let restart = &neighbor.graceful_restart;
    let ours = restart.offered_long_lived_s.map_or_else(
        || "not offered".to_owned(),
        |seconds| format!("it keeps our routes for {seconds}s more, marked stale"),
    );
    let theirs: Vec<_> = restart
        .peer_long_lived_s
        .iter()
        .map(|(family, seconds)| format!("{family} for {seconds}s"))
        .collect();
    let theirs = if theirs.is_empty() {
        "it does not offer it".to_owned()
    } else {
        format!("it asks us to keep {}", theirs.join(", "))
    };
    let is_said = restart.offered_long_lived_s.is_some() || !restart.peer_long_lived_s.is_empty();
    is_said.then(|| format!("{ours}; {theirs}"))
}

fn end_of_rib(neighbor: &Neighbor) -> String {
    let restart = &neighbor.graceful_restart;
    let sent = if restart.end_of_rib_sent {
        "sent"
    } else {
        "not sent"
    };
    let received = if restart.end_of_rib_received.is_empty() {
        "none received".to_owned()
    } else {
        format!("received for {}", restart.end_of_rib_received.join(", "))
    };
    format!("{sent}, {received}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::types::{BgpRole, Capability, GracefulRestart, MessageCount, Peer, PeerFamily};
    use crate::dpctl::args::Output;
    use crate::dpctl::bgp::groups::tests::group;

    fn neighbor() -> Neighbor {
        Neighbor {
            peer: Peer {
                local_asn: 65001,
                peer_asn: 65000,
                address: "fd77::2".to_owned(),
                port: 179,
                state: "Established".to_owned(),
                since_s: 303,
                hostname: Some("tor".to_owned()),
                bfd: Some("up".to_owned()),
                families: vec![PeerFamily {
                    family: "ipv6-unicast".to_owned(),
                    received: 12,
                    accepted: 10,
                    advertised: 3,
                }],
                hold_s: 9,
                keepalive_s: 3,
                messages_received: 120,
                messages_sent: 110,
                last_error: None,
                hint: None,
            },
            name: "fd77::2".to_owned(),
            alias: Some("leaf0".to_owned()),
            range: Some("fd77::".to_owned()),
            local_router_id: "10.0.0.1".to_owned(),
            peer_router_id: Some("10.0.0.2".to_owned()),
            local_address: Some("fd77::1".to_owned()),
            opened_by: Some("it".to_owned()),
            passive: false,
            shutdown: None,
            next_attempt_s: None,
            established_count: 2,
            last_reset: Some(Past {
                ago_s: 304,
                what: "received 6/2 Administrative Shutdown (\"rack moves\")".to_owned(),
            }),
            last_notification: None,
            configured_hold_s: 90,
            configured_keepalive_s: 30,
            proposed_hold_s: Some(9),
            connect_retry_s: 120,
            capabilities: vec![Capability {
                name: "ipv6-unicast".to_owned(),
                sent: true,
                received: true,
            }],
            other_capabilities: vec![6],
            messages: vec![MessageCount {
                kind: "UPDATE".to_owned(),
                received: 7,
                sent: 3,
            }],
            attributes_discarded: 0,
            treated_as_withdraw: 1,
            import: "all prefixes".to_owned(),
            rejected: BTreeMap::from([("our AS is in the path".to_owned(), 2)]),
            max_prefixes: Some(1000),
            graceful_shutdown: false,
            transit: true,
            role: Some(BgpRole {
                ours: Some("customer".to_owned()),
                strict: true,
                its: vec!["provider".to_owned()],
            }),
            graceful_restart: GracefulRestart {
                offered_s: Some(120),
                peer_s: Some(60),
                offered_long_lived_s: Some(3600),
                peer_long_lived_s: BTreeMap::from([("ipv6-unicast".to_owned(), 600)]),
                peer_preserves: vec!["ipv6-unicast".to_owned()],
                end_of_rib_received: vec!["ipv6-unicast".to_owned()],
                end_of_rib_sent: true,
                ..GracefulRestart::default()
            },
            group: Some(group()),
            md5: true,
            ttl: Some(255),
            least_ttl: Some(254),
            hints: Vec::new(),
        }
    }

    #[test]
    fn a_neighbor_is_shown_with_its_past_its_terms_and_its_counts() {
        let global = Global {
            socket: "/nowhere".into(),
            pin_path: None,
            output: Output::Table,
            no_headers: false,
        };
        assert_eq!(text(&global, &neighbor()), include_str!("neighbor.txt"));
    }
}
