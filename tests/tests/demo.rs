//! The whole: two agents, a real router, real packets, and what a person would check by hand.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use etherparse::{NetSlice, SlicedPacket};
use fairlead_tests::lab::traffic::{fetch, fetch_many};
use fairlead_tests::lab::{CLIENT, Lab, OUTSIDE, Plan, SERVICE, SERVICE_PORT};
use fairlead_tests::netns::{Netns, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;

/// One lab after the other: each wants both cores.
fn lab(prefix: &str) -> Option<Lab> {
    if !root::is_root() {
        return None;
    }
    Some(Lab::settled(prefix).expect("the lab settles"))
}

#[test]
fn a_service_is_reached_through_both_nodes_with_the_clients_own_address() {
    let Some(lab) = lab("fl-svc") else { return };
    let capture = Capture::start(&lab.router, "node2", lab.dir()).unwrap();

    for (family, service) in SERVICE.into_iter().enumerate() {
        let (servers, seen) = fetch_many(&lab.client, service, SERVICE_PORT, 60).unwrap();

        assert_eq!(servers.len(), 2, "{servers:?}");
        assert_eq!(seen, [CLIENT[family].parse::<IpAddr>().unwrap()]);
    }
    for node in &lab.nodes {
        let services = node.ask(&["services"]).unwrap();
        let outside = |service: &&serde_json::Value| service["scope"] == "outside";
        for service in services.as_array().unwrap().iter().filter(outside) {
            assert!(service["packets"].as_u64().unwrap() > 0, "{service}");
            assert_eq!(service["announced"], true, "{service}");
        }
    }
    // What node1 sent to web2 crosses the router wrapped; the client inside is the client.
    let packets = capture.packets().unwrap();
    let wrapped: Vec<_> = packets.iter().filter(|p| p.inner.is_some()).collect();
    assert!(
        !wrapped.is_empty(),
        "no encapsulated packet among {}",
        packets.len()
    );
    for packet in wrapped {
        let (src, dst) = packet.inner.unwrap();
        assert!(CLIENT.iter().any(|c| c.parse() == Ok(src)), "{packet:?}");
        assert!(SERVICE.iter().any(|s| s.parse() == Ok(dst)), "{packet:?}");
    }
}

#[test]
fn a_pod_reaches_a_pod_by_a_learnt_route_and_every_hop_answers() {
    let Some(lab) = lab("fl-pod") else { return };
    for (family, address) in Plan(2).web().into_iter().enumerate() {
        let answer = fetch(&lab.nodes[0].pod, &address, SERVICE_PORT).unwrap();

        assert_eq!(
            answer.seen,
            Plan(1).pod()[family].parse::<IpAddr>().unwrap()
        );
    }
    for (family, far) in Plan(2).pod().into_iter().enumerate() {
        let hops = traceroute(&lab.nodes[0].pod, &far).unwrap();

        let own = &Plan(1).addresses()[family];
        let router = &Plan(1).router()[family];
        let other = &Plan(2).addresses()[family];
        assert_eq!(
            hops,
            [own, router, other, &far].map(String::as_str),
            "{hops:?}"
        );
    }
    // Forwarded in XDP, not by the stack.
    let routed = reason(&lab, 1, "routed").unwrap();
    assert!(routed > 0, "node2 forwarded nothing itself");
}

#[test]
fn a_pod_leaves_under_the_egress_address_and_never_under_its_own() {
    let Some(lab) = lab("fl-out") else { return };
    let capture = Capture::start(&lab.router, "outside", lab.dir()).unwrap();

    for node in &lab.nodes {
        let egress: IpAddr = node.plan.egress().parse().unwrap();
        for _ in 0..5 {
            assert_eq!(fetch(&node.pod, OUTSIDE, 80).unwrap().seen, egress);
        }
        node.pod
            .run(&format!("ping -c3 -i0.1 -W2 {OUTSIDE}"))
            .unwrap();
    }

    let nat = lab.nodes[0].ask(&["nat", "list"]).unwrap();
    let protocols: BTreeSet<_> = nat
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|b| b["protocol"].as_str())
        .collect();
    assert_eq!(protocols, BTreeSet::from(["icmp", "tcp"]), "{nat}");
    let packets = capture.packets().unwrap();
    let sources: BTreeSet<IpAddr> = packets
        .iter()
        .filter(|p| p.dst == OUTSIDE.parse::<IpAddr>().unwrap())
        .map(|p| p.src)
        .collect();
    let egress = [1, 2].map(|n| Plan(n).egress().parse().unwrap());
    assert_eq!(
        sources,
        BTreeSet::from(egress),
        "someone else was seen outside"
    );
}

#[test]
fn a_node_whose_agent_is_cleaned_up_is_withdrawn_at_once() {
    let Some(lab) = lab("fl-gone") else { return };
    assert_eq!(lab.frr.next_hops("203.0.113.10/32").unwrap().len(), 2);

    let (said, took) = lab.clean_up(&lab.nodes[1], &[1]).unwrap();

    // The hold time is 9 s, and the peers would keep the routes for 60 s: it was told.
    assert!(took < Duration::from_secs(5), "withdrawn after {took:?}");
    assert!(said.contains("withdrew"), "{said}");

    assert!(!lab.nodes[1].pins().exists(), "pins are left");
    let links = lab.nodes[1].netns.run("ip link show eth0").unwrap();
    assert!(!links.contains("xdp"), "{links}");
    let routes = lab.nodes[1].netns.run("ip route show").unwrap();
    assert!(
        !routes.contains("10.1.1.0/24"),
        "a learnt route is left: {routes}"
    );
    let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();
    assert!(!servers.is_empty());
}

#[test]
fn a_node_whose_agent_had_ended_is_withdrawn_by_its_cleanup() {
    let Some(mut lab) = lab("fl-late") else {
        return;
    };
    lab.nodes[1].agent.take().unwrap().stop().unwrap();
    assert_eq!(lab.frr.next_hops("203.0.113.10/32").unwrap().len(), 2);

    let (said, _) = lab.clean_up(&lab.nodes[1], &[1]).unwrap();

    assert!(!said.contains("was not reached"), "{said}");
    let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();
    // The other node's pods went with their announcement.
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["web1"]);
}

#[test]
fn a_service_without_ready_backends_is_withdrawn_and_announced_again() {
    let Some(lab) = lab("fl-wdr") else { return };

    lab.nodes[1].write_manifests(&[]).unwrap();
    lab.wait_for_next_hops(&[1], 2).unwrap();
    let services = lab.nodes[1].ask(&["services"]).unwrap();
    assert_eq!(services[0]["announced"], false, "{services}");

    lab.nodes[1].write_manifests(&[1, 2]).unwrap();
    lab.wait_for_next_hops(&[1, 2], 2).unwrap();
}

#[test]
fn an_agent_that_is_terminated_leaves_traffic_flowing() {
    let Some(mut lab) = lab("fl-term") else {
        return;
    };

    let mut agent = lab.nodes[1].agent.take().unwrap();
    assert!(agent.stop().unwrap().success(), "{}", agent.printed());
    let (servers, seen) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 40).unwrap();

    assert_eq!(servers.len(), 2, "{servers:?}");
    assert_eq!(seen, [CLIENT[0].parse::<IpAddr>().unwrap()]);
    assert_eq!(lab.frr.next_hops("203.0.113.10/32").unwrap().len(), 2);
    // The tables speak without the agent.
    let backends = lab.nodes[1].ask(&["maps", "dump", "BACKENDS"]).unwrap();
    assert!(backends.to_string().contains("10.1.2.80"), "{backends}");

    lab.nodes[1].start_agent().unwrap();
    lab.wait_for_next_hops(&[1, 2], 10).unwrap();
    fetch_many(&lab.client, SERVICE[1], SERVICE_PORT, 10).unwrap();
}

fn traceroute(from: &Netns, to: &str) -> Result<Vec<String>> {
    let family = if to.contains(':') { "-6" } else { "-4" };
    let printed = from.run(&format!("traceroute {family} -n -q1 -w2 -N1 {to}"))?;
    Ok(printed
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
        .collect())
}

fn reason(lab: &Lab, node: usize, name: &str) -> Result<u64> {
    let reasons = lab.nodes[node].ask(&["drops", "--all"])?;
    reasons
        .as_array()
        .into_iter()
        .flatten()
        .find(|reason| reason["reason"] == name)
        .and_then(|reason| reason["packets"].as_u64())
        .with_context(|| format!("no reason {name}"))
}

/// What tcpdump sees on a link of the router.
struct Capture {
    process: Process,
    file: std::path::PathBuf,
}

#[derive(Debug)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    /// Addresses of the packet inside, when it is wrapped.
    inner: Option<(IpAddr, IpAddr)>,
}

impl Capture {
    fn start(netns: &Netns, link: &str, dir: &Path) -> Result<Self> {
        let file = dir.join(format!("{link}.pcap"));
        let log = dir.join(format!("{link}.tcpdump"));
        let mut command = netns.command("tcpdump");
        // As root: tcpdump's own user may not write into the lab's folder.
        command
            .args(["-i", link, "-U", "-Z", "root", "-w"])
            .arg(&file)
            .args(["ip", "or", "ip6"]);
        let process = Process::start(&mut command, &log)?;
        wait_for("tcpdump to listen", 5, || {
            Ok(process.printed().contains("listening on").then_some(()))
        })?;
        Ok(Self { process, file })
    }

    fn packets(mut self) -> Result<Vec<Packet>> {
        // tcpdump reads the ring once a second at most.
        std::thread::sleep(Duration::from_millis(1200));
        self.process.stop()?;
        let mut reader = pcap_file::pcap::PcapReader::new(std::fs::File::open(&self.file)?)?;
        let mut packets = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let packet = packet?;
            let sliced = SlicedPacket::from_ethernet(&packet.data)?;
            let Some((src, dst)) = addresses(&sliced) else {
                continue;
            };
            let inner = match sliced.net {
                Some(NetSlice::Ipv4(ip)) if [4, 41].contains(&ip.payload_ip_number().0) => {
                    Some(ip.payload().payload)
                }
                Some(NetSlice::Ipv6(ip)) if [4, 41].contains(&ip.payload().ip_number.0) => {
                    Some(ip.payload().payload)
                }
                _ => None,
            };
            let inner = inner.and_then(|bytes| addresses(&SlicedPacket::from_ip(bytes).ok()?));
            packets.push(Packet { src, dst, inner });
        }
        Ok(packets)
    }
}

fn addresses(packet: &SlicedPacket) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => Some((
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        )),
        NetSlice::Ipv6(ip) => Some((
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        )),
        NetSlice::Arp(_) => None,
    }
}
