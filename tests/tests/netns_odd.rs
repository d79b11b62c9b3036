//! What people do to the address of a service besides connecting to it: `ping`, `traceroute`, uploads of
//! full-size segments, datagrams in fragments; and what routers on the way say.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::lab::echo::{Echo, Servers, at};
use fairlead_tests::lab::{CLIENT, Lab, Plan, SERVICE};
use fairlead_tests::root;
use rstest::rstest;

fn lab(prefix: &str) -> Option<Lab> {
    if !root::is_root() {
        return None;
    }
    Some(Lab::settled(prefix).unwrap())
}

/// How many packets both nodes ended for a reason.
fn ended(lab: &Lab, reason: &str) -> u64 {
    let of = |node: &fairlead_tests::lab::Node| -> u64 {
        let drops = node.ask(&["drops", "--all"]).unwrap();
        let rows = drops.as_array().unwrap();
        let found = rows.iter().find(|row| row["reason"] == reason);
        found.map_or(0, |row| row["packets"].as_u64().unwrap())
    };
    lab.nodes.iter().map(of).sum()
}

/// Sends much on a connection, compares the echo, and tells who answered.
fn upload(to: SocketAddr, bytes: usize) -> Result<String> {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&to, limit).context("connecting")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut who = String::new();
    BufReader::new(&stream).read_line(&mut who)?;
    // As much at a time as no queue of a veth pair overflows from.
    for block in 0..bytes / BLOCK {
        let sent = vec![block as u8; BLOCK];
        stream.write_all(&sent)?;
        let mut got = vec![0; BLOCK];
        stream
            .read_exact(&mut got)
            .context("waiting for the echo")?;
        ensure!(got == sent, "other bytes came back");
    }
    Ok(who.split(' ').next().unwrap_or_default().to_owned())
}

const BLOCK: usize = 32 << 10;

#[rstest]
fn uploads_of_full_size_segments_find_the_tunnels_mtu_by_themselves(
    #[values(Servers::Hosts, Servers::Pods)] servers: Servers,
) {
    let Some(lab) = lab(&format!("fl-pmtu-{servers:?}")) else {
        return;
    };
    let echo = Echo::start_on(&lab, servers).unwrap();
    for address in SERVICE {
        let to = at(address).unwrap();
        let mut servers = std::collections::BTreeSet::new();
        // Flows to either backend by either node: some of them go through a tunnel.
        for _ in 0..24 {
            servers.insert(lab.client.enter(|| upload(to, 4 * BLOCK)).unwrap().unwrap());
        }
        assert_eq!(servers.len(), 2, "{servers:?}");

        let way = lab.client.run(&format!("ip route get {address}")).unwrap();
        let less = if address.contains(':') { 40 } else { 20 };
        assert!(way.contains(&format!("mtu {}", 1500 - less)), "{way}");
    }
    assert!(ended(&lab, "service-too-big-told") > 0);
    drop(echo);
}

#[rstest]
fn what_routers_say_of_a_backends_answers_reaches_that_backend(
    #[values(Servers::Hosts, Servers::Pods)] servers: Servers,
) {
    let Some(lab) = lab(&format!("fl-icmperr-{servers:?}")) else {
        return;
    };
    let echo = Echo::start_on(&lab, servers).unwrap();
    for (client, length) in CLIENT.into_iter().zip([32, 128]) {
        let route = format!("route add {client}/{length} dev client mtu lock 1400");
        lab.router.ip(&route).unwrap();
    }
    for (address, client) in SERVICE.iter().zip(CLIENT) {
        let to = at(address).unwrap();
        let mut servers = std::collections::BTreeSet::new();
        for _ in 0..24 {
            servers.insert(lab.client.enter(|| upload(to, 4 * BLOCK)).unwrap().unwrap());
        }
        assert_eq!(servers.len(), 2, "{servers:?}");
        for node in &lab.nodes {
            let way = node.web.run(&format!("ip route get {client}")).unwrap();
            assert!(way.contains("mtu 1400"), "{}: {way}", node.plan.name());
        }
    }
    assert!(ended(&lab, "service-icmp-error") > 0);
    drop(echo);
}

/// Asks until an answer comes: the first datagram may be the one that finds the MTU.
fn ask(to: SocketAddr, question: &[u8]) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut answer = [0; 8192];
    for _ in 0..10 {
        socket.send(question)?;
        if let Ok(length) = socket.recv(&mut answer) {
            let text = String::from_utf8_lossy(&answer[..length]);
            let (echo, who) = text.split_once(' ').context("nobody's answer")?;
            ensure!(echo.as_bytes() == question, "another question was answered");
            return Ok(who.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    anyhow::bail!("{} bytes were never answered", question.len())
}

#[rstest]
fn datagrams_in_fragments_are_answered_by_their_flows_backend(
    #[values(Servers::Hosts, Servers::Pods)] servers: Servers,
) {
    let Some(lab) = lab(&format!("fl-frags-{servers:?}")) else {
        return;
    };
    let echo = Echo::start_on(&lab, servers).unwrap();
    for address in SERVICE {
        let to = at(address).unwrap();
        let mut servers = std::collections::BTreeSet::new();
        for _ in 0..16 {
            let who = lab.client.enter(|| ask(to, &[b'q'; 4000])).unwrap();
            servers.insert(who.unwrap());
        }
        assert_eq!(servers.len(), 2, "{servers:?}");
    }
    drop(echo);
}

#[test]
fn the_address_answers_pings_and_ends_traceroutes() {
    let Some(lab) = lab("fl-trace") else { return };
    // As on most hosts: what the kernel knows no other way for, it would send back to the router.
    for node in &lab.nodes {
        for router in node.plan.router() {
            node.netns
                .ip(&format!("route add default via {router}"))
                .unwrap();
        }
    }
    for (family, address) in SERVICE.into_iter().enumerate() {
        let said = lab
            .client
            .run(&format!("ping -c 3 -i 0.1 -W 2 {address}"))
            .unwrap();
        assert!(said.contains(" 0% packet loss"), "{said}");

        // UDP to ports that no service has: the address itself says that it is the end.
        let said = lab
            .client
            .run(&format!("traceroute -n -q 1 -w 2 -m 6 {address}"))
            .unwrap();
        let hops: Vec<_> = said.lines().skip(1).collect();
        assert_eq!(hops.len(), 2, "{said}");
        assert!(hops[1].contains(address), "{said}");

        // TCP to the service: the router, the node, the backend under the service's address.
        let said = lab
            .client
            .run(&format!("traceroute -n -q 1 -w 2 -m 6 -T -p 80 {address}"))
            .unwrap();
        let hops: Vec<_> = said.lines().skip(1).collect();
        let nodes = [Plan(1), Plan(2)].map(|plan| plan.addresses()[family].clone());
        assert_eq!(hops.len(), 3, "{said}");
        assert!(nodes.iter().any(|node| hops[1].contains(node)), "{said}");
        assert!(hops[2].contains(address), "{said}");
    }
    assert!(ended(&lab, "service-echo") >= 6);
    assert!(ended(&lab, "service-refused") >= 2);
    assert!(ended(&lab, "service-ttl-told") >= 2);
}

#[test]
fn a_service_without_a_backend_refuses_connections_at_once() {
    let Some(lab) = lab("fl-refuse") else { return };
    for node in &lab.nodes {
        node.write_manifests(&[]).unwrap();
    }
    for (family, (address, length)) in SERVICE.into_iter().zip([32, 128]).enumerate() {
        let node = &Plan(1).addresses()[family];
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        fairlead_tests::netns::wait_for("the refusal", 10, || {
            // Nobody announces the address now.
            lab.router
                .ip(&format!("route replace {address}/{length} via {node}"))?;
            let tried = lab
                .client
                .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
            let refused =
                |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
            Ok(tried.is_err_and(|error| refused(&error)).then_some(()))
        })
        .unwrap();
    }
    assert!(ended(&lab, "service-refused") >= 2);
}
