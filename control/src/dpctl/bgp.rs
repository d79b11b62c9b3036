//! `dpctl bgp`: sessions, paths and rules of the speakers.

mod groups;
mod neighbor;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::Outcome;
use super::args::{Bgp, Global, Set};
use super::render::{Align::Left, Align::Right, age, print, rows, say};
use super::run::dash;
use crate::api::client::ask;
use crate::api::types::{Bfd, BfdSession, BgpEvent, BgpGroup, BgpRoute, Neighbor, Peer, Policy};
use crate::view;

/// Asks and prints.
pub async fn run(global: &Global, what: Bgp) -> Result<Outcome> {
    match what {
        Bgp::Peers => peers(global).await,
        Bgp::Neighbor { peer } => show(global, &peer).await,
        Bgp::Advertised { peer: None } => bgp_routes(global, Set::Advertised).await,
        Bgp::Advertised { peer: Some(peer) } => paths_of(global, "advertised", &peer).await,
        Bgp::Received { peer } => paths_of(global, "received", &peer).await,
        Bgp::Policy { peer } => policy(global, peer.as_deref()).await,
        Bgp::Groups => show_groups(global).await,
        Bgp::Replay { file } => replay(global, &file),
        Bgp::Events { follow } => events(global, follow).await,
        Bgp::Bfd => bfd(global).await,
        Bgp::Routes { set } => bgp_routes(global, set).await,
        Bgp::Why { prefix } => bgp_why(global, prefix).await,
    }
}

/// Everything about a peer.
async fn show(global: &Global, peer: &str) -> Result<Outcome> {
    let path = format!("/v1/bgp/neighbor?peer={peer}");
    let found: Vec<Neighbor> = ask(&global.socket, &path).await?;
    print(global, &found, |_| {
        let texts = found.iter().map(|one| neighbor::text(global, one));
        texts.collect::<Vec<_>>().join("\n")
    })?;
    for hint in found.iter().flat_map(|one| &one.hints) {
        say(hint);
    }
    Ok(Outcome::Yes)
}

async fn paths_of(global: &Global, set: &str, peer: &str) -> Result<Outcome> {
    let path = format!("/v1/bgp/routes?set={set}&peer={peer}");
    let paths: Vec<BgpRoute> = ask(&global.socket, &path).await?;
    print_paths(global, &paths)?;
    if paths.is_empty() {
        say(&format!(
            "no paths; `dpctl bgp neighbor {peer}` shows the session"
        ));
    }
    Ok(Outcome::Yes)
}

fn replay(global: &Global, file: &Path) -> Result<Outcome> {
    let paths = view::bgp::replayed(file)?;
    print_paths(global, &paths)?;
    if paths.is_empty() {
        say("the recording comes to no paths");
    }
    Ok(Outcome::Yes)
}

async fn policy(global: &Global, peer: Option<&str>) -> Result<Outcome> {
    let path = peer.map_or_else(
        || "/v1/bgp/policy".to_owned(),
        |peer| format!("/v1/bgp/policy?peer={peer}"),
    );
    let rules: Vec<Policy> = ask(&global.socket, &path).await?;
    print(global, &rules, |_| {
        let columns = [
            ("PEER", Left),
            ("DIRECTION", Left),
            ("RULE", Left),
            ("DOES", Left),
            ("PREFIXES", Right),
        ];
        let lines = rules.iter().map(|rule| {
            vec![
                rule.peer.clone(),
                rule.direction.clone(),
                rule.rule.clone(),
                rule.does.clone(),
                rule.prefixes.to_string(),
            ]
        });
        rows(global, &columns, lines.collect())
    })?;
    if rules.is_empty() {
        say("no peers, and so no rules");
    }
    Ok(Outcome::Yes)
}

async fn show_groups(global: &Global) -> Result<Outcome> {
    let all: Vec<BgpGroup> = ask(&global.socket, "/v1/bgp/groups").await?;
    print(global, &all, |wide| groups::text(global, &all, wide))?;
    if all.is_empty() {
        say("no session is up, and so no groups; `dpctl bgp peers` shows them");
    }
    Ok(Outcome::Yes)
}

/// How often it is asked for what is new.
const FOLLOW: Duration = Duration::from_millis(500);

async fn events(global: &Global, follow: bool) -> Result<Outcome> {
    let mut all: Vec<BgpEvent> = ask(&global.socket, "/v1/bgp/events").await?;
    print(global, &all, |_| events_text(global, &all, true))?;
    if all.is_empty() && !follow {
        say("nothing has happened yet");
    }
    if !follow {
        return Ok(Outcome::Yes);
    }
    loop {
        tokio::time::sleep(FOLLOW).await;
        let known = std::mem::take(&mut all);
        all = ask(&global.socket, "/v1/bgp/events").await?;
        let last = |asn: u32| {
            let of_speaker = known.iter().filter(|event| event.local_asn == asn);
            of_speaker.map(|event| event.number).max()
        };
        let new: Vec<_> = all
            .iter()
            .filter(|event| last(event.local_asn) < Some(event.number))
            .cloned()
            .collect();
        if !new.is_empty() {
            print(global, &new, |_| events_text(global, &new, false))?;
        }
    }
}

fn events_text(global: &Global, events: &[BgpEvent], is_first: bool) -> String {
    let columns = [
        ("TIME", Left),
        ("LOCAL AS", Right),
        ("PEER", Left),
        ("EVENT", Left),
        ("WHY", Left),
    ];
    let lines = events.iter().map(|event| {
        vec![
            event.at.clone(),
            event.local_asn.to_string(),
            dash(event.peer.as_deref().unwrap_or_default()),
            event.what.clone(),
            event.why.clone(),
        ]
    });
    let text = rows(global, &columns, lines.collect());
    let is_headed = !is_first && !global.no_headers;
    text.lines()
        .skip(usize::from(is_headed))
        .map(|line| format!("{line}\n"))
        .collect()
}

async fn peers(global: &Global) -> Result<Outcome> {
    let peers: Vec<Peer> = ask(&global.socket, "/v1/bgp/peers").await?;
    print(global, &peers, |wide| {
        let mut columns = vec![
            ("LOCAL AS", Right),
            ("PEER AS", Right),
            ("PEER ADDRESS", Left),
            ("SESSION", Left),
            ("SINCE", Right),
            ("BFD", Left),
            ("FAMILY", Left),
            ("RECEIVED", Right),
            ("ACCEPTED", Right),
            ("ADVERTISED", Right),
        ];
        if wide {
            columns.extend([
                ("HOLD", Right),
                ("KEEPALIVE", Right),
                ("MSG RCVD", Right),
                ("MSG SENT", Right),
                ("LAST ERROR", Left),
            ]);
        }
        let mut lines = Vec::new();
        for peer in &peers {
            let name = peer.hostname.as_ref().map_or_else(
                || peer.address.clone(),
                |hostname| format!("{} ({hostname})", peer.address),
            );
            for (index, family) in peer.families.iter().enumerate() {
                let mut cells = if index == 0 {
                    vec![
                        peer.local_asn.to_string(),
                        peer.peer_asn.to_string(),
                        name.clone(),
                        peer.state.to_lowercase(),
                        age(peer.since_s),
                        peer.bfd.clone().unwrap_or_else(|| "-".to_owned()),
                    ]
                } else {
                    vec![String::new(); 6]
                };
                cells.extend([
                    family.family.clone(),
                    family.received.to_string(),
                    family.accepted.to_string(),
                    family.advertised.to_string(),
                ]);
                if wide && index == 0 {
                    cells.extend([
                        format!("{}s", peer.hold_s),
                        format!("{}s", peer.keepalive_s),
                        peer.messages_received.to_string(),
                        peer.messages_sent.to_string(),
                        peer.last_error.clone().unwrap_or_else(|| "-".to_owned()),
                    ]);
                }
                lines.push(cells);
            }
        }
        rows(global, &columns, lines)
    })?;
    for peer in &peers {
        if let Some(hint) = &peer.hint {
            say(&format!("{}: {hint}", peer.address));
        }
    }
    if peers.is_empty() {
        say("no peers; a CiliumBGPPeeringPolicy that selects this node makes them");
    }
    Ok(Outcome::Yes)
}

async fn bfd(global: &Global) -> Result<Outcome> {
    let bfd: Bfd = ask(&global.socket, "/v1/bgp/bfd").await?;
    print(global, &bfd, |wide| {
        let mut columns = vec![
            ("PEER", Left),
            ("HOPS", Left),
            ("STATE", Left),
            ("SINCE", Right),
            ("DETECTS IN", Right),
            ("SENDS EVERY", Right),
            ("UPS", Right),
            ("FAILURES", Right),
            ("REASON", Left),
        ];
        if wide {
            columns.extend([
                ("LOCAL", Left),
                ("PEER STATE", Left),
                ("PEER REASON", Left),
                ("ID", Right),
                ("PEER ID", Right),
                ("SENT", Right),
                ("RECEIVED", Right),
            ]);
        }
        let row = |session: &BfdSession| {
            let mut cells = vec![
                session.peer.clone(),
                if session.multihop { "multi" } else { "single" }.to_owned(),
                session.state.clone(),
                age(session.since_s),
                format!("{}ms", session.detection_time_ms),
                format!("{}ms", session.transmit_interval_ms),
                session.ups.to_string(),
                session.failures.to_string(),
                session.reason.clone(),
            ];
            if wide {
                cells.extend([
                    session.local.clone().unwrap_or_else(|| "-".to_owned()),
                    session.remote_state.clone(),
                    session.remote_reason.clone(),
                    session.discriminator.to_string(),
                    session.remote_discriminator.to_string(),
                    session.packets_sent.to_string(),
                    session.packets_received.to_string(),
                ]);
            }
            cells
        };
        rows(global, &columns, bfd.sessions.iter().map(row).collect())
    })?;
    for (why, count) in &bfd.discarded {
        say(&format!("{count} packets were not taken: {why}"));
    }
    if bfd.sessions.is_empty() {
        say("no BFD sessions; a BGPPeerProfile with `bfd` that selects a peer makes one");
    }
    let is_up = |session: &BfdSession| session.state == "up";
    Ok(if bfd.sessions.iter().all(is_up) {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

async fn bgp_routes(global: &Global, set: Set) -> Result<Outcome> {
    let path = match set {
        Set::Available => "/v1/bgp/routes?set=available",
        Set::Advertised => "/v1/bgp/routes?set=advertised",
    };
    let paths: Vec<BgpRoute> = ask(&global.socket, path).await?;
    print_paths(global, &paths)?;
    if paths.is_empty() {
        say("no paths; `dpctl bgp peers` shows whether a session is up");
    }
    Ok(Outcome::Yes)
}

async fn bgp_why(global: &Global, prefix: IpNetwork) -> Result<Outcome> {
    let path = format!("/v1/bgp/why?prefix={prefix}");
    let paths: Vec<BgpRoute> = ask(&global.socket, &path).await?;
    print_paths(global, &paths)?;
    if paths.is_empty() {
        say(&format!(
            "no peer has told {prefix}, and it is not announced; `dpctl bgp routes` lists all prefixes"
        ));
        return Ok(Outcome::No);
    }
    Ok(Outcome::Yes)
}

fn print_paths(global: &Global, paths: &[BgpRoute]) -> Result<()> {
    print(global, &paths, |wide| {
        let mut columns = vec![
            ("", Left),
            ("PREFIX", Left),
            ("NEXT HOP", Left),
            ("PEER", Left),
            ("AS PATH", Left),
            ("ORIGIN", Left),
        ];
        if wide {
            columns.extend([
                ("LOCAL PREF", Right),
                ("MED", Right),
                ("COMMUNITIES", Left),
                ("OTHER ATTRIBUTES", Left),
            ]);
        }
        columns.push(("REASON", Left));
        let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
        let lines = paths
            .iter()
            .map(|path| {
                let mark = match (path.best, path.multipath) {
                    (true, _) => "*>",
                    (false, true) => "*=",
                    (false, false) => "",
                };
                let mut cells = vec![
                    mark.to_owned(),
                    path.prefix.clone(),
                    path.next_hop.clone(),
                    path.peer.clone(),
                    dash(&path.as_path),
                    path.origin.clone(),
                ];
                if wide {
                    cells.extend([
                        number(path.local_pref),
                        number(path.med),
                        dash(&path.communities.join(" ")),
                        dash(&path.others.join(", ")),
                    ]);
                }
                cells.push(path.reason.clone());
                cells
            })
            .collect();
        rows(global, &columns, lines)
    })
}
