//! What goes wrong around a running agent, and what traffic must not notice of it.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::thread::sleep;
use std::time::Duration;

use fairlead_common::addr::Proto;
use fairlead_common::snat::{Binding, State};
use fairlead_common::tables::SnatRev;
use fairlead_control::dataplane::observe;
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::table::Pinned;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::kernel::flow;
use fairlead_tests::lab::echo::{self, Echo, at};
use fairlead_tests::lab::steady::Steady;
use fairlead_tests::lab::traffic::{fetch, fetch_many};
use fairlead_tests::lab::{CLIENT, Lab, Node, OUTSIDE, SERVICE, SERVICE_PORT, binary};
use fairlead_tests::netns::{Netns, STARTS, run, veth, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;
use nix::sys::signal::Signal;

/// How long traffic flows.
const WHILE: Duration = Duration::from_millis(1400);

fn lab(prefix: &str) -> Option<Lab> {
    lab_with(prefix, |_| ())
}

/// A lab whose files may be changed before the agents start.
fn lab_with(prefix: &str, prepare: impl Fn(&Node)) -> Option<Lab> {
    if !root::is_root() {
        return None;
    }
    let mut lab = Lab::up(prefix).unwrap();
    lab.nodes.iter().for_each(prepare);
    lab.start_agents().unwrap();
    lab.wait_until_settled().unwrap();
    Some(lab)
}

#[test]
fn an_agent_that_comes_while_another_runs_leaves_and_traffic_does_not_notice() {
    let Some(lab) = lab("fl-second") else { return };
    let first = lab.nodes[0].agent.as_ref().unwrap().id();

    let config = lab.nodes[0].config().display().to_string();
    let error = lab.nodes[0]
        .fairlead(&["run", "--config", &config])
        .unwrap_err()
        .to_string();

    assert!(
        error.contains(&format!("another agent (pid {first}) owns ")),
        "{error}"
    );
    let status = lab.nodes[0].ask(&["status"]).unwrap();
    assert_eq!(
        (&status["pid"], &status["peers"]["good"]),
        (&first.into(), &1.into())
    );
    fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();
}

/// As in another pod: the BPF file system and the folder of the socket are the node's, processes are not.
#[test]
fn an_agent_in_another_pid_namespace_is_told_who_holds_the_node() {
    let Some(mut lab) = lab("fl-other-pod") else {
        return;
    };
    let node = &lab.nodes[0];
    let config = node.config().display().to_string();
    let first = node.agent.as_ref().unwrap().id();
    let second = |node: &Node| {
        let agent = binary("fairlead").unwrap().display().to_string();
        let mut command = node.netns.command("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args([&agent, "run", "--config", &config]);
        command.env("FAIRLEAD_PIN_PATH", node.pins());
        command.env("FAIRLEAD_SOCKET", node.socket());
        run(&mut command).unwrap_err().to_string()
    };

    let error = second(node);

    let pins = node.pins().display().to_string();
    let socket = node.socket().display().to_string();
    let who = format!(
        "another agent owns {pins}: stop it, or give this one another pin path; it is a process of the host or of \
         another container (version {}, node {}, pid {first} there), which answers at {socket}",
        env!("CARGO_PKG_VERSION"),
        node.plan.name(),
    );
    assert!(error.contains(&who), "{error}\n{who}");
    let status = node.ask(&["status"]).unwrap();
    assert_eq!(
        (&status["pid"], &status["inSync"], &status["peers"]["good"]),
        (&first.into(), &true.into(), &1.into())
    );
    fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();

    // It has no socket to answer at, or is stopped: the lock is held all the same.
    let agent = lab.nodes[0].agent.as_mut().unwrap();
    agent.signal(Signal::SIGSTOP).unwrap();
    let error = second(&lab.nodes[0]);
    let agent = lab.nodes[0].agent.as_mut().unwrap();
    agent.signal(Signal::SIGCONT).unwrap();
    let what = format!("another agent owns {pins}: stop it, or give this one another pin path");
    assert!(error.contains(&what) && !error.contains("it is"), "{error}");
}

#[test]
fn a_translation_that_has_outlived_its_time_is_cleared_away() {
    if !root::is_root() {
        return;
    }
    let netns = Netns::unique("fl-clear").unwrap();
    let bpffs = BpfFs::mount().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::new(bpffs.path().join("fairlead"));
    let mut run = netns.command(binary("fairlead").unwrap());
    run.args(["run", "--device", "eth0"])
        .env("FAIRLEAD_PIN_PATH", pins.root())
        .env("FAIRLEAD_SOCKET", dir.path().join("agent.sock"));
    let _agent = Process::start(&mut run, &dir.path().join("agent.log")).unwrap();
    let mut table = wait_for("the agent to make its tables", STARTS, || {
        Ok(Pinned::<SnatRev>::open(&pins).ok())
    })
    .unwrap();
    let key = |port| flow(("203.0.113.9", 80), ("10.1.0.1", port), Proto::TCP);
    let now_s = observe::now_s().unwrap();
    let [old, young] = [(2000, 7441), (2001, 0)].map(|(port, silent_s)| {
        let row = Binding {
            state: State::Established as u8,
            last_seen_s: now_s.wrapping_sub(silent_s),
            ..Binding::default()
        };
        table.set(&key(port), &row).unwrap();
        key(port)
    });

    wait_for("the old row to go", 20, || {
        Ok(table.get(&old)?.is_none().then_some(()))
    })
    .unwrap();

    assert!(table.get(&young).unwrap().is_some());
}

#[test]
fn a_device_is_waited_for_visibly_and_attached_each_time_it_appears() {
    if !root::is_root() {
        return;
    }
    let netns = Netns::unique("fl-dev").unwrap();
    let far = Netns::unique("fl-dev").unwrap();
    let bpffs = BpfFs::mount().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let command = |program: &str, words: &[&str]| {
        let mut command = netns.command(binary(program).unwrap());
        command
            .args(words)
            .env("FAIRLEAD_PIN_PATH", bpffs.path().join("fairlead"))
            .env("FAIRLEAD_SOCKET", dir.path().join("agent.sock"));
        command
    };
    let mut run = command("fairlead", &["run", "--device", "eth0"]);
    let _agent = Process::start(&mut run, &dir.path().join("agent.log")).unwrap();
    // Its exit code and its words.
    let status = || {
        let output = command("dpctl", &["status"]).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let waits = || {
        wait_for("the agent to wait for eth0", 20, || {
            let (code, said) = status();
            let waits = said
                .contains("xdp_ingress  not attached: there is no such device; it is waited for")
                && said.contains(
                    "tc_egress    not attached: there is no such device; it is waited for",
                )
                && said.matches("DeviceMissing  device eth0").count() == 1;
            anyhow::ensure!(code == Some(1) && waits, "{code:?} {said}");
            Ok(Some(()))
        })
        .unwrap();
    };
    let attached = || {
        wait_for("the agent to attach to eth0", 5, || {
            let (code, said) = status();
            let attached = said.contains("eth0    xdp_ingress  driver\n")
                && said.contains("eth0    tc_egress    tcx\n");
            anyhow::ensure!(code == Some(0) && attached, "{code:?} {said}");
            let link = netns.run("ip link show eth0")?;
            anyhow::ensure!(link.contains("prog/xdp"), "{link}");
            Ok(Some(()))
        })
        .unwrap();
    };

    waits();
    for _ in 0..2 {
        veth((&netns, "eth0"), (&far, "eth0")).unwrap();
        attached();
        netns.ip("link del eth0").unwrap();
        waits();
    }
    // Deleted and made anew before anyone could look.
    veth((&netns, "eth0"), (&far, "eth0")).unwrap();
    attached();
    netns.ip("link del eth0").unwrap();
    veth((&netns, "eth0"), (&far, "eth0")).unwrap();
    attached();
}

#[test]
fn a_manifest_that_breaks_keeps_its_last_good_version_until_a_good_one_comes() {
    let Some(lab) = lab("fl-broken") else { return };
    let node = &lab.nodes[0];
    let file = node.manifests().join("service.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    let conditions = || node.ask(&["status"]).unwrap()["conditions"].clone();
    assert_eq!(conditions(), serde_json::json!([]));

    for (broken, line, reason) in [
        // A file that is no YAML, and an object that is no Service.
        (
            format!("{good}\n---\nkind: [\n"),
            good.lines().count() + 3,
            "Unparsable",
        ),
        (
            good.replacen("port: 80,", "port: eighty,", 1),
            11,
            "Unreadable",
        ),
    ] {
        node.put("service.yaml", &broken).unwrap();
        let place = format!("{}:{line}", file.display());
        wait_for("the agent to notice", 5, || {
            let found = conditions();
            anyhow::ensure!(found[0]["reason"] == reason, "{found}");
            Ok(Some(()))
        })
        .unwrap();
        let said = node.dpctl(&["status"]).unwrap();
        assert!(said.contains(&place), "{place} is not in {said}");
        assert!(said.contains("before stay"), "{said}");

        lab.wait_for_next_hops(&[1, 2], 1).unwrap();
        for (family, service) in SERVICE.into_iter().enumerate() {
            let (servers, seen) = fetch_many(&lab.client, service, SERVICE_PORT, 20).unwrap();
            assert_eq!(servers.len(), 2, "{servers:?}");
            assert_eq!(seen, [CLIENT[family].parse::<IpAddr>().unwrap()]);
        }
        // Other files are still followed.
        node.put("echo.yaml", &echo::service(echo::Servers::Hosts))
            .unwrap();
        wait_for("the other file's service", 5, || {
            let services = node.ask(&["services"])?;
            // Two addresses of two services, one of them with TCP and UDP, for clients on each side.
            Ok((services.as_array().map(Vec::len) == Some(12)).then_some(()))
        })
        .unwrap();
        std::fs::remove_file(node.manifests().join("echo.yaml")).unwrap();
    }

    node.write_manifests(&[2]).unwrap();
    wait_for("the good version to be in force", 5, || {
        Ok((conditions() == serde_json::json!([])).then_some(()))
    })
    .unwrap();
    let services = node.ask(&["services"]).unwrap();
    assert_eq!(
        services[0]["backends"].as_array().map(Vec::len),
        Some(2),
        "{services}"
    );
    let share = |n: usize| services[0]["backends"][n]["slots"].as_u64().unwrap();
    assert_eq!(share(0).min(share(1)), 0, "{services}");
}

#[test]
fn a_peer_that_sends_garbage_is_told_so_and_the_others_keep_their_sessions() {
    let Some(lab) = lab("fl-garbage") else { return };
    let node = &lab.nodes[0];
    lab.router.ip("addr add 10.0.1.9/24 dev node1").unwrap();
    let listener = lab
        .router
        .enter(|| TcpListener::bind("10.0.1.9:1179"))
        .unwrap()
        .unwrap();
    let established = |node: &Node| {
        let peers = node.ask(&["bgp", "peers"]).unwrap();
        let peers = peers.as_array().unwrap().iter();
        peers
            .filter(|peer| peer["state"] == "Established")
            .map(|peer| (peer["address"].clone(), peer["sinceS"].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    let before = established(node);
    assert_eq!(before.len(), 1);

    let policies = std::fs::read_to_string(node.manifests().join("bgp.yaml")).unwrap();
    let neighbor = "- peerAddress: 10.0.1.1/32";
    assert!(policies.contains(neighbor), "{policies}");
    let stranger = "- {peerAddress: 10.0.1.9/32, peerPort: 1179, peerASN: 65066, \
                    connectRetryTimeSeconds: 1, holdTimeSeconds: 9, keepAliveTimeSeconds: 3}";
    let both = policies.replace(neighbor, &format!("{stranger}\n        {neighbor}"));
    node.put("bgp.yaml", &both).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();

    assert_eq!(message_types(&said), [1, 3], "OPEN, NOTIFICATION");
    // RFC 4271 §6.1: Message Header Error, Connection Not Synchronized.
    assert_eq!(&said[said.len() - 2..], [1, 1]);
    let after = established(node);
    assert_eq!(after.len(), 1);
    assert!(
        after[0].0 == before[0].0 && after[0].1 >= before[0].1,
        "{before:?} {after:?}"
    );
    let said = node.dpctl(&["bgp", "peers", "-o", "wide"]).unwrap();
    assert!(said.contains("10.0.1.9"), "{said}");
    lab.wait_for_next_hops(&[1, 2], 1).unwrap();
    fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 10).unwrap();
}

/// The types of the BGP messages in a stream (RFC 4271 §4.1).
fn message_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while bytes.len() >= 19 {
        types.push(bytes[18]);
        let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        bytes = &bytes[length.clamp(19, bytes.len())..];
    }
    types
}

#[test]
fn pods_may_leave_under_the_nodes_own_address_beside_the_node_itself() {
    let without_egress = |node: &Node| {
        let text = std::fs::read_to_string(node.config()).unwrap();
        let line = format!("  egressAddress: {}\n", node.plan.egress());
        assert!(text.contains(&line), "{text}");
        std::fs::write(node.config(), text.replace(&line, "")).unwrap();
    };
    let Some(lab) = lab_with("fl-masq", without_egress) else {
        return;
    };
    let mut echo = Echo::default();
    echo.listen(&lab.outside, "outside", at(OUTSIDE).unwrap())
        .unwrap();
    let [own4, own6] = lab.nodes[0].plan.addresses();
    for own in [&own4, &own6] {
        echo.listen(&lab.nodes[0].netns, "node1", at(own).unwrap())
            .unwrap();
    }

    let mut steady = Steady::default();
    // The pod, and beside it the node: to the outside, to the client, and asked by both.
    for from in [&lab.nodes[0].pod, &lab.nodes[0].netns] {
        steady.datagrams(from, at(OUTSIDE).unwrap(), 4).unwrap();
        steady.requests(from, at(OUTSIDE).unwrap()).unwrap();
        steady.transfer(from, at(OUTSIDE).unwrap()).unwrap();
        steady.pings(from, OUTSIDE).unwrap();
    }
    for own in [&own4, &own6] {
        for from in [&lab.outside, &lab.client] {
            steady.datagrams(from, at(own).unwrap(), 2).unwrap();
            steady.requests(from, at(own).unwrap()).unwrap();
            steady.pings(from, own).unwrap();
        }
    }
    sleep(WHILE);
    let accounts = steady.end().unwrap();

    let harmed: Vec<_> = accounts
        .iter()
        .filter(|account| !account.is_whole(20))
        .collect();
    assert!(harmed.is_empty(), "{harmed:#?}");
    assert_eq!(accounts.len(), 2 * 7 + 4 * 4);
    let prefix = format!("outside {own4}:");
    for account in accounts.iter().filter(|a| {
        a.what.ends_with(&at(OUTSIDE).unwrap().to_string())
            || a.what.contains(&format!("{} #", at(OUTSIDE).unwrap()))
    }) {
        let named: Vec<_> = account.witnesses.iter().collect();
        // Requests note only who answered.
        let is_own = |seen: &String| seen.starts_with(&prefix) || seen == "outside";
        assert!(
            !named.is_empty() && named.into_iter().all(is_own),
            "{account:?}"
        );
    }
    assert_eq!(
        fetch(&lab.nodes[0].pod, OUTSIDE, 80).unwrap().seen,
        own4.parse::<IpAddr>().unwrap()
    );
    let nat = lab.nodes[0].ask(&["nat", "list"]).unwrap();
    let nat = nat.as_array().unwrap();
    for protocol in ["tcp", "udp", "icmp"] {
        assert!(
            nat.iter().any(|b| b["protocol"] == protocol),
            "no {protocol} in {nat:?}"
        );
    }
    // The session runs between the same addresses.
    let status = lab.nodes[0].ask(&["status"]).unwrap();
    assert_eq!(status["peers"]["good"], 1, "{status}");
    assert_eq!(status["egressAddress"], *own4, "{status}");
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let Some(lab) = lab("fl-nothing") else { return };
    let dir = lab.dir().to_owned();
    let left = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|process| {
            let line = std::fs::read(process.ok()?.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(dir.to_str()?).then_some(line)
        });
        let mounts = mounts
            .lines()
            .filter(|line| line.contains(dir.to_str().unwrap()));
        let spaces = std::fs::read_dir("/run/netns")
            .unwrap()
            .filter_map(|space| {
                let name = space.ok()?.file_name().into_string().ok()?;
                name.starts_with("fl-nothing-").then_some(name)
            });
        [mounts.count(), processes.count(), spaces.count()]
    };
    // Four file systems; two agents, zebra, bfdd and bgpd; nine namespaces.
    assert_eq!(left(), [4, 5, 9]);

    lab.nodes[0].cleanup().unwrap();
    drop(lab);

    assert_eq!(left(), [0, 0, 0]);
    assert!(!dir.exists());
}
