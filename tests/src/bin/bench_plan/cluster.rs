//! An agent in a namespace with a BGP peer that is ours, and the objects of its cluster; the API server is ours
//! ([`Ours`]) or a real one (`real`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use anyhow::{Context, Result, ensure};
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::service::ServiceKey;
use fairlead_common::tables::{Backends, Services};
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::dataplane::table::Pinned;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::lab::binary;
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::process::Process;
use tempfile::TempDir;

use super::api_server::Server;
use super::peer::{ASN, Peer};

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services, of IPv4 and IPv6 in turn.
    pub services: u32,
    /// Backends of each.
    pub backends: u32,
}

impl Size {
    /// The address of a service.
    pub fn address(service: u32) -> IpAddr {
        family(service, 0xcb00_0000 + service)
    }

    /// The address of a backend; `change` makes the first one another.
    pub fn backend(self, service: u32, backend: u32, change: u32) -> IpAddr {
        let first = if backend == 0 { change << 20 } else { 0 };
        family(
            service,
            0x0a40_0000 + service * self.backends + backend + first,
        )
    }

    /// A `Service` as JSON.
    pub fn service(service: u32) -> String {
        let family = if service.is_multiple_of(2) {
            "IPv4"
        } else {
            "IPv6"
        };
        let address = Self::address(service);
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{service}","namespace":"default","resourceVersion":"1","creationTimestamp":"2026-01-01T00:00:00Z"}},"spec":{{"type":"LoadBalancer","allocateLoadBalancerNodePorts":false,"ipFamilies":["{family}"],"ports":[{{"port":80,"protocol":"TCP"}}]}},"status":{{"loadBalancer":{{"ingress":[{{"ip":"{address}"}}]}}}}}}"#
        )
    }

    /// The `EndpointSlice` of a service as JSON, with its first `count` backends.
    pub fn slice(self, service: u32, count: u32, change: u32) -> String {
        let family = if service.is_multiple_of(2) {
            "IPv4"
        } else {
            "IPv6"
        };
        let endpoints: Vec<String> = (0..count)
            .map(|backend| {
                let address = self.backend(service, backend, change);
                format!(
                    r#"{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node{}"}}"#,
                    2 + backend
                )
            })
            .collect();
        format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"s{service}-1","namespace":"default","resourceVersion":"{}","labels":{{"kubernetes.io/service-name":"s{service}"}}}},"addressType":"{family}","ports":[{{"name":"","port":80,"protocol":"TCP"}}],"endpoints":[{}]}}"#,
            2 + change,
            endpoints.join(",")
        )
    }
}

fn family(service: u32, number: u32) -> IpAddr {
    if service.is_multiple_of(2) {
        Ipv4Addr::from(number).into()
    } else {
        Ipv6Addr::from(0xfd20_u128 << 112 | u128::from(number)).into()
    }
}

/// The node and the policy by which its services are announced, by the plurals of their kinds.
pub fn around() -> BTreeMap<&'static str, Vec<String>> {
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1","resourceVersion":"1","labels":{"rack":"0"}},"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"10.9.0.1"},{"type":"InternalIP","address":"fd09::1"}]}}"#;
    let policy = format!(
        r#"{{"apiVersion":"cilium.io/v2alpha1","kind":"CiliumBGPPeeringPolicy","metadata":{{"name":"p","resourceVersion":"1"}},"spec":{{"nodeSelector":{{"matchLabels":{{"rack":"0"}}}},"virtualRouters":[{{"localASN":65001,"serviceSelector":{{"matchExpressions":[{{"key":"none","operator":"DoesNotExist"}}]}},"neighbors":[{{"peerAddress":"10.9.0.2/32","peerASN":{ASN},"families":[{{"afi":"ipv4","safi":"unicast"}},{{"afi":"ipv6","safi":"unicast"}}]}}]}}]}}}}"#
    );
    BTreeMap::from([
        ("nodes", vec![node.to_owned()]),
        ("ciliumbgppeeringpolicies", vec![policy]),
    ])
}

/// Who tells the agent what its cluster is.
pub trait Teller {
    /// A slice is another one; returns when that has been taken.
    fn tell(&self, slice: &str) -> Result<()>;
}

/// A server of our own with all objects, which waits for [`Server::release`].
pub struct Ours(pub Server);

impl Ours {
    /// Serves the objects of a cluster in the agent's own namespace.
    pub fn start(size: Size, wires: &Wires) -> Result<Self> {
        let mut objects = around();
        let of = |object: &dyn Fn(u32) -> String| (0..size.services).map(object).collect();
        objects.insert("services", of(&|service| Size::service(service)));
        let slice = |service| size.slice(service, size.backends, 0);
        objects.insert("endpointslices", of(&slice));
        let listener = wires.node.enter(|| TcpListener::bind("127.0.0.1:6443"))??;
        Ok(Self(Server::start(listener, objects)))
    }

    /// The way to it, as a kubeconfig.
    pub const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:6443'}}]\nusers: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n";
}

impl Teller for Ours {
    fn tell(&self, slice: &str) -> Result<()> {
        self.0.modify("endpointslices", slice);
        Ok(())
    }
}

/// The agent's namespace, and that of the router behind which everything else is.
pub struct Wires {
    pub node: Netns,
    router: Netns,
}

impl Wires {
    /// Makes them.
    pub fn make() -> Result<Self> {
        let (node, router) = (Netns::unique("plan-node")?, Netns::unique("plan-router")?);
        veth((&node, "eth0"), (&router, "eth0"))?;
        for (netns, last, other) in [(&node, 1, 2), (&router, 2, 1)] {
            netns.ip(&format!("address add 10.9.0.{last}/24 dev eth0"))?;
            netns.ip(&format!("address add fd09::{last}/64 dev eth0"))?;
            netns.ip("link set eth0 up")?;
            netns.ip(&format!("route add default via 10.9.0.{other}"))?;
            netns.ip(&format!("-6 route add default via fd09::{other}"))?;
        }
        Ok(Self { node, router })
    }
}

/// An agent and its peer; gone when dropped.
pub struct Agent {
    pub size: Size,
    pub peer: Peer,
    pub pins: Pins,
    services: Pinned<Services>,
    process: Process,
    _wires: Wires,
    _fs: BpfFs,
    _folder: TempDir,
}

impl Agent {
    /// Starts one, and waits until its programs are in the kernel.
    pub fn start(size: Size, wires: Wires, kubeconfig: &str) -> Result<Self> {
        let listener = wires.router.enter(|| TcpListener::bind("10.9.0.2:179"))??;
        let peer = Peer::start(listener);
        let (fs, folder) = (BpfFs::mount()?, tempfile::tempdir()?);
        let place = |name: &str| folder.path().join(name);
        let pins = Pins::new(fs.path().join("fairlead"));
        std::fs::write(place("kubeconfig"), kubeconfig)?;
        // Who gives addresses writes to the server; that is one node of a cluster, and not this one.
        let config = format!(
            "nodeName: node1\ndevices: [{{name: eth0, role: uplink}}]\nbpf: {{pinPath: {}}}\nsocket: {}\nstateDir: {}\nkubernetes: {{enabled: true, kubeconfig: {}, loadBalancerIPAM: false}}\nsocketLoadBalancing: {{enabled: false}}\n",
            pins.root().display(),
            place("agent.sock").display(),
            place("state").display(),
            place("kubeconfig").display(),
        );
        std::fs::write(place("config.yaml"), config)?;
        let mut command = wires.node.command(binary("fairlead")?);
        command.args(["run", "--config"]).arg(place("config.yaml"));
        let mut process = Process::start(&mut command, &place("log"))?;
        let services = wait_for("the agent to load its programs", 60, || {
            ensure!(process.ended()?.is_none(), "{}", process.printed());
            let is_up = process.printed().contains("agent started");
            Ok(is_up.then(|| Pinned::open(&pins)).transpose()?)
        })?;
        Ok(Self {
            size,
            peer,
            pins,
            services,
            process,
            _wires: wires,
            _fs: fs,
            _folder: folder,
        })
    }

    /// Waits until the last row of services has a ring; rows are written in the order of their keys, those for
    /// clients inside after the others of an address.
    pub fn wait_for_all(&self) -> Result<()> {
        let all = (0..self.size.services).map(|service| Self::key(service).inside());
        let last = all.max().context("there are no services")?;
        let done = super::wait(|| {
            let row = self.services.get(&last);
            row.is_ok_and(|row| row.is_some_and(|row| row.slots > 0))
        });
        done.with_context(|| self.process.printed())?;
        for service in 0..self.size.services {
            self.ring_of(service)?;
        }
        Ok(())
    }

    /// Waits until the peer has heard of all services of its family.
    pub fn wait_for_announcements(&self) -> Result<()> {
        let all = self.size.services.div_ceil(2) as usize;
        super::wait(|| self.peer.count() >= all).with_context(|| self.process.printed())
    }

    /// How many backends the kernel knows.
    pub fn backends(&self) -> Result<usize> {
        let mut count = 0;
        for row in Pinned::<Backends>::open(&self.pins)?.rows() {
            count += usize::from(bytemuck::bytes_of(&row?.1).iter().any(|byte| *byte != 0));
        }
        Ok(count)
    }

    /// The first slot of a service's ring, and how many it has.
    pub fn ring_of(&self, service: u32) -> Result<(u32, u32)> {
        let row = self.services.get(&Self::key(service))?;
        let row = row.filter(|row| row.slots > 0);
        row.map(|row| (row.ring, row.slots))
            .with_context(|| format!("service {service} has no ring: {}", self.process.printed()))
    }

    /// What the agent's process takes for itself; the tables that it has mapped are the kernel's.
    pub fn memory_kib(&self) -> Result<f64> {
        // `ip netns exec` has become the agent.
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(&path).context(path)?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        kib.context("the kernel does not say how much memory the agent has")
    }

    fn key(service: u32) -> ServiceKey {
        ServiceKey::new(
            Addr::from(Size::address(service)),
            Port::new(80),
            Proto::TCP,
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its end is not measured.
        let _ = self.process.stop();
    }
}
