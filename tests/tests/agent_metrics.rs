//! Probes and metrics of a running agent, against packets that were really sent.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::lab::traffic::fetch_many;
use fairlead_tests::lab::{Lab, Node, OUTSIDE, SERVICE, SERVICE_PORT};
use fairlead_tests::netns::{Netns, wait_for};
use fairlead_tests::root;
use nix::sys::signal::Signal;

/// The default of `telemetry.listen`.
const PORT: u16 = 7179;

#[test]
fn a_scrape_counts_the_packets_that_were_sent() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-met").unwrap();
    let netns = &lab.nodes[0].netns;
    assert_eq!(get(netns, "/livez").unwrap(), (200, "alive\n".to_owned()));
    assert_eq!(get(netns, "/readyz").unwrap(), (200, "ready\n".to_owned()));
    assert_eq!(get(netns, "/other").unwrap().0, 404);

    // Echoes are counted one by one: no handshake, no retransmission.
    let before = Metrics::scrape(&lab.nodes[0]).unwrap();
    let ping = format!("ping -c7 -i0.05 -W2 -s100 {OUTSIDE}");
    lab.nodes[0].pod.run(&ping).unwrap();
    let after = Metrics::scrape(&lab.nodes[0]).unwrap();
    let grown = |name: &str| after.value(name).unwrap() - before.value(name).unwrap();
    assert_eq!(
        grown("fairlead_datapath_packets_total{reason=\"translated\",verdict=\"pass\"}"),
        7
    );
    assert_eq!(
        grown("fairlead_datapath_packets_total{reason=\"translated-back\",verdict=\"forward\"}"),
        7
    );
    // Ethernet 14, IPv4 20, ICMP 8, and what -s says.
    assert_eq!(
        grown("fairlead_datapath_bytes_total{reason=\"translated-back\",verdict=\"forward\"}"),
        7 * (14 + 20 + 8 + 100)
    );
    wait_for("the binding to be counted", 5, || {
        let bindings = Metrics::scrape(&lab.nodes[0])?.value("fairlead_snat_bindings")?;
        ensure!(bindings == 1, "{bindings} bindings");
        Ok(Some(()))
    })
    .unwrap();

    // A refused answer: nobody asked, so there is no translation to undo.
    let drops = "fairlead_datapath_drops_total{reason=\"no-binding\"}";
    let egress = lab.nodes[0].plan.egress();
    let ping = format!("ping -c3 -i0.05 -W1 {egress}");
    lab.outside.run(&ping).unwrap_err();
    let dropped = Metrics::scrape(&lab.nodes[0])
        .unwrap()
        .value(drops)
        .unwrap();
    assert_eq!(dropped - after.value(drops).unwrap(), 3);

    for service in SERVICE {
        fetch_many(&lab.client, service, SERVICE_PORT, 20).unwrap();
    }
    for node in &lab.nodes {
        agrees_with_dpctl(node).unwrap();
    }
    let balanced: u64 = lab
        .nodes
        .iter()
        .map(|node| {
            Metrics::scrape(node)
                .unwrap()
                .sum("fairlead_service_packets_total{")
        })
        .sum();
    // SYN, ACK, request and FIN at least.
    assert!(balanced >= 2 * 20 * 4, "{balanced} packets");

    // A lost session is a metric; the agent stays ready.
    let up = "fairlead_bgp_session_up{peer=\"10.0.1.1\",local_asn=\"65001\"}";
    assert_eq!(after.value(up).unwrap(), 1);
    lab.router.ip("link set node1 down").unwrap();
    wait_for("the session to end", 20, || {
        let metrics = Metrics::scrape(&lab.nodes[0])?;
        ensure!(metrics.value(up)? == 0, "it is up");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(get(&lab.nodes[0].netns, "/readyz").unwrap().0, 200);
}

#[test]
fn a_port_that_is_taken_is_a_condition_and_is_served_once_it_is_free() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::up("fl-port").unwrap();
    let listen = || TcpListener::bind(address());
    let taken = lab.nodes[1].netns.enter(listen).unwrap().unwrap();

    lab.start_agents().unwrap();
    lab.wait_until_settled().unwrap();

    let status = lab.nodes[1].ask(&["status"]).unwrap();
    let conditions = status["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1, "{status}");
    assert_eq!(conditions[0]["reason"], "ListenRefused", "{status}");
    let message = conditions[0]["message"].as_str().unwrap();
    assert!(message.contains("127.0.0.1:7179"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();
    assert_eq!(servers.len(), 2, "{servers:?}");

    drop(taken);
    wait_for("the agent to take the free port", 20, || {
        let metrics = Metrics::scrape(&lab.nodes[1])?;
        ensure!(
            metrics.sum("fairlead_conditions") == 0,
            "the condition stays"
        );
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(get(&lab.nodes[1].netns, "/readyz").unwrap().0, 200);
}

#[test]
fn an_agent_that_waits_for_a_device_lives_and_says_what_it_waits_for() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::up("fl-wait").unwrap();
    let node = &mut lab.nodes[0];
    let config = std::fs::read_to_string(node.config()).unwrap();
    let with_another = config.replace(
        "role: uplink\n",
        "role: uplink\n  - {name: eth7, role: lan}\n",
    );
    assert_ne!(config, with_another);
    std::fs::write(node.config(), with_another).unwrap();

    node.start_agent().unwrap();

    wait_for("everything else to be ready", 10, || {
        let (status, text) = get(&node.netns, "/readyz")?;
        let waits = (
            503,
            "a configured device is without its program\n".to_owned(),
        );
        ensure!((status, &text) == (waits.0, &waits.1), "{status} {text}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(get(&node.netns, "/livez").unwrap().0, 200);
    assert!(
        Metrics::scrape(node)
            .unwrap()
            .sum("fairlead_conditions{reason=\"DeviceMissing\"}")
            > 0
    );

    node.netns
        .ip("link add eth7 type veth peer name other")
        .unwrap();
    wait_for("the device to be taken", 10, || {
        let (status, text) = get(&node.netns, "/readyz")?;
        ensure!(status == 200, "{status} {text}");
        Ok(Some(()))
    })
    .unwrap();

    // A loop that stands still: nobody answers, which a probe takes for dead as well.
    let agent = node.agent.as_ref().unwrap();
    agent.signal(Signal::SIGSTOP).unwrap();
    assert!(get(&node.netns, "/livez").is_err());
    agent.signal(Signal::SIGCONT).unwrap();
    assert_eq!(get(&node.netns, "/livez").unwrap().0, 200);
}

/// What `dpctl` and a scrape call alike must count alike; nothing is sent meanwhile.
fn agrees_with_dpctl(node: &Node) -> Result<()> {
    wait_for("traffic to settle", 5, || {
        let reasons = node.ask(&["drops", "--all"])?;
        let services = node.ask(&["services"])?;
        let metrics = Metrics::scrape(node)?;
        let rows = |value: &serde_json::Value| value.as_array().cloned().context("no rows");
        let mut compared = 0;
        for row in rows(&reasons)? {
            // BGP's own packets pass all the time.
            if row["verdict"] == "pass" {
                continue;
            }
            let (reason, verdict) = (&row["reason"], &row["verdict"]);
            let name =
                format!("fairlead_datapath_packets_total{{reason={reason},verdict={verdict}}}");
            let packets = metrics.value(&name)?;
            ensure!(row["packets"] == packets, "{name} {packets}: {row}");
            compared += 1;
        }
        ensure!(compared > 10, "{compared} reasons");
        let services = rows(&services)?;
        ensure!(services.len() == 4, "{} services", services.len());
        for row in services {
            let labels = format!(
                "service={},address={},port=\"{}\",protocol={},scope={}",
                row["name"], row["address"], row["port"], row["protocol"], row["scope"]
            );
            for (name, wanted) in [
                ("packets_total", &row["packets"]),
                ("bytes_total", &row["bytes"]),
            ] {
                let found = metrics.value(&format!("fairlead_service_{name}{{{labels}}}"))?;
                ensure!(*wanted == found, "{name} {found}: {row}");
            }
            let announced = metrics.value(&format!("fairlead_service_announced{{{labels}}}"))?;
            let is_outside = row["scope"] == "outside";
            ensure!(announced == u64::from(is_outside), "{row}");
            let ready = format!("fairlead_service_backends{{{labels},state=\"ready\"}}");
            ensure!(metrics.value(&ready)? == 2, "{row}");
        }
        for (map, entries) in [("SERVICES", 4), ("BACKENDS", 4)] {
            let found = metrics.value(&format!("fairlead_map_entries{{map=\"{map}\"}}"))?;
            ensure!(found == entries, "{found} rows of {map}");
        }
        let uplink = "fairlead_datapath_xdp_mode{device=\"eth0\",mode=\"driver\"}";
        ensure!(metrics.value(uplink)? == 1);
        Ok(Some(()))
    })
}

/// The samples of one scrape.
struct Metrics {
    samples: BTreeMap<String, u64>,
    text: String,
}

impl Metrics {
    fn scrape(node: &Node) -> Result<Self> {
        let (status, text) = get(&node.netns, "/metrics")?;
        ensure!(status == 200, "{status} {text}");
        ensure!(text.ends_with("# EOF\n"), "cut short: {text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut all = BTreeMap::new();
        for sample in samples {
            let (name, value) = sample.rsplit_once(' ').context("a sample without value")?;
            // Sums of seconds are no whole numbers, and not looked at.
            let before = all.insert(name.to_owned(), value.parse().unwrap_or(0));
            ensure!(before.is_none(), "{name} stands twice");
        }
        Ok(Self { samples: all, text })
    }

    fn value(&self, name: &str) -> Result<u64> {
        let value = self.samples.get(name).copied();
        value.with_context(|| format!("no {name} in:\n{}", self.text))
    }

    fn sum(&self, start: &str) -> u64 {
        let samples = self.samples.iter();
        samples
            .filter(|(name, _)| name.starts_with(start))
            .map(|(_, value)| value)
            .sum()
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

/// Asks the agent's port in a namespace; returns the status and the body.
fn get(netns: &Netns, path: &str) -> Result<(u16, String)> {
    netns.enter(|| {
        let limit = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&address(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        // HTTP/1.0: the body ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    })?
}
