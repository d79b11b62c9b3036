//! The place that a node stands in: a namespace with links, addresses, neighbours and routes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::{LAN0, POD0, UP0, UP1};

const LINKS: &str = "
link add name up0 index 10 address 02:00:00:00:00:0a type veth peer name up0-far index 110
link add name up1 index 11 address 02:00:00:00:00:0b type veth peer name up1-far index 111
link add name pod0 index 20 address 02:00:00:00:00:14 type veth peer name pod0-far index 120
link add name lan0 index 30 address 02:00:00:00:00:1e type veth peer name lan0-far index 130
";

const ADDRESSES: &str = "
link set lo up
link set up0 up
link set up0-far up
link set up1 up
link set up1-far up
link set pod0 up
link set pod0-far up
link set lan0 up
link set lan0-far up
addr add 10.1.0.1/24 dev up0
addr add fd00:1::1/64 dev up0 nodad
addr add 10.2.0.1/24 dev up1
addr add fd00:2::1/64 dev up1 nodad
addr add 10.3.0.1/24 dev lan0
addr add fd00:3::1/64 dev lan0 nodad
neigh replace 10.1.0.254 lladdr 02:00:00:01:00:fe dev up0 nud permanent
neigh replace fd00:1::fe lladdr 02:00:00:01:00:fe dev up0 nud permanent
neigh replace 10.1.0.11 lladdr 02:00:00:01:00:11 dev up0 nud permanent
neigh replace fd00:1::11 lladdr 02:00:00:01:00:11 dev up0 nud permanent
neigh replace 10.2.0.12 lladdr 02:00:00:02:00:12 dev up1 nud permanent
neigh replace fd00:2::12 lladdr 02:00:00:02:00:12 dev up1 nud permanent
neigh replace 10.244.1.5 lladdr 02:00:00:03:00:05 dev pod0 nud permanent
neigh replace fd00:244:1::5 lladdr 02:00:00:03:00:05 dev pod0 nud permanent
neigh replace 10.3.0.9 lladdr 02:00:00:04:00:09 dev lan0 nud permanent
neigh replace fd00:3::9 lladdr 02:00:00:04:00:09 dev lan0 nud permanent
route add default via 10.1.0.254
route add default via fd00:1::fe
route add 10.244.1.5/32 dev pod0
route add fd00:244:1::5/128 dev pod0
route add 10.51.0.0/16 via 10.1.0.254 mtu lock 1300
route add fd00:51::/32 via fd00:1::fe mtu lock 1300
route add 10.60.0.0/16 via 10.2.0.12
route add fd00:60::/32 via fd00:2::12
route add blackhole 10.66.0.0/16
route add blackhole fd00:66::/32
";

/// Moves this thread into a new namespace and furnishes it.
pub(super) fn make() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // Nothing speaks on its own: no link-local addresses, no router solicitations.
    sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    ip(LINKS);
    for link in [UP0, UP1, POD0, LAN0] {
        sysctl(&format!("net/ipv6/conf/{}/accept_dad", link.name), "0");
        sysctl(&format!("net/ipv6/conf/{}/addr_gen_mode", link.name), "1");
        sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", link.name), "0");
    }
    sysctl("net/ipv6/conf/lo/disable_ipv6", "0");
    sysctl("net/ipv6/conf/all/forwarding", "1");
    for link in [UP0, UP1, POD0, LAN0] {
        sysctl(&format!("net/ipv6/conf/{}/forwarding", link.name), "1");
    }
    sysctl("net/ipv4/ip_forward", "1");
    ip(ADDRESSES);
}

pub(super) fn sysctl(path: &str, value: &str) {
    let path = PathBuf::from("/proc/sys").join(path);
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Runs `ip` once for many lines, in the namespace of this thread.
pub(super) fn ip(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip of iproute2");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(lines.as_bytes())
        .expect("a pipe");
    let output = child.wait_with_output().expect("an end");
    assert!(
        output.status.success(),
        "ip: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
