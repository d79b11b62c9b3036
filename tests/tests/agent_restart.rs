//! An agent that ends and comes back is no event for traffic, for routes or for rings.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fairlead_common::addr::Addr;
use fairlead_common::tables::{Backends, Services};
use fairlead_control::dataplane::mapped::Access;
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::table::{Pinned, Slots};
use fairlead_tests::lab::echo::{Echo, at};
use fairlead_tests::lab::steady::{Account, Steady};
use fairlead_tests::lab::{Lab, Node, OUTSIDE, Plan, SERVICE};
use fairlead_tests::netns::{STARTS, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;

/// How long traffic flows before, between and after.
const WHILE: Duration = Duration::from_millis(700);

fn lab(prefix: &str) -> Option<Lab> {
    if !root::is_root() {
        return None;
    }
    Some(Lab::settled(prefix).unwrap())
}

#[expect(clippy::disallowed_methods, reason = "an edge: it times a real router")]
fn now() -> Instant {
    Instant::now()
}

/// Traffic of every kind: through the service by both nodes, and from both nodes' pods to the outside.
fn traffic(lab: &Lab) -> Steady {
    let mut steady = Steady::default();
    for service in SERVICE {
        steady
            .datagrams(&lab.client, at(service).unwrap(), 8)
            .unwrap();
        steady.requests(&lab.client, at(service).unwrap()).unwrap();
        for _ in 0..3 {
            steady.transfer(&lab.client, at(service).unwrap()).unwrap();
        }
    }
    for node in &lab.nodes {
        steady
            .datagrams(&node.pod, at(OUTSIDE).unwrap(), 4)
            .unwrap();
        steady.requests(&node.pod, at(OUTSIDE).unwrap()).unwrap();
        steady.transfer(&node.pod, at(OUTSIDE).unwrap()).unwrap();
        steady.pings(&node.pod, OUTSIDE).unwrap();
    }
    for address in Plan(2).pod() {
        steady.pings(&lab.nodes[0].pod, &address).unwrap();
    }
    steady
}

/// Nothing was lost or broken, and every flow kept its backend and its egress port.
#[track_caller]
fn assert_unharmed(lab: &Lab, accounts: &[Account]) {
    let harmed: Vec<_> = accounts
        .iter()
        .filter(|account| !account.is_whole(20))
        .collect();
    assert!(harmed.is_empty(), "{harmed:#?}");
    // 2 x (8 datagram flows, requests, 3 transfers), 2 x (4, requests, a transfer, pings), 2 pings.
    assert_eq!(accounts.len(), 2 * 12 + 2 * 7 + 2);
    for account in accounts {
        if account.what.starts_with("datagrams") {
            assert_eq!(account.witnesses.len(), 1, "{account:?}");
        }
    }
    for node in &lab.nodes {
        let own: Vec<_> = accounts
            .iter()
            .filter(|account| account.what.contains(node.pod.name()) && account.asked > 0)
            .filter(|account| account.what.starts_with("datagrams"))
            .collect();
        assert_eq!(own.len(), 4);
        for account in own {
            let seen = account.witnesses.first().unwrap();
            let egress = format!("outside {}:", node.plan.egress());
            assert!(seen.starts_with(&egress), "{seen}");
        }
    }
}

/// Ends both agents under traffic, and starts them again.
fn traffic_does_not_notice(prefix: &str, end: impl Fn(Process)) {
    let Some(mut lab) = lab(prefix) else { return };
    let echo = Echo::start(&lab).unwrap();
    let steady = traffic(&lab);
    sleep(WHILE);

    for node in &mut lab.nodes {
        end(node.agent.take().unwrap());
    }
    sleep(WHILE);
    assert!(lab.nodes[0].dpctl(&["status"]).is_err(), "an agent is left");
    for node in &mut lab.nodes {
        node.start_agent().unwrap();
    }
    lab.wait_for_next_hops(&[1, 2], STARTS).unwrap();
    lab.wait_until_settled().unwrap();
    for node in &lab.nodes {
        wait_for("the session", STARTS, || {
            let status = node.ask(&["status"])?;
            let peers = &status["peers"];
            Ok((peers["good"] == 1 && peers["all"] == 1 && status["inSync"] == true).then_some(()))
        })
        .unwrap();
    }
    sleep(WHILE);

    let accounts = steady.end().unwrap();
    assert_unharmed(&lab, &accounts);
    drop(echo);
}

#[test]
fn agents_that_are_killed_lose_no_packet_and_break_no_connection() {
    // Dropped is killed, by SIGKILL.
    traffic_does_not_notice("fl-kill9", drop);
}

#[test]
fn agents_that_are_terminated_lose_no_packet_and_break_no_connection() {
    traffic_does_not_notice("fl-sigterm", |mut agent| {
        assert!(agent.stop().unwrap().success(), "{}", agent.printed());
    });
}

#[test]
fn learnt_routes_outlive_their_agent_and_vanish_when_they_are_withdrawn() {
    let Some(mut lab) = lab("fl-routes") else {
        return;
    };
    let held = ["10.99.0.0/16", "2001:db8:99::/48"];
    let lost = ["10.98.0.0/16", "2001:db8:98::/48"];
    let tell = |lab: &Lab, prefixes: [&str; 2], no: &str| {
        let [v4, v6] = prefixes.map(|prefix| format!("{no}network {prefix}"));
        let lines = [
            "router bgp 65000",
            "address-family ipv4 unicast",
            &v4,
            "exit-address-family",
        ];
        let more = ["address-family ipv6 unicast", &v6];
        lab.frr
            .configure(&[&lines[..], &more[..]].concat())
            .unwrap();
    };
    let has = |lab: &Lab, prefix: &str| {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let found = lab.nodes[0]
            .netns
            .run(&format!("ip {family} route show {prefix}"))
            .unwrap();
        !found.trim().is_empty()
    };
    let wait = |lab: &Lab, prefixes: [&str; 2], wanted: bool, seconds: u64| {
        wait_for(&format!("{prefixes:?} to be {wanted}"), seconds, || {
            Ok(prefixes
                .iter()
                .all(|prefix| has(lab, prefix) == wanted)
                .then_some(()))
        })
        .unwrap();
    };
    tell(&lab, held, "");
    tell(&lab, lost, "");
    wait(&lab, held, true, 5);
    wait(&lab, lost, true, 5);

    let mut monitor = lab.nodes[0].netns.command("ip");
    monitor.args(["monitor", "route"]);
    let monitor = Process::start(&mut monitor, &lab.dir().join("monitor")).unwrap();
    drop(lab.nodes[0].agent.take());
    sleep(WHILE);
    for prefix in held.iter().chain(&lost) {
        assert!(has(&lab, prefix), "{prefix} went with its agent");
    }
    // Withdrawn while nobody listens.
    tell(&lab, lost, "no ");
    lab.nodes[0].start_agent().unwrap();
    wait(&lab, lost, false, 20);
    lab.wait_until_settled().unwrap();
    sleep(WHILE);
    for prefix in held {
        assert!(has(&lab, prefix), "{prefix} was not learnt again");
    }
    let seen = monitor.printed();
    assert!(seen.contains("Deleted 10.98.0.0/16"), "{seen}");
    let gone: Vec<_> = seen
        .lines()
        .filter(|line| line.starts_with("Deleted"))
        .collect();
    let are_lost = gone
        .iter()
        .all(|line| lost.iter().any(|prefix| line.contains(prefix)));
    assert!(are_lost, "a route was away for a moment: {gone:#?}");

    let start = now();
    tell(&lab, held, "no ");
    wait(&lab, held, false, 5);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "withdrawn after {took:?}");
}

#[test]
fn the_rings_of_two_nodes_agree_slot_by_slot_whatever_each_has_been_through() {
    let Some(mut lab) = lab("fl-rings") else {
        return;
    };
    let of = rings(&lab.nodes[0]);
    assert_eq!(of.len(), 4, "IPv4 and IPv6, of clients outside and inside");
    assert_eq!(of, rings(&lab.nodes[1]));

    // node2 loses a backend, restarts, and gets it back; its ids need not be node1's any more.
    for ready in [&[1][..], &[][..], &[2][..]] {
        lab.nodes[1].write_manifests(ready).unwrap();
        let wanted = ready.len();
        wait_for("the ring of node2", 5, || {
            let backends: BTreeSet<_> = rings(&lab.nodes[1])
                .into_values()
                .flatten()
                .flatten()
                .collect();
            Ok((backends.len() == 2 * wanted).then_some(()))
        })
        .unwrap();
    }
    drop(lab.nodes[1].agent.take());
    lab.nodes[1].write_manifests(&[1, 2]).unwrap();
    lab.nodes[1].start_agent().unwrap();
    lab.wait_until_settled().unwrap();

    let [one, two] = [&lab.nodes[0], &lab.nodes[1]].map(rings);
    for (service, slots) in &one {
        assert!(slots.len() >= 512, "{} slots", slots.len());
        let other = &two[service];
        let differing = slots.iter().zip(other).filter(|(a, b)| a != b).count();
        assert_eq!((slots.len(), 0), (other.len(), differing), "{service}");
    }
}

/// Of each service the backend's address in every slot; none when it has no ring.
fn rings(node: &Node) -> BTreeMap<String, Vec<Option<SocketAddr>>> {
    let pins = Pins::new(node.pins());
    let backends = Pinned::<Backends>::open(&pins).unwrap();
    let address = |id: u32| -> Option<SocketAddr> {
        let backend = backends.get(&id).unwrap()?;
        (id != 0 && backend.addr != Addr::default())
            .then(|| SocketAddr::new(backend.addr.ip(), backend.port.number()))
    };
    let mut known = BTreeMap::new();
    let slots = Slots::open(&pins, Access::Read).unwrap();
    let services: Vec<_> = Pinned::<Services>::open(&pins)
        .unwrap()
        .rows()
        .map(Result::unwrap)
        .collect();
    services
        .into_iter()
        .map(|(key, service)| {
            let ring = slots.ring(service.ring, service.slots);
            let row = ring
                .iter()
                .map(|slot| {
                    *known
                        .entry(slot.current)
                        .or_insert_with(|| address(slot.current))
                })
                .collect();
            (format!("{key:?}"), row)
        })
        .collect()
}
