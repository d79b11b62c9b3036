//! The node's own row and the rows of its devices.
//!
//! Not here: bindings of translations, which only the datapath writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use fairlead_common::addr::{Addr, Cidr4, Proto};
use fairlead_common::route::{
    DEVICE_MASK, Device, NATIVE_CIDRS, Node, POD_CIDRS, device_flags, node_flags,
};
use fairlead_common::snat::{BUCKETS, CELLS, cells};
use ipnetwork::IpNetwork;

use crate::desired::{Condition, Desired, Frontend, Scope};

/// What the host says that rows depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// MAC addresses of the devices that packets arrive on, by interface index.
    pub devices: BTreeMap<u32, [u8; 6]>,
    /// The largest IP packet that each of them takes, in bytes.
    pub mtus: BTreeMap<u32, u32>,
    /// Those of them that are veth.
    pub veths: BTreeSet<u32>,
    /// Port ranges that the host's own connections use (`ip_local_port_range`, reserved ports).
    pub busy_ports: Vec<RangeInclusive<u16>>,
    /// The cookie of the network namespace that the agent is in.
    pub namespace: u64,
    /// Random; used when the node has no row yet. The row's own is kept, so that flows keep their ports.
    pub port_secret: u64,
}

/// The node's row.
pub fn node_row(
    desired: &Desired,
    host: &Host,
    actual: Option<&Node>,
    conditions: &mut Vec<Condition>,
) -> Node {
    let node = &desired.node;
    let mut say = |reason: &str, message: String| {
        conditions.push(Condition {
            object: format!("Node {}", node.name),
            origin: String::new(),
            reason: reason.to_owned(),
            message,
        });
    };
    let mut row = Node {
        tunnel_v4: node.ipv4.map_or(Addr::NONE, Addr::from),
        tunnel_v6: node.ipv6.map_or(Addr::NONE, Addr::from),
        egress: Addr::NONE,
        native: [Cidr4::NONE; NATIVE_CIDRS],
        pods: [Cidr4::NONE; POD_CIDRS],
        buckets: [0; CELLS],
        own_buckets: buckets(true, &host.busy_ports).0,
        port_secret: actual.map_or(host.port_secret, |row| row.port_secret),
        flags: if node.refuses { node_flags::REFUSES } else { 0 },
        node_ports: node_ports(desired),
        namespace: host.namespace,
    };
    let pods = node.pod_cidrs.iter().filter_map(|prefix| match prefix {
        IpNetwork::V4(v4) => Some(Cidr4::new(v4.network(), v4.prefix())),
        IpNetwork::V6(_) => None,
    });
    if fill(&mut row.pods, pods) {
        say(
            "TooManyPodCIDRs",
            format!("more than {POD_CIDRS} IPv4 pod CIDRs; pods of the others are not translated"),
        );
    }
    if let Some(egress) = &desired.egress {
        row.egress = Addr::from(egress.address);
        if egress.is_node_address {
            row.flags |= node_flags::EGRESS_IS_LOCAL;
        }
        let native = egress.native.iter();
        if fill(
            &mut row.native,
            native.map(|p| Cidr4::new(p.network(), p.prefix())),
        ) {
            say(
                "TooManyNativeCIDRs",
                format!(
                    "more than {NATIVE_CIDRS} prefixes; destinations in the others are translated"
                ),
            );
        }
        let (buckets, are_shared) = buckets(egress.is_node_address, &host.busy_ports);
        row.buckets = buckets;
        if are_shared {
            say(
                "EgressPortsShared",
                format!(
                    "the host's own connections may use every port of {}, so a translated flow and one of theirs can collide; narrow net.ipv4.ip_local_port_range or set masquerade.egressAddress",
                    egress.address
                ),
            );
        }
    }
    row
}

/// The least and the greatest of the ports at which all nodes serve: the services at the unspecified addresses.
fn node_ports(desired: &Desired) -> [u16; 2] {
    let of = |any: IpAddr| {
        let place = |port, proto, scope| Frontend {
            addr: any,
            port,
            proto,
            scope,
        };
        let first = place(0, Proto(0), Scope::Outside);
        let last = place(u16::MAX, Proto(u8::MAX), Scope::Inside);
        let mut ports = desired.services.range(first..=last).map(|(at, _)| at.port);
        let least = ports.next()?;
        Some([least, ports.next_back().unwrap_or(least)])
    };
    let v4 = of(Ipv4Addr::UNSPECIFIED.into());
    let v6 = of(Ipv6Addr::UNSPECIFIED.into());
    v4.into_iter()
        .chain(v6)
        .reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])])
        .unwrap_or_default()
}

/// The buckets that flows get their ports from, and whether they are shared with the host.
fn buckets(is_node_address: bool, busy: &[RangeInclusive<u16>]) -> ([u8; CELLS], bool) {
    let is_busy = |bucket: u8| {
        let first = u16::from(bucket) << 10;
        let last = first | 0x3ff;
        is_node_address
            && busy
                .iter()
                .any(|range| *range.start() <= last && first <= *range.end())
    };
    if let Some(cells) = cells((1..BUCKETS).filter(|bucket| !is_busy(*bucket))) {
        return (cells, false);
    }
    // Translating with shared ports breaks a flow now and then; not translating breaks them all.
    (cells(1..BUCKETS).unwrap_or([1; CELLS]), true)
}

/// Fills a row's list; true when there were more than it holds.
fn fill<T, const N: usize>(list: &mut [T; N], mut from: impl Iterator<Item = T>) -> bool {
    for place in list {
        match from.next() {
            Some(value) => *place = value,
            None => return false,
        }
    }
    from.next().is_some()
}

/// The rows of `DEVICES`. Of two devices whose rows coincide the one of lower index has it.
pub fn device_rows(host: &Host, conditions: &mut Vec<Condition>) -> BTreeMap<u32, Device> {
    let mut rows = BTreeMap::<u32, Device>::new();
    for (&ifindex, &mac) in &host.devices {
        let row = ifindex & DEVICE_MASK;
        if let Some(first) = rows.get(&row) {
            conditions.push(Condition {
                object: format!("device {ifindex}"),
                origin: String::new(),
                reason: "DeviceRowTaken".to_owned(),
                message: format!(
                    "interface indexes {} and {ifindex} share a row, so packets of {ifindex} go to the stack; create the device anew to give it another index",
                    first.ifindex
                ),
            });
            continue;
        }
        rows.insert(
            row,
            Device {
                ifindex,
                mac,
                flags: if host.veths.contains(&ifindex) {
                    device_flags::NO_TURN
                } else {
                    0
                },
                pad: 0,
                mtu: host.mtus.get(&ifindex).copied().unwrap_or_default(),
            },
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use fairlead_common::addr::Port;
    use fairlead_common::snat::bucket;

    use super::*;
    use crate::desired::{Egress, NodeState};

    fn desired(is_node_address: bool) -> Desired {
        Desired {
            node: NodeState {
                name: "node1".to_owned(),
                ipv4: Some(Ipv4Addr::new(10, 0, 1, 2)),
                ipv6: Some("fd00::2".parse().unwrap()),
                pod_cidrs: BTreeSet::from([
                    "10.1.1.0/24".parse().unwrap(),
                    "fd01::/64".parse().unwrap(),
                ]),
                ..NodeState::default()
            },
            egress: Some(Egress {
                address: Ipv4Addr::new(192, 0, 2, 9),
                is_node_address,
                native: BTreeSet::from(["10.0.0.0/8".parse().unwrap()]),
            }),
            ..Desired::default()
        }
    }

    fn host() -> Host {
        Host {
            namespace: 7,
            veths: BTreeSet::new(),
            mtus: BTreeMap::from([(2, 1500), (7, 9000)]),
            devices: BTreeMap::from([(2, [2; 6]), (7, [7; 6])]),
            busy_ports: vec![32768..=60999],
            port_secret: 42,
        }
    }

    fn row(desired: &Desired, host: &Host) -> (Node, Vec<Condition>) {
        let mut conditions = Vec::new();
        (node_row(desired, host, None, &mut conditions), conditions)
    }

    #[test]
    fn the_row_says_what_the_node_is() {
        let (row, conditions) = row(&desired(false), &host());

        assert_eq!(conditions, []);
        assert_eq!(row.tunnel_v4.to_string(), "10.0.1.2");
        assert_eq!(row.tunnel_v6.to_string(), "fd00::2");
        assert_eq!(row.egress.to_string(), "192.0.2.9");
        assert_eq!(row.native[0].to_string(), "10.0.0.0/8");
        assert_eq!(row.native[1], Cidr4::NONE);
        assert_eq!(row.pods[0].to_string(), "10.1.1.0/24");
        assert_eq!(row.pods[1], Cidr4::NONE);
        assert_eq!(row.port_secret, 42);
    }

    #[test]
    fn an_address_of_our_own_uses_every_bucket_but_the_first() {
        let (row, _) = row(&desired(false), &host());

        assert_eq!(row.buckets.iter().collect::<BTreeSet<_>>().len(), 63);
        assert!(!row.buckets.contains(&0));
    }

    #[test]
    fn the_nodes_address_leaves_the_hosts_ports_alone() {
        let (row, conditions) = row(&desired(true), &host());

        assert_eq!(conditions, []);
        for busy in [32768, 50000, 60999] {
            assert!(!row.buckets.contains(&bucket(Port::new(busy))));
        }
        assert!(row.buckets.contains(&31) && row.buckets.contains(&60));
        assert_eq!(row.flags, node_flags::EGRESS_IS_LOCAL);
    }

    #[test]
    fn a_host_that_uses_every_port_shares_them_and_says_so() {
        let host = Host {
            busy_ports: vec![1024..=65535],
            ..host()
        };

        let (row, conditions) = row(&desired(true), &host);

        assert!(!row.buckets.contains(&0));
        assert_eq!(conditions[0].reason, "EgressPortsShared");
        assert!(
            conditions[0]
                .message
                .contains("narrow net.ipv4.ip_local_port_range")
        );
    }

    #[test]
    fn flows_keep_their_ports_through_a_restart() {
        let before = row(&desired(false), &host()).0;
        let restarted = Host {
            port_secret: 43,
            ..host()
        };

        let after = node_row(&desired(false), &restarted, Some(&before), &mut Vec::new());

        assert_eq!(after, before);
    }

    #[test]
    fn without_egress_nothing_is_translated() {
        let without = Desired {
            egress: None,
            ..desired(false)
        };

        let (row, _) = row(&without, &host());

        assert!(row.egress.is_none());
        assert_eq!(row.native, [Cidr4::NONE; NATIVE_CIDRS]);
    }

    #[test]
    fn more_prefixes_than_a_row_holds_are_a_condition() {
        let mut desired = desired(false);
        desired.node.pod_cidrs = (0..5_u8)
            .map(|n| format!("10.1.{n}.0/24").parse().unwrap())
            .collect();
        desired.egress.as_mut().unwrap().native = (0..9_u8)
            .map(|n| format!("10.{n}.0.0/16").parse().unwrap())
            .collect();

        let (_, conditions) = row(&desired, &host());

        let messages: Vec<_> = conditions.iter().map(|c| c.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "more than 4 IPv4 pod CIDRs; pods of the others are not translated",
                "more than 8 prefixes; destinations in the others are translated",
            ]
        );
    }

    #[test]
    fn devices_have_rows_by_index_and_a_collision_is_said() {
        let mut host = host();
        host.devices.insert(2 + 4096, [9; 6]);
        host.devices.insert(9, [3; 6]);
        let mut conditions = Vec::new();

        let rows = device_rows(&host, &mut conditions);

        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [2, 7, 9]);
        assert_eq!(rows[&2].mac, [2; 6]);
        assert_eq!([2, 7, 9].map(|row| rows[&row].mtu), [1500, 9000, 0]);
        assert_eq!(conditions[0].reason, "DeviceRowTaken");
        assert!(
            conditions[0]
                .message
                .starts_with("interface indexes 2 and 4098 share a row")
        );
    }

    #[test]
    fn the_ports_at_which_all_nodes_serve_are_within_two() {
        let at = |addr: &str, port| {
            let frontend = Frontend {
                addr: addr.parse().unwrap(),
                port,
                proto: Proto::TCP,
                scope: Scope::Inside,
            };
            (frontend, std::sync::Arc::default())
        };
        let mut desired = desired(true);
        assert_eq!(node_ports(&desired), [0, 0]);
        desired.services = [at("10.96.0.1", 80), at("0.0.0.0", 30080), at("::1", 443)]
            .into_iter()
            .collect();
        assert_eq!(node_ports(&desired), [30080, 30080]);
        desired
            .services
            .extend([at("0.0.0.0", 31000), at("::", 29999), at("::", 30500)]);
        assert_eq!(node_ports(&desired), [29999, 31000]);
    }
}
