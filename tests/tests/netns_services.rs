//! What a Service asks for, from manifests to real traffic: affinity, source ranges, GUE, local policies.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::lab::traffic::{self, fetch, fetch_many};
use fairlead_tests::lab::{Lab, Node, Plan, SERVICE};
use fairlead_tests::netns::{STARTS, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;

const AFFINITY: u16 = 8080;
const RANGES: u16 = 8081;
const GUE: u16 = 8082;
/// Of a service with `externalTrafficPolicy: Local`, whose only backend is node 1's.
const LOCAL: &str = "203.0.113.20";
const HEALTH_CHECK: u16 = 32000;

/// A service at the addresses of the lab's own, with both nodes' backends as hosts without an agent.
fn service(name: &str, port: u16, annotations: &str, fields: &str) -> String {
    let [v4, v6] = SERVICE;
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{announce: bgp}}, \
         annotations: {{{annotations}}}}}\nspec:\n  type: LoadBalancer\n  ports: [{{port: {port}}}]\n  \
         {fields}\nstatus: {{loadBalancer: {{ingress: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}\n"
    );
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let [one, two] = [1, 2].map(|n| Plan(n).web()[family].clone());
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports: [{{port: {port}}}]\n\
             endpoints: [{{addresses: ['{one}']}}, {{addresses: ['{two}']}}]\n",
            kind.to_lowercase()
        );
    }
    text
}

fn local_service(ready: bool) -> String {
    let backend = &Plan(1).web()[0];
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: local, labels: {{announce: bgp}}}}\nspec:\n  \
         type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {HEALTH_CHECK}\n  \
         ports: [{{port: {AFFINITY}}}]\nstatus: {{loadBalancer: {{ingress: [{{ip: {LOCAL}}}]}}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: local-1, labels: \
         {{kubernetes.io/service-name: local}}}}\naddressType: IPv4\nports: [{{port: {AFFINITY}}}]\n\
         endpoints: [{{addresses: ['{backend}'], nodeName: node1, conditions: {{ready: {ready}}}}}]\n"
    )
}

/// The lab with these services, settled, and their servers.
fn lab(prefix: &str) -> Result<(Lab, Vec<Process>)> {
    let mut lab = Lab::up(prefix)?;
    lab.start_agents()?;
    let services = service("affinity", AFFINITY, "", "sessionAffinity: ClientIP")
        + &service(
            "ranges",
            RANGES,
            "",
            "loadBalancerSourceRanges: [192.0.2.0/24, '2001:db8:c::/64']",
        )
        + &service("gue", GUE, "fairlead.io/forwarding: dsr-gue", "");
    let mut servers = Vec::new();
    for node in &lab.nodes {
        for port in [AFFINITY, RANGES, GUE] {
            let log = lab.dir().join(format!("server-{}-{port}.log", node.plan.0));
            let name = format!("web{}", node.plan.0);
            servers.push(traffic::serve(&node.web, &name, port, &log)?);
        }
        node.web.ip(&format!("addr add {LOCAL}/32 dev lo"))?;
        node.put("services.yaml", &services)?;
    }
    lab.wait_until_settled()?;
    wait_for("the rings of all services", STARTS, || {
        for node in &lab.nodes {
            for (port, backends) in [(AFFINITY, 2), (RANGES, 2), (GUE, 2)] {
                let ready = rows(node, port)?.iter().all(|service| {
                    let all = service["backends"].as_array().into_iter().flatten();
                    all.filter(|one| one["slots"].as_u64() > Some(0)).count() == backends
                });
                ensure!(ready, "port {port} of {}", node.plan.name());
            }
        }
        Ok(Some(()))
    })?;
    Ok((lab, servers))
}

/// What `dpctl services` says of the services at a port, outside.
fn rows(node: &Node, port: u16) -> Result<Vec<serde_json::Value>> {
    let all = node.ask(&["services"])?;
    let of = all.as_array().into_iter().flatten();
    let of = of.filter(|one| one["port"] == port && one["scope"] == "outside");
    let rows: Vec<_> = of.cloned().collect();
    ensure!(rows.len() >= 2, "{} services at port {port}", rows.len());
    Ok(rows)
}

fn dropped(lab: &Lab, reason: &str) -> Result<u64> {
    let mut packets = 0;
    for node in &lab.nodes {
        let drops = node.ask(&["drops", "--all"])?;
        let row = drops.as_array().into_iter().flatten();
        let mut row = row.filter(|row| row["reason"] == reason);
        let row = row.next().with_context(|| format!("no {reason}"))?;
        packets += row["packets"].as_u64().context("no number")?;
    }
    Ok(packets)
}

#[test]
fn a_service_is_served_as_its_fields_ask() {
    if !root::is_root() {
        return;
    }
    let (lab, _servers) = lab("fl-svc").unwrap();
    for service in SERVICE {
        // Connections come by both nodes: they agree without a table.
        let (servers, seen) = fetch_many(&lab.client, service, AFFINITY, 30).unwrap();
        assert_eq!(servers.len(), 1, "{servers:?}");
        assert_eq!(seen.len(), 1, "the client's own address: {seen:?}");

        let (servers, seen) = fetch_many(&lab.client, service, GUE, 30).unwrap();
        assert_eq!(servers.len(), 2, "{servers:?}");
        assert_eq!(seen.len(), 1, "the client's own address: {seen:?}");

        fetch(&lab.client, service, RANGES).unwrap();
    }
    for node in &lab.nodes {
        for service in rows(node, GUE).unwrap() {
            let backends = service["backends"].as_array().unwrap();
            assert!(
                backends.iter().all(|one| one["forward"] == "gue"),
                "{service}"
            );
        }
    }

    assert_eq!(dropped(&lab, "service-source-denied").unwrap(), 0);
    fetch(&lab.outside, SERVICE[0], RANGES).unwrap_err();
    assert!(dropped(&lab, "service-source-denied").unwrap() > 0);
    // A range more is one file more.
    let wider = service(
        "ranges",
        RANGES,
        "",
        "loadBalancerSourceRanges: [0.0.0.0/0]",
    );
    for node in &lab.nodes {
        let gue = service("gue", GUE, "fairlead.io/forwarding: dsr-gue", "");
        node.put("services.yaml", &(gue + &wider)).unwrap();
    }
    wait_for("the wider range", 10, || {
        Ok(fetch(&lab.outside, SERVICE[0], RANGES).ok())
    })
    .unwrap();
    // Of the other family nobody is let in any more.
    fetch(&lab.client, SERVICE[1], RANGES).unwrap_err();
}

#[test]
fn a_local_service_is_announced_where_its_backend_is_and_withdrawn_with_it() {
    if !root::is_root() {
        return;
    }
    let (lab, _servers) = lab("fl-loc").unwrap();
    for node in &lab.nodes {
        node.put("local.yaml", &local_service(true)).unwrap();
    }
    let prefix = format!("{LOCAL}/32");
    let reached_by = |wanted: &[String]| {
        wait_for(
            &format!("the router to reach {prefix} by {wanted:?}"),
            10,
            || {
                let found = lab.frr.next_hops(&prefix)?;
                ensure!(found == wanted, "it has {found:?}");
                Ok(Some(()))
            },
        )
    };
    reached_by(&[Plan(1).addresses()[0].clone()]).unwrap();
    // BGP has it before the router's kernel does.
    wait_for("the router to forward", 5, || {
        Ok(fetch(&lab.client, LOCAL, AFFINITY).ok())
    })
    .unwrap();
    let (servers, _) = fetch_many(&lab.client, LOCAL, AFFINITY, 5).unwrap();
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["web1"]);
    assert_eq!(health(&lab.nodes[0]).unwrap(), (200, 1));
    assert_eq!(health(&lab.nodes[1]).unwrap(), (503, 0));

    let began = now();
    lab.nodes[0]
        .put("local.yaml", &local_service(false))
        .unwrap();
    reached_by(&[]).unwrap();
    let took = now() - began;

    println!("withdrawn {took:?} after its endpoint was not ready");
    assert!(took < Duration::from_secs(2), "{took:?}");
    wait_for("the health check to say so", 5, || {
        ensure!(health(&lab.nodes[0])? == (503, 0));
        Ok(Some(()))
    })
    .unwrap();
}

/// The status and count of a node's health check, asked at its own address.
fn health(node: &Node) -> Result<(u16, u64)> {
    let address: SocketAddr = format!("{}:{HEALTH_CHECK}", node.plan.addresses()[0]).parse()?;
    let text = node.netns.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    let body: serde_json::Value = serde_json::from_str(body)?;
    ensure!(body["service"]["name"] == "local", "{body}");
    Ok((status, body["localEndpoints"].as_u64().context("no count")?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "an edge: it times a real withdrawal"
)]
fn now() -> Instant {
    Instant::now()
}
