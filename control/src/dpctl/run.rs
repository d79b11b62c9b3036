//! What each question asks, and how its answer looks to eyes.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use ipnetwork::IpNetwork;

use super::args::{Bgp, Dpctl, Global, Nat, Noun, Set};
use super::render::{Align::Left, Align::Right, age, print, rows, say};
use super::{Outcome, backends, flows, import, services, trace};
use crate::api::client::ask;
use crate::api::types::{Bfd, BfdSession, BgpRoute, Binding, Peer, ReasonCount, Route, Status};

/// Asks and prints.
pub async fn run(typed: Dpctl) -> Result<Outcome> {
    let global = &typed.global;
    let Some(noun) = typed.noun else {
        // Clap would do this by itself, but takes a variable in the environment for an argument.
        Dpctl::command().print_help()?;
        return Ok(Outcome::NotAsked);
    };
    match noun {
        Noun::Status => status(global).await,
        Noun::Services { verb, name } => services::run(global, verb, name).await,
        Noun::Backends { verb, of } => backends::run(global, verb, of).await,
        Noun::Flows { verb, filter } => flows::run(global, verb, filter).await,
        Noun::Trace(typed) => trace::run(global, typed).await,
        Noun::Bgp(Bgp::Peers) => peers(global).await,
        Noun::Bgp(Bgp::Bfd) => bfd(global).await,
        Noun::Bgp(Bgp::Routes { set }) => bgp_routes(global, set).await,
        Noun::Bgp(Bgp::Why { prefix }) => bgp_why(global, prefix).await,
        Noun::Routes => routes(global).await,
        Noun::Nat(Nat::List) => nat(global).await,
        Noun::Drops { all } => drops(global, all).await,
        Noun::Maps(maps) => super::tables::run(global, maps).await,
        Noun::Import(what) => import::run(&what),
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Dpctl::command(), "dpctl", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(Outcome::Yes)
        }
    }
}

async fn status(global: &Global) -> Result<Outcome> {
    let status: Status = ask(&global.socket, "/v1/status").await?;
    let good = status.in_sync
        && status
            .attachments
            .iter()
            .all(|attachment| attachment.attached)
        && status.peers.good == status.peers.all;
    print(global, &status, |_| status_text(global, &status))?;
    Ok(if good { Outcome::Yes } else { Outcome::No })
}

fn status_text(global: &Global, status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text += &format!("{name:<16}{value}\n");
    };
    line("Node", status.node.clone());
    line(
        "Agent",
        format!(
            "{} (pid {}), up {}",
            status.version,
            status.pid,
            age(status.uptime_s)
        ),
    );
    line("Pins", status.pin_path.clone());
    line(
        "Tables",
        if status.in_sync {
            "in sync with what is desired"
        } else {
            "NOT in sync: the last plan failed in part, see the conditions"
        }
        .to_owned(),
    );
    line(
        "Services",
        format!(
            "{} of {} announced",
            status.services.good, status.services.all
        ),
    );
    line(
        "BGP peers",
        format!("{} of {} established", status.peers.good, status.peers.all),
    );
    line(
        "Learnt routes",
        format!(
            "{} of {} in the kernel's table",
            status.learnt_routes.good, status.learnt_routes.all
        ),
    );
    line(
        "Egress address",
        status
            .egress_address
            .clone()
            .unwrap_or_else(|| "none: pods leave untranslated".to_owned()),
    );
    if !status.drained.is_empty() {
        line("Drained", status.drained.join(", "));
    }
    text += "\n";
    text += &rows(
        global,
        &[("DEVICE", Left), ("PROGRAM", Left), ("STATE", Left)],
        status
            .attachments
            .iter()
            .map(|a| vec![a.device.clone(), a.program.clone(), a.state.clone()])
            .collect(),
    );
    if !status.pods.is_empty() {
        text += "\n";
        text += &rows(
            global,
            &[("POD", Left), ("DEVICE", Left), ("ADDRESSES", Left)],
            status
                .pods
                .iter()
                .map(|pod| {
                    vec![
                        pod.name.clone(),
                        pod.device.clone(),
                        pod.addresses.join(","),
                    ]
                })
                .collect(),
        );
    }
    if !status.conditions.is_empty() {
        text += "\n";
        text += &rows(
            global,
            &[
                ("CONDITION", Left),
                ("OBJECT", Left),
                ("AT", Left),
                ("MESSAGE", Left),
            ],
            status
                .conditions
                .iter()
                .map(|c| {
                    vec![
                        c.reason.clone(),
                        c.object.clone(),
                        dash(&c.origin),
                        c.message.clone(),
                    ]
                })
                .collect(),
        );
    }
    text
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
            columns.extend([("LOCAL PREF", Right), ("MED", Right), ("COMMUNITIES", Left)]);
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
                    ]);
                }
                cells.push(path.reason.clone());
                cells
            })
            .collect();
        rows(global, &columns, lines)
    })
}

async fn routes(global: &Global) -> Result<Outcome> {
    let routes: Vec<Route> = ask(&global.socket, "/v1/routes").await?;
    print(global, &routes, |_| {
        let lines = routes
            .iter()
            .map(|route| {
                vec![
                    route.prefix.clone(),
                    route.next_hops.join(", "),
                    if route.installed { "yes" } else { "no" }.to_owned(),
                    route.reason.clone(),
                ]
            })
            .collect();
        rows(
            global,
            &[
                ("PREFIX", Left),
                ("NEXT HOPS", Left),
                ("IN KERNEL", Left),
                ("REASON", Left),
            ],
            lines,
        )
    })?;
    if routes.is_empty() {
        say(
            "no learnt routes; `bgp.import` in the configuration says which are accepted (default: none)",
        );
    }
    Ok(Outcome::Yes)
}

async fn nat(global: &Global) -> Result<Outcome> {
    let bindings: Vec<Binding> = ask(&global.socket, "/v1/nat").await?;
    print(global, &bindings, |_| {
        let lines = bindings
            .iter()
            .map(|binding| {
                vec![
                    binding.protocol.clone(),
                    binding.inside.clone(),
                    binding.egress.clone(),
                    binding.remote.clone(),
                    binding.state.clone(),
                    age(binding.idle_s),
                    age(binding.expires_in_s),
                ]
            })
            .collect();
        rows(
            global,
            &[
                ("PROTOCOL", Left),
                ("INSIDE", Left),
                ("EGRESS", Left),
                ("REMOTE", Left),
                ("STATE", Left),
                ("IDLE", Right),
                ("EXPIRES IN", Right),
            ],
            lines,
        )
    })?;
    if bindings.is_empty() {
        say("no translations now");
    }
    Ok(Outcome::Yes)
}

async fn drops(global: &Global, all: bool) -> Result<Outcome> {
    let mut counts: Vec<ReasonCount> = ask(&global.socket, "/v1/drops").await?;
    if !all {
        counts.retain(|count| count.verdict == "drop");
    }
    print(global, &counts, |wide| {
        let lines = counts
            .iter()
            .filter(|count| wide || count.packets > 0)
            .map(|count| {
                vec![
                    count.reason.clone(),
                    count.verdict.clone(),
                    count.packets.to_string(),
                    count.bytes.to_string(),
                    count.about.clone(),
                ]
            })
            .collect();
        rows(
            global,
            &[
                ("REASON", Left),
                ("VERDICT", Left),
                ("PACKETS", Right),
                ("BYTES", Right),
                ("MEANING", Left),
            ],
            lines,
        )
    })?;
    if counts.iter().all(|count| count.packets == 0) {
        say(if all {
            "no packets yet"
        } else {
            "nothing was dropped (`dpctl drops --all` shows every verdict)"
        });
    }
    Ok(Outcome::Yes)
}

pub(super) fn dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}
