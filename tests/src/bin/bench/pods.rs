//! Live frames to a pod of the node and back: what translation costs, beside netfilter doing the same.
//!
//! ```text
//!   generate ─> up0-far ═ up0 ─[ the node, or the kernel ]─ pod0 ═ pod0-far ─> reflect
//!       sink <─ up0-far ═ up0 ─[        and back          ]─ pod0 ═ pod0-far <────┘
//! ```
//! A frame is a request and its answer: two packets of the node. The floor, which all are compared above, is the
//! same generator and sink with `reflect` at the far end of one link: what a frame costs without a node between.
//! The kernel's own forwarding, there and back and without translation, stands beside.
//!
//! As with pods, `reflect` takes and sends socket buffers, and of its link the pod's end has GRO, which the agent
//! switches on, the node's end has none.

use anyhow::{Context, Result};
use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Slot, forward};
use fairlead_common::snat::{Binding, State};
use fairlead_tests::kernel::{Node, POD, POD0, UP0, UP1, addr_of, bare_place, flow};
use fairlead_tests::report::{Goal, Report};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};

use crate::live::{self, Frames, Stage, UP0_FAR, here, receives_in_batches, run};

/// The service, and the pod behind it.
pub const SERVICE: &str = "192.0.2.82";
/// The pod's address.
pub const POD_ADDR: &str = "10.244.1.5";
/// Where the pod listens.
pub const POD_PORT: u16 = 8080;
/// Flows of every case.
pub const FLOWS: u64 = live::FLOWS;

const FLOOR: &str = "there and back: generator, peer and sink";
const FORWARDING: &str = "there and back: kernel forwarding";
const NFTABLES: &str = "there and back: nftables DNAT, conntrack";
const OURS: &str = "there and back: fairlead, translated";

/// A service with one backend, which is a pod of this node; its flows are known.
///
/// # Errors
/// There is no clock.
pub fn furnish(node: &mut Node) -> Result<()> {
    let backend = node.backend(POD_ADDR, forward::HERE);
    node.next_hop(backend, POD0, Some(POD), 1500);
    node.listens(backend, POD_PORT);
    let slot = Slot {
        current: backend,
        previous: 0,
    };
    node.service(SERVICE, 80, Proto::TCP, &[slot]);
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("reading the clock")?;
    let binding = Binding {
        inside: addr_of(SERVICE),
        inside_port: Port::new(80),
        state: State::Established as u8,
        whose: 0,
        last_seen_s: u32::try_from(now.tv_sec()).context("a clock of our age")?,
    };
    for number in 0..FLOWS {
        let client = std::net::Ipv4Addr::from(0x0a00_0000 | number as u32).to_string();
        let answers = flow((POD_ADDR, POD_PORT), (&client, 1024), Proto::TCP);
        node.keep_flow(&answers, &binding);
    }
    Ok(())
}

/// Measures all contenders and adds what was found to the report.
///
/// # Errors
/// A contender cannot be set up, or loses frames.
pub fn measure(node: &mut Node, frames: &mut Frames<'_>, report: &mut Report) -> Result<()> {
    let home = here()?;
    node.attach_tc("tc_ingress", POD0);
    frames.attach_peer("pod0-far")?;
    let service = SERVICE.parse().context("the service")?;
    let pod = POD_ADDR.parse().context("the pod")?;
    let mut stages = vec![Stage::new(OURS, UP0_FAR, SERVICE)?.answered_by(service)];

    bare_place();
    frames.attach_peer("up1-far")?;
    frames.attach_sink(UP1.name)?;
    stages.push(Stage::new(FLOOR, UP1.ifindex, SERVICE)?.answered_by(service));

    for (name, destination, from, rules) in [
        (FORWARDING, POD_ADDR, pod, None),
        (NFTABLES, SERVICE, service, Some(nftables())),
    ] {
        bare_place();
        receives_in_batches(UP0.name)?;
        if let Some(rules) = rules {
            run("nft", &["-f", "-"], Some(&rules))?;
        }
        frames.attach_sink("up0-far")?;
        frames.attach_peer("pod0-far")?;
        stages.push(Stage::new(name, UP0_FAR, destination)?.answered_by(from));
    }
    live::take_turns(frames, &mut stages)?;
    setns(home, CloneFlags::CLONE_NEWNET).context("going back to the node's namespace")?;

    report.figures.extend(stages.iter().map(Stage::figures));
    let net = |name: &str| report.median(name) - report.median(FLOOR);
    let ratio = net(NFTABLES) / net(OURS);
    report.ratio(
        "there and back: nftables DNAT, conntrack / fairlead, above the floor",
        ratio,
        Goal::AtLeast(3.0),
    );
    Ok(())
}

fn nftables() -> String {
    format!(
        "table ip nat {{\nchain prerouting {{\ntype nat hook prerouting priority -100;
         ip daddr {SERVICE} tcp dport 80 dnat to {POD_ADDR}:{POD_PORT}\n}}\n}}\n"
    )
}
