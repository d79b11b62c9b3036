//! The smallest whole: two nodes, a router, a client, an outside, and pods behind each node.
//!
//! ```text
//!              client 192.0.2.2            outside 198.18.0.2
//!                     │                         │
//!                 ┌───┴─────────────────────────┴───┐
//!                 │ router  AS 65000  FRR, no NAT   │
//!                 └───┬─────────────────────────┬───┘
//!            10.0.1.2 │                         │ 10.0.2.2
//!      ┌──────────────┴──────────┐   ┌──────────┴──────────────┐
//!      │ node1  AS 65001 agent   │   │ node2  AS 65002 agent   │
//!      │ egress 198.51.100.1     │   │ egress 198.51.100.2     │
//!      └───┬──────────────┬──────┘   └──────┬──────────────┬───┘
//!        pod1           web1              web2           pod2
//!     10.1.1.10      10.1.1.80         10.1.2.80      10.1.2.10
//!                  (203.0.113.10, 2001:db8:f::10 on loopback)
//! ```
//!
//! The demonstration and the tests of the whole stand on it.

mod documents;
pub mod echo;
pub mod steady;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::netns::{Netns, STARTS, run, veth, wait_for};
use crate::peer::Frr;
use crate::process::Process;

/// The service's addresses, announced by both nodes.
pub const SERVICE: [&str; 2] = ["203.0.113.10", "2001:db8:f::10"];
/// The service's port.
pub const SERVICE_PORT: u16 = 80;
/// The client's addresses.
pub const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:c::2"];
/// The address of `outside`, which knows no way to a pod's own address.
pub const OUTSIDE: &str = "198.18.0.2";

/// Addresses of a node and its pods, by the node's number (1, 2).
#[derive(Clone, Copy, Debug)]
pub struct Plan(pub u8);

impl Plan {
    /// The node's name.
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    /// Its AS number.
    pub fn asn(self) -> u32 {
        65000 + u32::from(self.0)
    }

    /// Its addresses on the link to the router.
    pub fn addresses(self) -> [String; 2] {
        [
            format!("10.0.{}.2", self.0),
            format!("fd00:0:{}::2", self.0),
        ]
    }

    /// The router's addresses on that link.
    pub fn router(self) -> [String; 2] {
        [
            format!("10.0.{}.1", self.0),
            format!("fd00:0:{}::1", self.0),
        ]
    }

    /// The prefixes of its pods.
    pub fn pod_cidrs(self) -> [String; 2] {
        [
            format!("10.1.{}.0/24", self.0),
            format!("fd00:1:{}::/64", self.0),
        ]
    }

    /// The addresses of its client pod.
    pub fn pod(self) -> [String; 2] {
        [
            format!("10.1.{}.10", self.0),
            format!("fd00:1:{}::10", self.0),
        ]
    }

    /// The addresses of its backend.
    pub fn web(self) -> [String; 2] {
        [
            format!("10.1.{}.80", self.0),
            format!("fd00:1:{}::80", self.0),
        ]
    }

    /// The address under which its pods leave.
    pub fn egress(self) -> String {
        format!("198.51.100.{}", self.0)
    }
}

/// A node with its agent and pods.
#[derive(Debug)]
pub struct Node {
    /// Its addresses.
    pub plan: Plan,
    /// Its network namespace.
    pub netns: Netns,
    /// A pod that only talks.
    pub pod: Netns,
    /// A pod that serves the service.
    pub web: Netns,
    /// The web server.
    pub server: Option<Process>,
    /// The agent, while it runs.
    pub agent: Option<Process>,
    dir: PathBuf,
}

/// The whole.
#[derive(Debug)]
pub struct Lab {
    /// The router.
    pub router: Netns,
    /// Its routing daemons.
    pub frr: Frr,
    /// The client of the service.
    pub client: Netns,
    /// A host that sees who talks to it.
    pub outside: Netns,
    /// The web server of `outside`.
    pub outside_server: Process,
    /// The nodes.
    pub nodes: [Node; 2],
    prefix: String,
    dir: PathBuf,
    keep: bool,
}

impl Lab {
    /// Brings everything up but the agents, which [`Node::start_agent`] starts.
    ///
    /// `prefix` sets its namespaces and its folder apart from other labs.
    pub fn up(prefix: &str) -> Result<Self> {
        down(prefix)?;
        let dir = folder(prefix);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let router = Netns::create(&format!("{prefix}-router"))?;
        router.forward()?;
        let client = host(
            prefix,
            "client",
            &router,
            CLIENT,
            ["192.0.2.1", "2001:db8:c::1"],
        )?;
        let outside = host(
            prefix,
            "outside",
            &router,
            [OUTSIDE, "2001:db8:e::2"],
            ["198.18.0.1", "2001:db8:e::1"],
        )?;
        let nodes = [
            Node::create(prefix, &dir, Plan(1), &router)?,
            Node::create(prefix, &dir, Plan(2), &router)?,
        ];
        let frr = Frr::start_with_bfd(&router, &dir.join("router"), &documents::frr())?;
        let outside_server = traffic::serve(&outside, "outside", 80, &dir.join("outside.log"))?;
        Ok(Self {
            router,
            frr,
            client,
            outside,
            outside_server,
            nodes,
            prefix: prefix.to_owned(),
            dir,
            keep: false,
        })
    }

    /// Brings everything up, starts the agents and waits until all know each other.
    ///
    /// `prefix` as in [`Self::up`].
    pub fn settled(prefix: &str) -> Result<Self> {
        let mut lab = Self::up(prefix)?;
        lab.start_agents()?;
        lab.wait_until_settled()?;
        Ok(lab)
    }

    /// Starts both agents and waits until the router has the service by both nodes, in both families.
    pub fn start_agents(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start_agent()?;
        }
        self.wait_for_next_hops(&[1, 2], STARTS).with_context(|| {
            let agents = self.nodes.iter().filter_map(|node| node.agent.as_ref());
            let printed: String = agents.map(Process::printed).collect();
            format!("the agents printed\n{printed}")
        })
    }

    /// Waits until the router uses exactly these nodes for the service, in both families.
    pub fn wait_for_next_hops(&self, nodes: &[u8], seconds: u64) -> Result<()> {
        for (family, (service, length)) in SERVICE.into_iter().zip([32, 128]).enumerate() {
            let wanted: Vec<_> = nodes
                .iter()
                .map(|&n| Plan(n).addresses()[family].clone())
                .collect();
            let prefix = format!("{service}/{length}");
            wait_for(
                &format!("the router to reach {prefix} by {wanted:?}"),
                seconds,
                || {
                    let found = self.frr.next_hops(&prefix)?;
                    ensure!(found == wanted, "it has {found:?}");
                    Ok(Some(()))
                },
            )?;
        }
        Ok(())
    }

    /// Waits until both nodes have learnt the way to each other's pods, to the client and to outside,
    /// and balance to both backends in both families.
    pub fn wait_until_settled(&self) -> Result<()> {
        wait_for("both nodes to settle", STARTS, || {
            for node in &self.nodes {
                node.has_settled().with_context(|| node.plan.name())?;
            }
            Ok(Some(()))
        })
    }

    /// Cleans a node up and tells what was said, and how long the router still used it. The router is
    /// watched meanwhile: cleanup removes more than announcements.
    pub fn clean_up(&self, node: &Node, left: &[u8]) -> Result<(String, Duration)> {
        std::thread::scope(|scope| {
            let start = now();
            let cleanup = scope.spawn(|| node.cleanup());
            self.wait_for_next_hops(left, 5)?;
            let took = now() - start;
            let said = cleanup
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((said, took))
        })
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves everything running; [`down`] takes it away.
    pub fn keep(&mut self) -> Result<()> {
        self.keep = true;
        self.frr.keep();
        self.outside_server.keep();
        let mut ids = self.frr.ids();
        ids.push(self.outside_server.id());
        for netns in [&mut self.router, &mut self.client, &mut self.outside] {
            netns.keep();
        }
        for node in &mut self.nodes {
            for netns in [&mut node.netns, &mut node.pod, &mut node.web] {
                netns.keep();
            }
            for process in node.server.iter_mut().chain(&mut node.agent) {
                process.keep();
                ids.push(process.id());
            }
        }
        let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
        std::fs::write(self.dir.join("processes"), ids.join("\n")).context("noting the processes")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Agents and servers first: they hold what is removed below.
        for node in &mut self.nodes {
            node.agent = None;
            node.server = None;
        }
        // What cannot be removed is replaced by the next lab of this name.
        let _ = down(&self.prefix);
    }
}

impl Node {
    fn create(prefix: &str, dir: &Path, plan: Plan, router: &Netns) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}-{}", plan.name()))?;
        let link = plan.name();
        veth((router, &link), (&netns, "eth0"))?;
        for ((ours, routers), length) in plan.addresses().iter().zip(plan.router()).zip([24, 64]) {
            router.ip(&format!("addr add {routers}/{length} dev {link}"))?;
            netns.ip(&format!("addr add {ours}/{length} dev eth0"))?;
        }
        let dir = dir.join(plan.name());
        std::fs::create_dir_all(dir.join("manifests"))?;
        for mount in ["bpf", "web-bpf"] {
            let point = dir.join(mount);
            std::fs::create_dir_all(&point)?;
            run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&point))?;
        }
        let node = Self {
            plan,
            netns,
            pod: Netns::create(&format!("{prefix}-pod{}", plan.0))?,
            web: Netns::create(&format!("{prefix}-web{}", plan.0))?,
            server: None,
            agent: None,
            dir,
        };
        std::fs::write(node.config(), documents::config(plan, &node.dir))?;
        node.write_manifests(&[1, 2])?;
        Ok(node)
    }

    /// Writes the cluster's documents with these nodes' backends ready.
    pub fn write_manifests(&self, ready: &[u8]) -> Result<()> {
        for (name, text) in documents::manifests(ready) {
            self.put(name, &text)?;
        }
        Ok(())
    }

    /// Puts a file into the folder that the agent watches.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        // Renamed into place, as every tool that a watcher can trust does.
        let draft = self.manifests().join(format!(".{name}"));
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, self.manifests().join(name))?;
        Ok(())
    }

    /// Starts the agent, attaches the pods, and the backend's own parts.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// Starts the agent with more words than its configuration, and waits until it answers.
    pub fn start_agent_with(&mut self, words: &[&str]) -> Result<()> {
        let mut command = self.netns.command(binary("fairlead")?);
        command.arg("run").arg("--config").arg(self.config());
        command.args(words);
        // Appended, so that a second start does not hide why the first one ended.
        self.agent = Some(Process::start(&mut command, &self.log())?);
        let socket = self.socket();
        let what = format!(
            "the agent of {} (see {})",
            self.plan.name(),
            self.log().display()
        );
        let agent = self.agent.as_mut().context("just started")?;
        wait_for(&what, STARTS, || {
            if let Some(status) = agent.ended()? {
                return Ok(Some(Err(anyhow!(
                    "it ended with {status}: {}",
                    agent.printed()
                ))));
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket)
                .ok()
                .map(Ok))
        })?
        .with_context(|| what.clone())?;
        self.attach_pods()
    }

    fn attach_pods(&mut self) -> Result<()> {
        for (name, netns, addresses) in [
            ("pod", &self.pod, self.plan.pod()),
            ("web", &self.web, self.plan.web()),
        ] {
            let [v4, v6] = addresses;
            let name = format!("{name}{}", self.plan.0);
            self.fairlead(&[
                "pod",
                "add",
                &name,
                "--netns",
                netns.name(),
                "--ip",
                &v4,
                "--ip",
                &v6,
            ])?;
        }
        if self.server.is_none() {
            for (address, length) in SERVICE.iter().zip([32, 128]) {
                self.web
                    .ip(&format!("addr add {address}/{length} dev lo"))?;
            }
            let mut decap = self.web.command(binary("fairlead")?);
            decap.args(["decap", "attach", "eth0"]);
            for address in SERVICE {
                decap.args(["--address", address]);
            }
            decap.arg("--pin-path");
            run(decap.arg(self.dir.join("web-bpf/fairlead")))?;
            let log = self.dir.join("web.log");
            let name = format!("web{}", self.plan.0);
            self.server = Some(traffic::serve(&self.web, &name, SERVICE_PORT, &log)?);
        }
        Ok(())
    }

    /// Runs `fairlead` in the node's namespace on its pins.
    pub fn fairlead(&self, words: &[&str]) -> Result<String> {
        let mut command = self.netns.command(binary("fairlead")?);
        command.env("FAIRLEAD_PIN_PATH", self.pins());
        command.env("FAIRLEAD_SOCKET", self.socket());
        run(command.args(words))
    }

    /// Removes everything that the agent left, and stops it when it runs.
    pub fn cleanup(&self) -> Result<String> {
        let config = self.config();
        self.fairlead(&["cleanup", "--config", &config.display().to_string()])
    }

    fn has_settled(&self) -> Result<()> {
        let routes = self.ask(&["routes"])?;
        let other = Plan(3 - self.plan.0).pod_cidrs();
        let others = other.iter().map(String::as_str);
        for prefix in others.chain(["192.0.2.0/24", "2001:db8:c::/64", "198.18.0.0/24"]) {
            let mut found = routes.as_array().into_iter().flatten();
            let installed = found.any(|r| r["prefix"] == prefix && r["installed"] == true);
            ensure!(installed, "no route to {prefix}");
        }
        let services = self.ask(&["services"])?;
        for backend in services
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|service| service["backends"].as_array().into_iter().flatten())
        {
            ensure!(
                backend["slots"].as_u64() > Some(0),
                "{backend} is on no ring"
            );
        }
        Ok(())
    }

    /// Asks the agent with `dpctl` and returns what it printed; its exit code does not matter.
    pub fn dpctl(&self, words: &[&str]) -> Result<String> {
        let output = self.dpctl_command(words)?.output()?;
        ensure!(
            output.status.code() != Some(2),
            "dpctl {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Asks the agent with `dpctl -o json`.
    pub fn ask(&self, words: &[&str]) -> Result<serde_json::Value> {
        let text = self.dpctl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("dpctl {words:?}: {text}"))
    }

    fn dpctl_command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("dpctl")?);
        command
            .args(words)
            .env("FAIRLEAD_PIN_PATH", self.pins())
            .env("FAIRLEAD_SOCKET", self.socket());
        Ok(command)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// Where its datapath is pinned.
    pub fn pins(&self) -> PathBuf {
        self.dir.join("bpf/fairlead")
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    /// The folder that its agent watches.
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// What its agent prints.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }
}

/// Takes away what a lab of this prefix left, killed or kept. Nothing there is fine.
pub fn down(prefix: &str) -> Result<()> {
    let dir = folder(prefix);
    if let Ok(ids) = std::fs::read_to_string(dir.join("processes")) {
        for id in ids.lines().filter_map(|line| line.parse().ok()) {
            end(&dir, id);
        }
    }
    for host in [
        "router", "client", "outside", "node1", "node2", "pod1", "pod2", "web1", "web2",
    ] {
        let netns = Netns::existing(&format!("{prefix}-{host}"));
        if netns.path().exists() {
            run(Command::new("ip").args(["netns", "del", netns.name()]))?;
        }
    }
    for mount in ["node1/bpf", "node1/web-bpf", "node2/bpf", "node2/web-bpf"] {
        let point = dir.join(mount);
        if point.exists() {
            // Not mounted is as good; still busy shows when the folder is removed.
            let _ = Command::new("umount").arg(&point).output();
        }
    }
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Ends a process of a kept lab, if the id is still that process's: its command line names the lab's
/// folder or one of its namespaces' servers.
fn end(dir: &Path, id: i32) {
    let Ok(line) = std::fs::read(format!("/proc/{id}/cmdline")) else {
        return;
    };
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    if line.contains(&dir.display().to_string()) || line.contains(traffic::SERVE) {
        // Gone meanwhile is as good.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(id),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an edge: it times real processes"
)]
fn now() -> Instant {
    Instant::now()
}

fn folder(prefix: &str) -> PathBuf {
    Path::new("/run/fairlead-lab").join(prefix)
}

fn host(
    prefix: &str,
    name: &str,
    router: &Netns,
    addresses: [&str; 2],
    gateways: [&str; 2],
) -> Result<Netns> {
    let netns = Netns::create(&format!("{prefix}-{name}"))?;
    veth((router, name), (&netns, "eth0"))?;
    for ((address, gateway), length) in addresses.into_iter().zip(gateways).zip([24, 64]) {
        router.ip(&format!("addr add {gateway}/{length} dev {name}"))?;
        netns.ip(&format!("addr add {address}/{length} dev eth0"))?;
        netns.ip(&format!("route add default via {gateway}"))?;
    }
    Ok(netns)
}

/// A program of this workspace, built beside the running one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's own path")?;
    // target/debug/demo, or target/debug/deps/test-…
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built; run `cargo xtask build`"))
}
