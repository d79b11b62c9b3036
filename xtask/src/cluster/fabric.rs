//! The network around the nodes: namespaces, links, and FRR as the router and as one top-of-rack router per rack.
//!
//! The routers learn what nodes announce by BGP (iBGP within a rack, any node may connect). Without Fairlead
//! (`--kube-proxy iptables`) nobody announces, and the way to each node's pods is a static route in its rack.
//!
//! Not for what the nodes do with packets.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    daemon,
    place::{API_ADDRESS, Cluster, IpFamily, Node, Rack},
};
use crate::workspace;

const CLIENT: [[&str; 2]; 2] = [
    ["192.0.2.2", "2001:db8:c::2"],
    ["192.0.2.1", "2001:db8:c::1"],
];
const API: [[&str; 2]; 2] = [[API_ADDRESS, "fd00:31::2"], ["172.31.0.1", "fd00:31::1"]];
/// Lengths of the prefixes of all links.
const LENGTHS: [u8; 2] = [24, 64];

/// All namespaces that a cluster may have.
pub fn hosts() -> Vec<String> {
    let fixed = ["router", "api", "client"].map(str::to_owned);
    let nodes = (1..=9).map(|n| Node(n).name());
    let racks = Rack::BOTH.map(Rack::router);
    fixed.into_iter().chain(racks).chain(nodes).collect()
}

/// Makes all of it.
pub fn make(cluster: &Cluster) -> Result<()> {
    let fabric = Fabric(cluster);
    for host in hosts() {
        let number = host.strip_prefix("node").and_then(|n| n.parse().ok());
        if number.is_none_or(|n: u8| n <= cluster.node_count) {
            fabric.host(&host)?;
        }
    }
    for (host, addresses) in [("client", CLIENT), ("api", API)] {
        fabric.join((host, "eth0"), ("router", host))?;
        fabric.address(host, "eth0", addresses[0])?;
        fabric.address("router", host, addresses[1])?;
        fabric.default_route(host, addresses[1])?;
    }
    for rack in Rack::BOTH {
        let router = rack.router();
        let [own, above] = rack.uplink();
        fabric.join((&router, "uplink"), ("router", &router))?;
        fabric.address(&router, "uplink", own.each_ref().map(String::as_str))?;
        fabric.address("router", &router, above.each_ref().map(String::as_str))?;
        fabric.ip(&router, "link add rack type bridge")?;
        fabric.ip(&router, "link set rack up")?;
        fabric.address(
            &router,
            "rack",
            rack.gateways().each_ref().map(String::as_str),
        )?;
    }
    for node in cluster.nodes() {
        let (name, router) = (node.name(), node.rack().router());
        fabric.join((&name, "eth0"), (&router, &name))?;
        fabric.ip(&router, &format!("link set {name} master rack"))?;
        let own = [node.ipv4().to_string(), node.ipv6().to_string()];
        fabric.address(&name, "eth0", own.each_ref().map(String::as_str))?;
        fabric.default_route(&name, node.rack().gateways().each_ref().map(String::as_str))?;
    }
    start_frr(cluster, "router", &router_config())?;
    for rack in Rack::BOTH {
        start_frr(cluster, &rack.router(), &rack_config(rack))?;
    }
    Ok(())
}

/// Tells a node's rack the way to its pods, for a cluster where no node does.
pub fn route_to_pods(cluster: &Cluster, node: Node, pod_cidr: &str) -> Result<()> {
    let via = if pod_cidr.contains(':') {
        node.ipv6().to_string()
    } else {
        node.ipv4().to_string()
    };
    Fabric(cluster).ip(
        &node.rack().router(),
        &format!("route replace {pod_cidr} via {via}"),
    )
}

struct Fabric<'a>(&'a Cluster);

impl Fabric<'_> {
    fn host(&self, host: &str) -> Result<()> {
        let netns = self.0.netns(host);
        workspace::run_quietly(
            Command::new("ip").args(["netns", "add", &netns]),
            "making a network namespace",
        )?;
        self.ip(host, "link set lo up")?;
        let mut settings = vec![
            // It would keep addresses unusable for a second.
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
        ];
        if !matches!(host, "client" | "api") {
            settings.extend([
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                // Flows, not destinations, spread over equal paths.
                ("ipv4/fib_multipath_hash_policy", "1"),
                ("ipv6/fib_multipath_hash_policy", "1"),
            ]);
        }
        for (key, value) in settings {
            let mut command = daemon::in_netns(&netns, "sysctl");
            command.args(["-q", "-w", &format!("net/{key}={value}")]);
            workspace::run_quietly(&mut command, "setting a kernel parameter")?;
        }
        Ok(())
    }

    fn ip(&self, host: &str, words: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.0.netns(host)])
            .args(words.split_whitespace());
        workspace::run_quietly(&mut ip, "making the network")
    }

    /// Joins two hosts. Checksums are made before the wire, as by a network card, and GRO makes each end take
    /// what XDP sends into it.
    fn join(&self, a: (&str, &str), b: (&str, &str)) -> Result<()> {
        let netns = |host: &str| self.0.netns(host);
        let words = format!(
            "link add name {} type veth peer name {} netns {}",
            a.1,
            b.1,
            netns(b.0)
        );
        self.ip(a.0, &words)?;
        for (host, link) in [a, b] {
            self.ip(host, &format!("link set {link} up"))?;
            let mut ethtool = daemon::in_netns(&netns(host), "ethtool");
            ethtool.args(["-K", link, "tx", "off", "gro", "on"]);
            workspace::run_quietly(&mut ethtool, "making a link like a network card's")?;
        }
        Ok(())
    }

    fn address(&self, host: &str, link: &str, addresses: [&str; 2]) -> Result<()> {
        for (address, length) in self.families(addresses).zip(LENGTHS) {
            self.ip(host, &format!("addr add {address}/{length} dev {link}"))?;
        }
        Ok(())
    }

    fn default_route(&self, host: &str, gateways: [&str; 2]) -> Result<()> {
        for gateway in self.families(gateways) {
            self.ip(host, &format!("route add default via {gateway}"))?;
        }
        Ok(())
    }

    fn families<'t>(&self, both: [&'t str; 2]) -> impl Iterator<Item = &'t str> {
        let count = match self.0.ip_family {
            IpFamily::Ipv4 => 1,
            IpFamily::Dual => 2,
        };
        both.into_iter().take(count)
    }
}

fn router_config() -> String {
    let neighbours = Rack::BOTH.map(|rack| (rack.uplink()[0][0].clone(), rack.asn().to_string()));
    bgp(
        "router",
        65000,
        "10.0.0.1",
        "",
        &neighbours.each_ref().map(|(a, b)| (a.as_str(), b.as_str())),
        "",
    )
}

/// A rack reflects its nodes' routes to each other: they share a link, so that next hops stay as they are.
fn rack_config(rack: Rack) -> String {
    let [_, above] = rack.uplink();
    let [v4, v6] = rack.gateways();
    let nodes = format!(
        " neighbor nodes peer-group\n neighbor nodes remote-as internal\n neighbor nodes timers 3 9\n \
         neighbor nodes timers connect 1\n bgp listen range {}0/24 peer-group nodes\n \
         bgp listen range {}/64 peer-group nodes\n",
        v4.trim_end_matches('1'),
        v6.trim_end_matches('1'),
    );
    let defaults = format!(
        "ip route 0.0.0.0/0 {}\nipv6 route ::/0 {}\n!\n",
        above[0], above[1]
    );
    defaults
        + &bgp(
            &rack.router(),
            rack.asn(),
            &v4,
            &nodes,
            &[(&above[0], "65000")],
            "  neighbor nodes activate\n  neighbor nodes route-reflector-client\n  neighbor nodes next-hop-self\n",
        )
}

fn bgp(
    host: &str,
    asn: u32,
    id: &str,
    before: &str,
    neighbours: &[(&str, &str)],
    in_family: &str,
) -> String {
    let mut text = format!(
        "frr defaults datacenter\nhostname {host}\nlog stdout\n!\nrouter bgp {asn}\n bgp router-id {id}\n \
         no bgp ebgp-requires-policy\n no bgp network import-check\n bgp bestpath as-path multipath-relax\n \
         bgp graceful-restart stalepath-time 60\n{before}"
    );
    for (address, asn) in neighbours {
        text += &format!(
            " neighbor {address} remote-as {asn}\n neighbor {address} timers connect 1\n \
             neighbor {address} advertisement-interval 0\n"
        );
    }
    for family in ["ipv4", "ipv6"] {
        text += &format!(
            " address-family {family} unicast\n  redistribute connected\n  redistribute kernel\n  \
             maximum-paths 16\n  maximum-paths ibgp 16\n{in_family}"
        );
        for (address, _) in neighbours {
            text += &format!("  neighbor {address} activate\n");
        }
        text += " exit-address-family\n";
    }
    text + "exit\n!\nend\n"
}

fn start_frr(cluster: &Cluster, host: &str, config: &str) -> Result<()> {
    let folder = cluster.folder().join(host);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let file = folder.join("frr.conf");
    fs::write(&file, config).with_context(|| file.display().to_string())?;
    // The daemons become this user before they make their sockets.
    workspace::run_quietly(
        Command::new("chown").args(["-R", "frr:frr"]).arg(&folder),
        "giving FRR its folder",
    )?;
    for program in ["zebra", "bgpd"] {
        let path = |name: &str| folder.join(name).display().to_string();
        let arguments = [
            "--config_file".to_owned(),
            path("frr.conf"),
            "--pid_file".to_owned(),
            path(&format!("{program}.pid")),
            "--vty_socket".to_owned(),
            folder.display().to_string(),
            "--vty_port".to_owned(),
            "0".to_owned(),
            "--socket".to_owned(),
            path("zserv.api"),
            "--log".to_owned(),
            "stdout".to_owned(),
        ];
        let program_path = Path::new("/usr/lib/frr").join(program);
        daemon::start_in(
            cluster,
            host,
            &format!("{program}-{host}"),
            &program_path,
            &arguments,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rack_takes_any_of_its_nodes_and_no_other() {
        let config = rack_config(Rack(1));
        assert!(config.contains("router bgp 65011\n"));
        assert!(config.contains(" bgp listen range 10.10.1.0/24 peer-group nodes\n"));
        assert!(config.contains(" bgp listen range fd00:10:10:1::/64 peer-group nodes\n"));
        assert!(config.contains(" neighbor 10.0.1.1 remote-as 65000\n"));
    }
}
