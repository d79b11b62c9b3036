//! What each question asks, and how its answer looks to eyes.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;

use super::args::{Dpctl, Global, Nat, Noun};
use super::render::{Align::Left, Align::Right, age, print, rows, say};
use super::{Outcome, backends, bgp, flows, import, services, trace};
use crate::api::client::ask;
use crate::api::types::{Binding, LoadBalancerIpam, ReasonCount, Route, Status};

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
        Noun::Bgp(what) => bgp::run(global, what).await,
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
    if let Some(pod) = &status.pod {
        line("Pod", pod.clone());
    }
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
    if let Some(ipam) = &status.load_balancer_ipam {
        line("LB-IPAM", ipam_text(&status.node, ipam));
    }
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

fn ipam_text(node: &str, ipam: &LoadBalancerIpam) -> String {
    let who = match &ipam.leader {
        None => "nobody is known to give addresses to services".to_owned(),
        Some(leader) if leader == node => "this node gives addresses to services".to_owned(),
        Some(leader) => format!("{leader} gives addresses to services"),
    };
    let how = ipam
        .services
        .map(|tally| format!("{} of {} have theirs", tally.good, tally.all));
    [Some(who), how, ipam.trouble.clone()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
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
