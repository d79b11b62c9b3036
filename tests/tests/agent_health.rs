//! Backends that fail their checks and come back, and backends that are drained: what the ring, the router and
//! running traffic see of it.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::lab::echo::{Echo, at};
use fairlead_tests::lab::steady::Steady;
use fairlead_tests::lab::traffic::fetch_many;
use fairlead_tests::lab::{CLIENT, Lab, Node, SERVICE, SERVICE_PORT};
use fairlead_tests::netns::{Netns, STARTS, wait_for};
use fairlead_tests::root;
use nix::sys::signal::Signal;
use serde_json::Value;

const HEALTH_PORT: u16 = 8080;
const CHECK: &str = "http:8080/healthz interval=200ms timeout=150ms unhealthy=2 healthy=2";

/// What a health server does.
#[derive(Clone, Copy)]
enum Answers {
    Ok,
    Error,
    Nothing,
    Reset,
    Stop,
}

/// Answers health checks inside a namespace, as it is told; ended when dropped.
struct Health {
    answers: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Health {
    fn start(netns: &Netns) -> Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, HEALTH_PORT);
        let listener = netns.enter(|| TcpListener::bind(any))??;
        listener.set_nonblocking(true)?;
        let answers = Arc::new(AtomicU8::new(Answers::Ok as u8));
        let told = answers.clone();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            loop {
                let now = told.load(Ordering::Relaxed);
                if now == Answers::Stop as u8 {
                    return;
                }
                let Ok((stream, _)) = listener.accept() else {
                    sleep(Duration::from_millis(2));
                    continue;
                };
                match now {
                    n if n == Answers::Ok as u8 => respond(stream, "200 OK"),
                    n if n == Answers::Error as u8 => respond(stream, "500 Internal Server Error"),
                    n if n == Answers::Nothing as u8 => held.push(stream),
                    _ => drop(stream),
                }
            }
        });
        Ok(Self {
            answers,
            thread: Some(thread),
        })
    }

    fn will(&self, answers: Answers) {
        self.answers.store(answers as u8, Ordering::Relaxed);
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.will(Answers::Stop);
        if let Some(thread) = self.thread.take() {
            // What went wrong there has shown in the story.
            let _ = thread.join();
        }
    }
}

fn respond(mut stream: TcpStream, status: &str) {
    // A checker that goes away early is its own business.
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = stream.read(&mut [0; 1024]);
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
}

/// A lab whose service asks for health checks, and the servers that answer them.
fn checked_lab(prefix: &str) -> Option<(Lab, [Health; 2])> {
    if !root::is_root() {
        return None;
    }
    let mut lab = Lab::up(prefix).unwrap();
    let servers = [0, 1].map(|n: usize| Health::start(&lab.nodes[n].web).unwrap());
    for node in &lab.nodes {
        let text = std::fs::read_to_string(node.manifests().join("service.yaml")).unwrap();
        let asks = format!(
            "namespace: default\n  annotations:\n    fairlead.io/health-check: \"{CHECK}\"\n  labels:\n    announce"
        );
        let text = text.replacen("namespace: default\n  labels:\n    announce", &asks, 1);
        assert!(text.contains(CHECK), "{text}");
        node.put("service.yaml", &text).unwrap();
    }
    lab.start_agents().unwrap();
    lab.wait_until_settled().unwrap();
    Some((lab, servers))
}

/// Every backend of the web service at this node, as `dpctl backends list` shows it.
fn backends(node: &Node) -> Result<Vec<Value>> {
    let listed = node.ask(&["backends", "list", "--service", "default/web"])?;
    Ok(listed.as_array().cloned().unwrap_or_default())
}

/// Waits until each node sees the backends of a `web` in this state, in both families.
fn wait_for_state(lab: &Lab, web: usize, state: &str) {
    let addresses = lab.nodes[web].plan.web();
    wait_for(&format!("web{} to be {state}", web + 1), 10, || {
        for node in &lab.nodes {
            let listed = backends(node)?;
            for address in &addresses {
                let found = listed.iter().find(|one| one["address"] == address.as_str());
                let found = found.map(|one| one["state"].clone()).unwrap_or_default();
                ensure!(
                    found == state,
                    "{address} is {found} at {}",
                    node.plan.name()
                );
            }
        }
        Ok(Some(()))
    })
    .unwrap();
}

/// Who answers 40 new connections, of both families.
fn who_answers(lab: &Lab) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for service in SERVICE {
        let (servers, _) = fetch_many(&lab.client, service, SERVICE_PORT, 20).unwrap();
        names.extend(servers.into_keys());
    }
    names
}

fn both() -> BTreeSet<String> {
    ["web1", "web2"].map(str::to_owned).into()
}

#[test]
fn a_backend_that_fails_its_checks_gets_no_flows_until_it_has_recovered() {
    let Some((lab, servers)) = checked_lab("fl-check") else {
        return;
    };
    wait_for_state(&lab, 0, "ready");
    wait_for_state(&lab, 1, "ready");
    assert_eq!(who_answers(&lab), both());

    for (answers, error) in [
        (Answers::Error, "HTTP status 500, good are 200 to 399"),
        (Answers::Nothing, "not done with answering in 150ms"),
        (Answers::Reset, "HTTP: "),
    ] {
        servers[0].will(answers);
        wait_for_state(&lab, 0, "unhealthy");

        assert_eq!(who_answers(&lab), ["web2".to_owned()].into());
        let listed = backends(&lab.nodes[1]).unwrap();
        let failed = listed
            .iter()
            .find(|one| one["state"] == "unhealthy")
            .unwrap();
        let said = failed["health"]["lastError"].as_str().unwrap();
        assert!(said.starts_with(error), "{said}");
        assert_eq!(failed["health"]["verdict"], "unhealthy");

        servers[0].will(Answers::Ok);
        wait_for_state(&lab, 0, "ready");
        assert_eq!(who_answers(&lab), both());
    }
}

#[test]
fn a_service_whose_backends_have_all_failed_is_withdrawn_and_a_restart_does_not_bring_it_back() {
    let Some((mut lab, servers)) = checked_lab("fl-allbad") else {
        return;
    };

    for server in &servers {
        server.will(Answers::Error);
    }
    lab.wait_for_next_hops(&[], 10).unwrap();
    let node = &mut lab.nodes[0];
    node.agent
        .as_mut()
        .unwrap()
        .signal(Signal::SIGTERM)
        .unwrap();
    wait_for("the agent to end", 10, || {
        node.agent.as_mut().unwrap().ended()
    })
    .unwrap();
    node.start_agent().unwrap();
    wait_for("the agent to have done a round", 10, || {
        let status = node.ask(&["status"])?;
        ensure!(
            status["inSync"] == true && status["peers"]["good"] == 1,
            "{status}"
        );
        Ok(Some(()))
    })
    .unwrap();
    let said = String::from_utf8(
        std::process::Command::new(fairlead_tests::lab::binary("dpctl").unwrap())
            .args(["services", "default/web"])
            .env("FAIRLEAD_SOCKET", node.socket())
            .output()
            .unwrap()
            .stderr,
    )
    .unwrap();
    assert!(said.contains("no backend is ready: "), "{said}");
    assert!(said.contains("failed the health check"), "{said}");
    lab.wait_for_next_hops(&[], 5).unwrap();

    for server in &servers {
        server.will(Answers::Ok);
    }
    lab.wait_for_next_hops(&[1, 2], 10).unwrap();
    assert_eq!(who_answers(&lab), both());
}

#[test]
fn a_restart_of_the_agent_takes_no_healthy_backend_off_the_ring() {
    let Some((mut lab, _servers)) = checked_lab("fl-hrest") else {
        return;
    };
    let node = &mut lab.nodes[0];
    let slots = |node: &Node| {
        node.ask(&["services", "default/web"]).unwrap()[0]["slotsInTransition"].clone()
    };
    wait_for("the rings to be steady", 60, || {
        Ok((slots(node) == 0).then_some(()))
    })
    .unwrap();

    node.agent
        .as_mut()
        .unwrap()
        .signal(Signal::SIGKILL)
        .unwrap();
    wait_for("the agent to end", 10, || {
        node.agent.as_mut().unwrap().ended()
    })
    .unwrap();
    node.start_agent().unwrap();
    wait_for("the agent to have done a round", STARTS, || {
        let services = node.ask(&["services"])?;
        Ok((services != serde_json::json!([])).then_some(()))
    })
    .unwrap();
    sleep(Duration::from_secs(1));

    // A slot that had lost its backend for a moment would be in transition.
    assert_eq!(slots(node), 0);
}

#[test]
fn a_backend_is_drained_under_traffic_without_a_lost_request_and_stays_drained_over_restarts() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::settled("fl-drain").unwrap();
    let _echo = Echo::start(&lab).unwrap();
    let [web1, _] = lab.nodes[0].plan.web();
    let drain = |node: &Node, words: &[&str]| node.ask(&[&["backends"], words].concat()).unwrap();

    let mut steady = Steady::default();
    for _ in 0..4 {
        steady
            .transfer(&lab.client, at(SERVICE[0]).unwrap())
            .unwrap();
    }
    steady
        .requests(&lab.client, at(SERVICE[0]).unwrap())
        .unwrap();
    sleep(Duration::from_millis(500));
    for node in &lab.nodes {
        let told = drain(node, &["drain", &web1]);
        assert_eq!(told["changed"], serde_json::json!([web1]));
        assert_eq!(
            drain(node, &["drain", &web1])["changed"],
            serde_json::json!([]),
            "again"
        );
    }
    // Requests that begin now are remembered, by the node that the router sends them to.
    wait_for("a flow to be remembered", 5, || {
        for node in &lab.nodes {
            let words = [
                "flows",
                "list",
                "--service",
                "default/echo",
                "--client",
                CLIENT[0],
            ];
            let flows = node.ask(&words)?;
            let mut flows = flows.as_array().into_iter().flatten();
            if let Some(flow) = flows.find(|flow| flow["translation"].is_null()) {
                let backend = flow["backend"].as_str().unwrap_or_default();
                ensure!(
                    flow["alive"] == true && !backend.starts_with(&format!("{web1}:")),
                    "{flow}"
                );
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
    .unwrap();
    // New connections go elsewhere at once.
    let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 20).unwrap();
    assert_eq!(servers.into_keys().collect::<Vec<_>>(), ["web2"]);
    sleep(Duration::from_millis(500));
    let accounts = steady.end().unwrap();
    assert!(accounts.iter().all(|one| one.is_whole(20)), "{accounts:#?}");
    let kept: Vec<_> = accounts
        .iter()
        .filter(|one| one.what.starts_with("a transfer"))
        .collect();
    assert_eq!(kept.len(), 4);
    assert!(kept.iter().all(|one| one.witnesses.len() == 1), "{kept:#?}");

    let node = &mut lab.nodes[0];
    node.agent
        .as_mut()
        .unwrap()
        .signal(Signal::SIGKILL)
        .unwrap();
    wait_for("the agent to end", 10, || {
        node.agent.as_mut().unwrap().ended()
    })
    .unwrap();
    node.start_agent().unwrap();
    wait_for("the drain to be seen", 10, || {
        let status = node.ask(&["status"])?;
        ensure!(status["drained"] == serde_json::json!([web1]), "{status}");
        Ok(Some(()))
    })
    .unwrap();
    let listed = backends(node).unwrap();
    let state = listed
        .iter()
        .find(|one| one["address"] == web1.as_str())
        .unwrap();
    assert_eq!(
        (&state["state"], &state["slots"]),
        (&"drained".into(), &0.into())
    );

    for node in &lab.nodes {
        assert_eq!(
            drain(node, &["undrain", &web1])["changed"],
            serde_json::json!([web1])
        );
    }
    let (servers, _) = fetch_many(&lab.client, SERVICE[0], SERVICE_PORT, 40).unwrap();
    assert_eq!(servers.len(), 2, "{servers:?}");
}

#[test]
fn a_trace_of_a_packet_is_answered_with_and_without_the_agent() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::settled("fl-trc").unwrap();
    let node = &mut lab.nodes[0];
    let packet = [
        "trace",
        "--in",
        "eth0",
        "--src",
        "192.0.2.2:40000",
        "--dst",
        "203.0.113.10:80",
    ];
    let told = node.dpctl(&packet).unwrap();
    for word in [
        "service default/web",
        " of 512: ",
        "ready, weight 1",
        "reason       service-",
    ] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let asked = node.ask(&packet).unwrap();
    assert_eq!(asked["disagreement"], Value::Null, "{asked}");

    node.agent
        .as_mut()
        .unwrap()
        .signal(Signal::SIGTERM)
        .unwrap();
    wait_for("the agent to end", 10, || {
        node.agent.as_mut().unwrap().ended()
    })
    .unwrap();
    let output = node
        .netns
        .command(fairlead_tests::lab::binary("dpctl").unwrap())
        .args(packet)
        .args(["-o", "json"])
        .env("FAIRLEAD_PIN_PATH", node.pins())
        .env("FAIRLEAD_SOCKET", node.socket())
        .output()
        .unwrap();
    let alone: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in ["verdict", "reason", "action", "result", "disagreement"] {
        assert_eq!(alone[field], asked[field], "{field}");
    }
}
