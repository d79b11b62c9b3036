//! Backends that nodes translate for, under real traffic: pods of both nodes, a process of a node, and a host that
//! knows nothing of its service. Clients are outside, pods of both nodes, and the backends themselves.
//!
//! The agents of the lab leave sockets alone, so every packet carries the service's address.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::lab::echo::Echo;
use fairlead_tests::lab::steady::{Account, Steady};
use fairlead_tests::lab::{Lab, OUTSIDE, Plan};
use fairlead_tests::netns::{Netns, STARTS, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;

/// The addresses of the services, outside and inside.
const BALANCER: [&str; 2] = ["203.0.113.30", "2001:db8:f::30"];
const CLUSTER: [&str; 2] = ["10.96.0.30", "fd00:96::30"];
/// `outside`, as a backend.
const HOST: [&str; 2] = [OUTSIDE, "2001:db8:e::2"];
/// The ports of the services.
const PODS: u16 = 7001;
const PROCESS: u16 = 7002;
const BARE: u16 = 7003;
const BULK: u16 = 7004;
/// Where backends listen: on other ports than the services'.
const TARGET: u16 = 7070;
const BULK_TARGET: u16 = 7071;
/// How long traffic flows before, between and after.
const WHILE: Duration = Duration::from_millis(700);

/// A service over TCP and UDP with these endpoints in each family: an address, and the node that it is of.
fn service(name: &str, port: u16, target: u16, endpoints: &[(&[String; 2], &str)]) -> String {
    let [[v4, v6], [cluster4, cluster6]] = [BALANCER, CLUSTER];
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{announce: bgp}}}}\nspec:\n  \
         type: LoadBalancer\n  clusterIP: {cluster4}\n  clusterIPs: [{cluster4}, '{cluster6}']\n  ports:\n  \
         - {{name: tcp, port: {port}, protocol: TCP}}\n  - {{name: udp, port: {port}, protocol: UDP}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}\n"
    );
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, labels: \
             {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports:\n\
             - {{name: tcp, port: {target}, protocol: TCP}}\n- {{name: udp, port: {target}, protocol: UDP}}\n\
             endpoints:\n",
            kind.to_lowercase()
        );
        for (addresses, node) in endpoints {
            text += &format!("- {{addresses: ['{}']", addresses[family]);
            if !node.is_empty() {
                text += &format!(", nodeName: {node}");
            }
            text += "}\n";
        }
    }
    text
}

fn services() -> String {
    let [web1, web2] = [1, 2].map(|n| Plan(n).web());
    service("pods", PODS, TARGET, &[(&web1, "node1"), (&web2, "node2")])
        + &service(
            "process",
            PROCESS,
            TARGET,
            &[(&Plan(1).addresses(), "node1")],
        )
        + &service("bare", BARE, TARGET, &[(&HOST.map(str::to_owned), "")])
        + &service("bulk", BULK, BULK_TARGET, &[(&web2, "node2")])
}

/// The lab with the services, settled, and their servers.
fn lab(prefix: &str) -> (Lab, Echo) {
    let mut lab = Lab::up(prefix).unwrap();
    lab.start_agents().unwrap();
    let mut echo = Echo::default();
    let at = |text: &str| SocketAddr::new(text.parse().unwrap(), TARGET);
    for node in &lab.nodes {
        let name = format!("web{}", node.plan.0);
        for address in node.plan.web() {
            echo.listen(&node.web, &name, at(&address)).unwrap();
        }
        node.put("nat.yaml", &services()).unwrap();
    }
    for address in Plan(1).addresses() {
        echo.listen(&lab.nodes[0].netns, "process", at(&address))
            .unwrap();
    }
    for address in HOST {
        echo.listen(&lab.outside, "bare", at(address)).unwrap();
    }
    wait_for("the services", STARTS, || {
        for node in &lab.nodes {
            let services = node.ask(&["services"])?;
            let all = services.as_array().into_iter().flatten();
            let bare = all.filter(|one| one["name"] == "default/bare");
            let ways: Vec<_> = bare
                .map(|one| one["backends"][0]["forward"].clone())
                .collect();
            // TCP and UDP, both families; outside, and inside at two addresses.
            ensure!(
                ways.len() == 12 && ways.iter().all(|way| way == "nat"),
                "{ways:?}"
            );
        }
        for service in BALANCER {
            let length = if service.contains(':') { 128 } else { 32 };
            let found = lab.frr.next_hops(&format!("{service}/{length}"))?;
            ensure!(found.len() == 2, "{service} by {found:?}");
        }
        Ok(Some(()))
    })
    .unwrap();
    lab.wait_until_settled().unwrap();
    (lab, echo)
}

/// Every client at every service.
fn traffic(lab: &Lab) -> Steady {
    let mut steady = Steady::default();
    let [node1, node2] = &lab.nodes;
    let mut ask = |from: &Netns, addresses: [&str; 2], port: u16| {
        for address in addresses {
            let to = SocketAddr::new(address.parse().unwrap(), port);
            steady.requests(from, to).unwrap();
            steady.transfer(from, to).unwrap();
            steady.datagrams(from, to, 2).unwrap();
        }
    };
    for port in [PODS, PROCESS, BARE] {
        ask(&lab.client, BALANCER, port);
        ask(&node1.pod, CLUSTER, port);
    }
    // To itself by half of its connections.
    ask(&node1.web, CLUSTER, PODS);
    ask(&node2.pod, BALANCER, PROCESS);
    steady
}

/// How many accounts [`traffic`] gives: requests, a transfer and two flows of datagrams, in each family.
const ACCOUNTS: usize = 8 * 2 * 4;

#[track_caller]
fn assert_unharmed(accounts: &[Account]) {
    let harmed: Vec<_> = accounts
        .iter()
        .filter(|account| !account.is_whole(10))
        .collect();
    assert!(harmed.is_empty(), "{harmed:#?}");
    assert_eq!(accounts.len(), ACCOUNTS);
    for account in accounts {
        let is_request = account.what.starts_with("requests");
        // Requests meet every backend; a flow has one, and is seen as one client.
        let wanted = if is_request && account.what.ends_with(&format!(":{PODS}")) {
            2
        } else {
            1
        };
        assert_eq!(account.witnesses.len(), wanted, "{account:?}");
    }
}

/// Ends both agents, and starts them again.
fn restart(lab: &mut Lab, end: impl Fn(Process)) {
    for node in &mut lab.nodes {
        end(node.agent.take().unwrap());
    }
    sleep(WHILE);
    for node in &mut lab.nodes {
        node.start_agent().unwrap();
    }
    lab.wait_for_next_hops(&[1, 2], STARTS).unwrap();
    lab.wait_until_settled().unwrap();
    sleep(WHILE);
}

#[test]
fn whoever_asks_whom_is_answered_while_agents_are_killed_and_terminated() {
    if !root::is_root() {
        return;
    }
    let (mut lab, _echo) = lab("fl-nat");
    let steady = traffic(&lab);
    sleep(WHILE);

    let flows = lab.nodes[0]
        .ask(&["flows", "list", "--limit", "1000"])
        .unwrap();
    let flows: Vec<_> = flows.as_array().unwrap().iter().collect();
    for name in ["pods", "process", "bare"] {
        let name = format!("default/{name}");
        let mut of = flows.iter().filter(|flow| flow["service"] == name.as_str());
        assert!(
            of.any(|flow| flow["translation"] == "established"),
            "{name} in {flows:#?}"
        );
    }
    // Dropped is killed, by SIGKILL.
    restart(&mut lab, drop);
    restart(&mut lab, |mut agent| {
        assert!(agent.stop().unwrap().success(), "{}", agent.printed());
    });

    assert_unharmed(&steady.end().unwrap());
}

/// Bytes of a long transfer.
const LONG: usize = 64 << 20;

/// Reads a stream to its end, says how much it was, and sends as much back.
fn swallow_and_repeat(netns: &Netns, at: SocketAddr) -> Result<std::thread::JoinHandle<()>> {
    let listener = netns.enter(|| TcpListener::bind(at))??;
    Ok(std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut block = vec![0; 1 << 20];
            let mut got = 0;
            while got < LONG {
                got += stream.read(&mut block).unwrap();
            }
            for _ in 0..LONG / block.len() {
                stream.write_all(&block).unwrap();
            }
        }
    }))
}

/// How long it takes to send so much, and to get it back.
fn carry(from: &Netns, to: SocketAddr) -> Result<Duration> {
    let mut stream = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))??;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let mut block = vec![7; 1 << 20];
    let began = now();
    for _ in 0..LONG / block.len() {
        stream.write_all(&block)?;
    }
    let mut got = 0;
    while got < LONG {
        let bytes = stream.read(&mut block)?;
        ensure!(bytes > 0, "ended after {got} bytes");
        got += bytes;
    }
    Ok(now() - began)
}

#[test]
fn a_long_transfer_through_the_tunnel_arrives_and_little_is_sent_again() {
    if !root::is_root() {
        return;
    }
    let (lab, _echo) = lab("fl-bulk");
    let [node1, node2] = &lab.nodes;
    for (family, service) in CLUSTER.into_iter().enumerate() {
        let pod = SocketAddr::new(Plan(2).web()[family].parse().unwrap(), BULK_TARGET);
        let server = swallow_and_repeat(&node2.web, pod).unwrap();
        let dropped = |reason: &str| -> u64 {
            let of = |node: &fairlead_tests::lab::Node| {
                let drops = node.ask(&["drops"]).unwrap();
                let mut all = drops.as_array().unwrap().iter();
                all.find(|row| row["reason"] == reason)
                    .and_then(|row| row["packets"].as_u64())
                    .unwrap_or_default()
            };
            lab.nodes.iter().map(of).sum()
        };

        let directly = carry(&node1.pod, pod).unwrap();
        let to = SocketAddr::new(service.parse().unwrap(), BULK);
        let ends = [&node1.pod, &node2.web];
        let before = ends.map(|end| segments(end).unwrap());
        let by_service = carry(&node1.pod, to).unwrap();
        let after = ends.map(|end| segments(end).unwrap());

        server.join().unwrap();
        println!("{LONG} bytes there and back: {directly:?} directly, {by_service:?} by {service}");
        for reason in ["service-too-big", "service-untranslated", "helper-failed"] {
            assert_eq!(dropped(reason), 0, "{reason}");
        }
        // A busy machine's queues lose a few in a thousand; what does not fit is lost each time.
        for (before, after) in before.into_iter().zip(after) {
            let (sent, again) = (after.0 - before.0, after.1 - before.1);
            assert!(
                sent > 0 && again * 50 < sent,
                "{again} of {sent} sent again"
            );
        }
    }
}

/// The TCP segments that a namespace has sent, and those of them that it sent again.
fn segments(place: &Netns) -> Result<(u64, u64)> {
    let text = place.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no Tcp: in snmp")?;
    let of = |name: &str| -> Result<u64> {
        let mut columns = names.split(' ').zip(values.split(' '));
        let (_, value) = columns
            .find(|(column, _)| *column == name)
            .with_context(|| format!("no {name} in snmp"))?;
        value.parse().with_context(|| format!("{name}: {value}"))
    };
    Ok((of("OutSegs")?, of("RetransSegs")?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "an edge: it times a real transfer"
)]
fn now() -> Instant {
    Instant::now()
}
