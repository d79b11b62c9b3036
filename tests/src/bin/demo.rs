//! `cargo xtask run`: the whole of Fairlead on this machine, shown step by step.
#![expect(
    clippy::print_stdout,
    reason = "it is a program that shows things to a person"
)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fairlead_tests::lab::traffic::{self, fetch, fetch_many};
use fairlead_tests::lab::{self, CLIENT, Lab, OUTSIDE, Plan, SERVICE, SERVICE_PORT};
use fairlead_tests::netns::{STARTS, wait_for};

/// The lab's name: its namespaces are `fairlead-router` and so on.
const PREFIX: &str = "fairlead";

const USAGE: &str = "usage: cargo xtask run [--keep | --down]
  --keep  leaves everything running and says how to look around
  --down  takes away what --keep left";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => show(false),
        ["--keep"] => show(true),
        ["--down"] => lab::down(PREFIX).map(|()| println!("Nothing of the demonstration is left.")),
        [traffic::SERVE, name, port] => serve(name, port),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr is closed as well.
            let _ = writeln!(std::io::stderr(), "\nxtask run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str, port: &str) -> Result<()> {
    let port = port.parse().context("the port is a number")?;
    traffic::answer_forever(name, port)
}

/// Shows what is done, how long it took, and what a person would look at.
struct Report {
    began: Instant,
    colour: bool,
}

impl Report {
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: it shows how long real steps take"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn chapter(&self, title: &str) {
        println!("\n{}", self.paint("1", title));
    }

    /// Does one step and says how it went.
    fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Self::now();
        let result = work().with_context(|| what.to_owned());
        let took = Self::now() - start;
        let mark = if result.is_ok() {
            self.paint("32", "ok")
        } else {
            self.paint("31", "FAILED")
        };
        println!("  {what:<66} {mark} {:>6} ms", took.as_millis());
        result
    }

    /// Shows what a command prints.
    fn show(&self, command: &str, output: &str) {
        println!("\n  {}", self.paint("36", &format!("$ {command}")));
        for line in output.lines().filter(|line| !line.trim().is_empty()) {
            println!("    {line}");
        }
        println!();
    }
}

fn show(keep: bool) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and BPF need root: sudo -E cargo xtask run"
    );
    let report = Report {
        began: Report::now(),
        colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    println!(
        "Two nodes with our agents, a router (FRR, AS 65000) between them, a client and an outside.\n\
         Every packet below goes through the real kernel; nothing is simulated."
    );

    report.chapter("1. Bring it up");
    let mut lab = report.step(
        "router, client, outside, two nodes, their pods and links",
        || Lab::up(PREFIX),
    )?;
    let walked = walk(&report, &mut lab, keep);
    if walked.is_err() {
        for node in &lab.nodes {
            report.show(&format!("tail {}", node.log().display()), &tail(node));
        }
    }
    if keep {
        lab.keep()?;
        say_how_to_look_around(&lab);
        return walked;
    }
    walked?;
    report.chapter("7. Take it away");
    report.step("agents, namespaces, pins", move || {
        lab.nodes[0].cleanup()?;
        drop(lab);
        Ok(())
    })?;
    println!(
        "\nAll of it in {:.1} s.",
        (Report::now() - report.began).as_secs_f64()
    );
    println!("`cargo xtask run --keep` leaves it running for you to look around.");
    Ok(())
}

/// The last lines of a node's agent.
fn tail(node: &lab::Node) -> String {
    let log = std::fs::read_to_string(node.log()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Does the steps, in a lab that is up.
fn walk(report: &Report, lab: &mut Lab, keep: bool) -> Result<()> {
    report.step(
        "agents; the router has the service by both nodes, in both families",
        || lab.start_agents(),
    )?;
    report.step(
        "both nodes learnt the routes, and balance to both backends",
        || lab.wait_until_settled(),
    )?;
    report.show(
        "dpctl status                                   (node1)",
        &lab.nodes[0].dpctl(&["status"])?,
    );
    report.show(
        "dpctl bgp peers                                (node1)",
        &lab.nodes[0].dpctl(&["bgp", "peers"])?,
    );
    report.show(
        "vtysh -c 'show bgp ipv4 unicast'               (router)",
        &lab.frr.vtysh("show bgp ipv4 unicast")?,
    );
    report.show(
        "dpctl routes                                   (node1)",
        &lab.nodes[0].dpctl(&["routes"])?,
    );

    report.chapter("2. One service address, two nodes, two backends");
    for (family, service) in SERVICE.into_iter().enumerate() {
        report
            .step(
                &format!("60 HTTP requests from the client to {service}"),
                || {
                    let (servers, seen) = fetch_many(&lab.client, service, SERVICE_PORT, 60)?;
                    ensure!(servers.len() == 2, "only {servers:?} answered");
                    ensure!(
                        seen == [CLIENT[family].parse::<std::net::IpAddr>()?],
                        "they saw {seen:?}"
                    );
                    Ok(servers)
                },
            )
            .map(|servers| {
                let shares: Vec<_> = servers
                    .iter()
                    .map(|(name, count)| format!("{name} {count}"))
                    .collect();
                println!(
                    "      answers: {}; every backend saw the client itself, {}",
                    shares.join(", "),
                    CLIENT[family]
                );
            })?;
    }
    for node in &lab.nodes {
        let packets = service_packets(node)?;
        println!("      {} balanced {packets} packets", node.plan.name());
        ensure!(packets > 0, "{} took no part", node.plan.name());
    }
    report.show(
        "dpctl services                                 (node1)",
        &lab.nodes[0].dpctl(&["services"])?,
    );

    report.chapter("3. Pod to pod, over a route that BGP learnt");
    for (family, address) in Plan(2).web().into_iter().enumerate() {
        let own = Plan(1).pod()[family].parse::<std::net::IpAddr>()?;
        report.step(
            &format!("HTTP from pod1 on node1 to {address} on node2"),
            || {
                let answer = fetch(&lab.nodes[0].pod, &address, SERVICE_PORT)?;
                ensure!(answer.seen == own, "it saw {}", answer.seen);
                Ok(())
            },
        )?;
    }
    let [far, _] = Plan(2).pod();
    report.show(
        &format!("traceroute -n {far}                        (pod1)"),
        &lab.nodes[0]
            .pod
            .run(&format!("traceroute -n -q1 -w1 -N1 {far}"))?,
    );

    report.chapter("4. Pod to the outside, under the node's egress address");
    for node in &lab.nodes {
        let egress: std::net::IpAddr = node.plan.egress().parse()?;
        report
            .step(
                &format!("HTTP from pod{} to {OUTSIDE}", node.plan.0),
                || {
                    let answer = fetch(&node.pod, OUTSIDE, 80)?;
                    ensure!(answer.seen == egress, "outside saw {}", answer.seen);
                    Ok(answer)
                },
            )
            .map(|answer| {
                println!(
                    "      the pod is {}; outside saw {}",
                    node.plan.pod()[0],
                    answer.seen
                );
            })?;
    }
    report.step("ping from pod1 to outside", || {
        lab.nodes[0]
            .pod
            .run(&format!("ping -c2 -i0.2 -W2 {OUTSIDE}"))
    })?;
    report.show(
        "dpctl nat list                                 (node1)",
        &lab.nodes[0].dpctl(&["nat", "list"])?,
    );

    report.chapter("5. A backend stops");
    report.step(
        "web2 is not ready any more; both nodes know within a moment",
        || {
            for node in &lab.nodes {
                node.write_manifests(&[1])?;
            }
            wait_for("both rings to leave web2", 10, || {
                for node in &lab.nodes {
                    let services = node.ask(&["services"])?;
                    let left = ring_share(&services, &Plan(2).web()) == 0;
                    ensure!(left, "{} still has web2 on its ring", node.plan.name());
                }
                Ok(Some(()))
            })
        },
    )?;
    report.step("20 requests, all answered by web1", || {
        let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20)?;
        ensure!(
            servers.len() == 1 && servers.contains_key("web1"),
            "{servers:?} answered"
        );
        Ok(())
    })?;
    report.step("web2 is back", || {
        for node in &lab.nodes {
            node.write_manifests(&[1, 2])?;
        }
        wait_for("web2 to answer again", 10, || {
            let answer = fetch(&lab.client, SERVICE[0], SERVICE_PORT)?;
            Ok((answer.server == "web2").then_some(()))
        })
    })?;

    if keep {
        return Ok(());
    }

    report.chapter("6. An agent restarts, then its node goes");
    report.step("SIGTERM to node2's agent: 20 requests, none lost", || {
        lab.nodes[1]
            .agent
            .take()
            .context("node2 has an agent")?
            .stop()?;
        let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20)?;
        ensure!(
            lab.frr.next_hops("203.0.113.10/32")?.len() == 2,
            "the router dropped node2"
        );
        Ok(servers)
    })?;
    report.step("the agent is back, on the same tables", || {
        lab.nodes[1].start_agent()?;
        lab.wait_for_next_hops(&[1, 2], STARTS)
    })?;
    let (_, withdrawn) = report.step(
        "fairlead cleanup on node2 withdraws and removes all it left",
        || lab.clean_up(&lab.nodes[1], &[1]),
    )?;
    println!(
        "      the router stopped using node2 after {} ms",
        withdrawn.as_millis()
    );
    report.show(
        "vtysh -c 'show bgp ipv4 unicast 203.0.113.10/32'   (router)",
        &lab.frr.vtysh("show bgp ipv4 unicast 203.0.113.10/32")?,
    );
    report.step("20 requests through node1 alone", || {
        fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20)
    })?;
    report.show(
        "dpctl drops --all                              (node1)",
        &lab.nodes[0].dpctl(&["drops", "--all"])?,
    );

    Ok(())
}

fn service_packets(node: &lab::Node) -> Result<u64> {
    let services = node.ask(&["services"])?;
    let services = services.as_array().context("services are a list")?;
    Ok(services
        .iter()
        .filter_map(|service| service["packets"].as_u64())
        .sum())
}

/// The slots that backends of these addresses have on all rings.
fn ring_share(services: &serde_json::Value, addresses: &[String]) -> u64 {
    services
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|service| service["backends"].as_array().into_iter().flatten())
        .filter(|backend| {
            addresses
                .iter()
                .any(|address| backend["address"] == **address)
        })
        .filter_map(|backend| backend["slots"].as_u64())
        .sum()
}

fn say_how_to_look_around(lab: &Lab) {
    println!("\nIt is left running. Look around:\n");
    for node in &lab.nodes {
        println!(
            "  export FAIRLEAD_SOCKET={} FAIRLEAD_PIN_PATH={}",
            node.socket().display(),
            node.pins().display()
        );
        println!(
            "  target/debug/dpctl status            # {}; also services, bgp peers, routes, nat list, drops, maps list",
            node.plan.name()
        );
    }
    println!(
        "  ip netns exec {} curl -s http://{}/     # again and again: another port, another backend",
        lab.client.name(),
        SERVICE[0]
    );
    println!(
        "  ip netns exec {} curl -s http://{OUTSIDE}/   # the address that outside saw",
        lab.nodes[0].pod.name()
    );
    println!("  {} -c 'show bgp summary'", lab.frr.shell());
    println!(
        "  $EDITOR {}/service.yaml   # ready: false, and watch dpctl services",
        lab.nodes[0].manifests().display()
    );
    println!("  tail -f {}", lab.nodes[0].log().display());
    println!("\n  cargo xtask run --down               # takes it away");
}
