//! Who reaches a service where: node ports, cluster addresses, traffic policies, endpoints that end and source
//! ranges, for clients outside, pods and the node's own sockets, as kube-proxy has it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cgroup::{Cgroup, Hierarchy};
use fairlead_tests::lab::traffic::{self, fetch, fetch_many};
use fairlead_tests::lab::{CLIENT, Lab, Node, Plan};
use fairlead_tests::netns::{Netns, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;

/// Where the backends listen.
const TCP: u16 = 8080;
const UDP: u16 = 8053;
/// The service's port at its cluster addresses.
const PORT: u16 = 80;
/// Both nodes' pods serve it.
const BOTH: Places = Places {
    name: "both",
    cluster: ["10.96.0.20", "fd00:96::20"],
    node_port: 30080,
    policies: "",
};
/// The same, with both traffic policies.
const LOCAL: Places = Places {
    name: "local",
    cluster: ["10.96.0.21", "fd00:96::21"],
    node_port: 30082,
    policies: "externalTrafficPolicy: Local, internalTrafficPolicy: Local, ",
};
/// The load balancer's address of the service with source ranges.
const GUARDED: &str = "203.0.113.30";
/// More than chance needs to meet both backends.
const MANY: usize = 16;

/// Where a service is reached; its port for UDP is one higher.
struct Places {
    name: &'static str,
    cluster: [&'static str; 2],
    node_port: u16,
    policies: &'static str,
}

impl Places {
    /// The service and its endpoints: node, `ready` and `serving`.
    fn documents(&self, endpoints: &[(u8, bool, bool)]) -> String {
        let Self {
            name,
            cluster: [v4, v6],
            node_port,
            policies,
        } = self;
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, {policies}\
             clusterIPs: [{v4}, '{v6}'], ipFamilies: [IPv4, IPv6], ports: [\
             {{name: tcp, port: {PORT}, targetPort: {TCP}, nodePort: {node_port}}}, \
             {{name: udp, port: {PORT}, targetPort: {UDP}, nodePort: {}, protocol: UDP}}]}}\n",
            node_port + 1
        );
        text += &slices(name, endpoints);
        text
    }
}

fn slices(name: &str, endpoints: &[(u8, bool, bool)]) -> String {
    let of = |(family, kind): (usize, &str)| {
        let endpoints = endpoints.iter().map(|(node, ready, serving)| {
            let plan = Plan(*node);
            format!(
                "{{addresses: ['{}'], nodeName: {}, conditions: {{ready: {ready}, serving: {serving}, \
                 terminating: {}}}}}",
                plan.web()[family],
                plan.name(),
                !ready
            )
        });
        let endpoints: Vec<_> = endpoints.collect();
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports: \
             [{{name: tcp, port: {TCP}}}, {{name: udp, port: {UDP}, protocol: UDP}}]\nendpoints: [{}]\n",
            kind.to_lowercase(),
            endpoints.join(", ")
        )
    };
    ["IPv4", "IPv6"].into_iter().enumerate().map(of).collect()
}

/// A service at a load balancer's address that lets in these sources only.
fn guarded(ranges: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: guarded}}\nspec: {{type: LoadBalancer, \
         loadBalancerSourceRanges: [{ranges}], ports: [{{name: tcp, port: {PORT}, targetPort: {TCP}}}]}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {GUARDED}}}]}}}}\n"
    ) + &slices("guarded", &[(1, true, true), (2, true, true)])
}

const READY: [(u8, bool, bool); 2] = [(1, true, true), (2, true, true)];

/// What answers in the pods, until dropped.
struct Servers {
    tcp: Vec<Process>,
    stop: Arc<AtomicBool>,
    udp: Vec<JoinHandle<()>>,
}

impl Servers {
    fn start(lab: &Lab) -> Result<Self> {
        let mut servers = Self {
            tcp: Vec::new(),
            stop: Arc::default(),
            udp: Vec::new(),
        };
        for node in &lab.nodes {
            let name = format!("web{}", node.plan.0);
            let log = lab.dir().join(format!("{name}-{TCP}.log"));
            servers
                .tcp
                .push(traffic::serve(&node.web, &name, TCP, &log)?);
            let socket = node.web.enter(|| UdpSocket::bind(("::", UDP)))??;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let stop = Arc::clone(&servers.stop);
            servers.udp.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                        let answer = format!("{name} {}", from.ip().to_canonical());
                        let _ = socket.send_to(answer.as_bytes(), from);
                    }
                }
            }));
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.udp.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Which servers answer over UDP, and whom they see.
fn ask_udp(netns: &Netns, address: &str, port: u16) -> Result<BTreeSet<(String, IpAddr)>> {
    let to = SocketAddr::new(address.parse()?, port);
    netns.enter(|| {
        let mut found = BTreeSet::new();
        for _ in 0..MANY {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect(to)?;
            socket.send(b"who?")?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).with_context(|| to.to_string())?;
            let answer = std::str::from_utf8(&answer[..length])?;
            let (name, seen) = answer.split_once(' ').context("no address")?;
            found.insert((name.to_owned(), seen.parse()?));
        }
        Ok(found)
    })?
}

/// Which servers answer over TCP, and whom they see.
fn ask(netns: &Netns, address: &str, port: u16) -> Result<(Vec<String>, Vec<IpAddr>)> {
    let (servers, seen) =
        fetch_many(netns, address, port, MANY).with_context(|| format!("{address} port {port}"))?;
    Ok((servers.into_keys().collect(), seen))
}

fn put(lab: &Lab, name: &str, text: &str) -> Result<()> {
    lab.nodes.iter().try_for_each(|node| node.put(name, text))
}

/// Waits until a service is at so many places at least, and no backend is left out.
fn balances(node: &Node, service: &str, places: usize) -> Result<()> {
    wait_for(&format!("{service} on {}", node.plan.name()), 20, || {
        let left_out = node.ask(&["status"])?["conditions"].to_string();
        ensure!(!left_out.contains("BackendUnreachable"), "{left_out}");
        let all = node.ask(&["services"])?;
        let of = all.as_array().into_iter().flatten();
        let of = of.filter(|one| {
            one["name"]
                .as_str()
                .is_some_and(|name| name.ends_with(service))
        });
        let found = of.count();
        ensure!(found >= places, "{found} of {places} places: {all}");
        Ok(Some(()))
    })
}

fn lab(prefix: &str, prepare: impl FnOnce(&Lab) -> Result<()>) -> Result<(Lab, Servers)> {
    let mut lab = Lab::up(prefix)?;
    prepare(&lab)?;
    lab.start_agents()?;
    // Once there is a way to all backends: one that joins a ring gets UDP's new flows when the drain window ends.
    lab.wait_until_settled()?;
    put(&lab, "both.yaml", &BOTH.documents(&READY))?;
    put(&lab, "local.yaml", &LOCAL.documents(&READY))?;
    let servers = Servers::start(&lab)?;
    for node in &lab.nodes {
        for places in [&BOTH, &LOCAL] {
            balances(node, places.name, 8)?;
        }
    }
    Ok((lab, servers))
}

#[test]
fn node_ports_and_cluster_addresses_are_served_as_their_policies_say() {
    if !root::is_root() {
        return;
    }
    let (lab, _servers) = lab("fl-pol", |_| Ok(())).unwrap();
    for node in &lab.nodes {
        let own = format!("web{}", node.plan.0);
        for (family, address) in node.plan.addresses().iter().enumerate() {
            let client: IpAddr = CLIENT[family].parse().unwrap();
            // At a node's address any node's backend answers, and sees the client's own address.
            let (servers, seen) = ask(&lab.client, address, BOTH.node_port).unwrap();
            assert_eq!((servers.len(), seen), (2, vec![client]), "{address}");
            let found = ask_udp(&lab.client, address, BOTH.node_port + 1).unwrap();
            let expected = ["web1", "web2"].map(|name| (name.to_owned(), client));
            assert_eq!(found, BTreeSet::from(expected), "{address}");

            let (servers, seen) = ask(&lab.client, address, LOCAL.node_port).unwrap();
            assert_eq!((servers, seen), (vec![own.clone()], vec![client]));
            let found = ask_udp(&lab.client, address, LOCAL.node_port + 1).unwrap();
            assert_eq!(found, BTreeSet::from([(own.clone(), client)]));
        }
        for family in 0..2 {
            let (servers, _) = ask(&node.pod, BOTH.cluster[family], PORT).unwrap();
            assert_eq!(servers.len(), 2, "{servers:?}");
            let found = ask_udp(&node.pod, BOTH.cluster[family], PORT).unwrap();
            assert_eq!(found.len(), 2, "{found:?}");
            let (servers, _) = ask(&node.pod, LOCAL.cluster[family], PORT).unwrap();
            assert_eq!(servers, std::slice::from_ref(&own));
        }
    }
    // Nobody announces a cluster address, and nobody outside reaches one.
    fetch(&lab.client, BOTH.cluster[0], PORT).unwrap_err();

    // A node whose backend ends: new connections go to the others, and at a local service to nobody.
    let ending = [(1, false, true), (2, true, true)];
    put(&lab, "both.yaml", &BOTH.documents(&ending)).unwrap();
    let only_first = [(1, true, true)];
    put(&lab, "local.yaml", &LOCAL.documents(&only_first)).unwrap();
    let [first, second] = [1, 2].map(|n| Plan(n).addresses()[0].clone());
    wait_for("the one that ends to get nothing new", 10, || {
        for address in [&first, &second] {
            let (servers, _) = ask(&lab.client, address, BOTH.node_port)?;
            ensure!(servers == ["web2"], "{servers:?}");
        }
        Ok(Some(()))
    })
    .unwrap();
    wait_for("the local service to be refused", 10, || {
        ensure!(fetch(&lab.client, &second, LOCAL.node_port).is_err());
        Ok(Some(()))
    })
    .unwrap();
    fetch(&lab.client, &first, LOCAL.node_port).unwrap();
    fetch(&lab.nodes[1].pod, LOCAL.cluster[0], PORT).unwrap_err();
    // When all end, those that still serve do.
    let all_ending = [(1, false, true), (2, false, false)];
    put(&lab, "both.yaml", &BOTH.documents(&all_ending)).unwrap();
    wait_for("the last one that serves", 10, || {
        let (servers, _) = ask(&lab.client, &second, BOTH.node_port)?;
        ensure!(servers == ["web1"], "{servers:?}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn the_nodes_sockets_and_its_pods_reach_services_as_kube_proxy_lets_them() {
    if !root::is_root() {
        return;
    }
    // This thread is node 1's: its sockets meet that agent's programs.
    let cgroup = Cgroup::enter().unwrap();
    let hierarchy = Hierarchy::mount().unwrap();
    let (lab, _servers) = lab("fl-pos", |lab| {
        let config = lab.nodes[0].config();
        let mut text = std::fs::read_to_string(&config)?;
        text += &format!(
            "socketLoadBalancing: {{enabled: true, cgroup: {}}}\n",
            hierarchy.path(&cgroup)?.display()
        );
        Ok(std::fs::write(config, text)?)
    })
    .unwrap();
    let node = &lab.nodes[0];
    for client in [&node.netns, &node.pod] {
        for family in 0..2 {
            let (servers, _) = ask(client, BOTH.cluster[family], PORT).unwrap();
            assert_eq!(servers.len(), 2, "{servers:?}");
            let found = ask_udp(client, BOTH.cluster[family], PORT).unwrap();
            assert_eq!(found.len(), 2, "{found:?}");
            let (servers, _) = ask(client, LOCAL.cluster[family], PORT).unwrap();
            assert_eq!(servers, ["web1"]);
            // Inside, a node port has all backends, whatever its policy for clients outside.
            let address = &node.plan.addresses()[family];
            let (servers, _) = ask(client, address, LOCAL.node_port).unwrap();
            assert_eq!(servers.len(), 2, "{servers:?}");
        }
    }
    for loopback in ["127.0.0.1", "::1"] {
        let (servers, _) = ask(&node.netns, loopback, BOTH.node_port).unwrap();
        assert_eq!(servers.len(), 2, "{servers:?}");
    }
    fetch(&node.pod, "127.0.0.1", BOTH.node_port).unwrap_err();

    let [node_addr, pod_addr] = [&node.plan.addresses()[0], &node.plan.pod()[0]];
    for (ranges, lets_node_in, lets_pod_in) in [
        (format!("{node_addr}/32"), true, false),
        (format!("{pod_addr}/32"), false, true),
        ("192.0.2.0/24".to_owned(), false, false),
    ] {
        put(&lab, "guarded.yaml", &guarded(&ranges)).unwrap();
        wait_for(&format!("the range {ranges}"), 15, || {
            let reaches = |client: &Netns| fetch(client, GUARDED, PORT).is_ok();
            let found = (reaches(&node.netns), reaches(&node.pod));
            ensure!(found == (lets_node_in, lets_pod_in), "{found:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
    let (servers, _) = {
        put(&lab, "guarded.yaml", &guarded("10.0.0.0/8")).unwrap();
        wait_for("everybody inside to be let in", 10, || {
            ask(&node.pod, GUARDED, PORT).map(Some)
        })
        .unwrap()
    };
    assert_eq!(
        servers.len(),
        2,
        "a pod's packets are balanced as others are"
    );
}
