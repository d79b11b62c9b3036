//! Live frames through devices: what a balanced packet costs a node, beside netfilter doing the same.
//!
//! ```text
//!   generate ─> up0-far ═ up0 ─[ the node, or the kernel ]─ up1 ═ up1-far ─> sink
//! ```
//! A generator (`BPF_PROG_TEST_RUN` with live frames) puts frames on the far end of a veth, a program at the
//! other far end counts what arrives. Each contender stands in a namespace of its own, and they take turns. The
//! same generator straight into the sink is the floor that all of them are compared above. Everything runs on
//! one core, so a frame's time is that of all the work it causes.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{
    Program, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions,
    Xdp, XdpMode,
};
use fairlead_common::addr::Proto;
use fairlead_common::service::{Slot, forward};
use fairlead_tests::kernel::{BACKEND1, Node, ROUTER, UP0, UP1, bare_place};
use fairlead_tests::packet::{eth, tcp};
use fairlead_tests::report::{Figures, Goal, Report};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

use crate::{SERVICE_V4, STEP, words};

/// Backends of the service, behind a router on `up1`.
const BACKENDS: u32 = 10;
/// The far ends of `up0` and `up1`, by index.
pub const UP0_FAR: u32 = 110;
/// Frames of a case in a round, and rounds.
const FRAMES: u32 = 200_000;
const ROUNDS: usize = 25;
pub const FLOWS: u64 = 1 << 16;
/// The sink may miss one frame of so many: a veth's ring overflows when its reader is held up.
const LOST_OF: u64 = 100;

const FLOOR: &str = "live: generator and sink";
const FORWARDING: &str = "live: kernel forwarding";
const NUMGEN: &str = "live: nftables DNAT, numgen map";
const JHASH: &str = "live: nftables DNAT, jhash map";
const IPTABLES: &str = "live: iptables DNAT, statistic";
const OURS: &str = "live: fairlead, encapsulated";

/// A contender in its namespace.
pub struct Stage {
    name: &'static str,
    namespace: File,
    /// Where the generator's frames go: the far end of `up0`, or the near end of the sink's link.
    device: u32,
    destination: &'static str,
    /// The source address of the frames that arrive, where it is not the client's.
    answers_from: Option<Ipv4Addr>,
    rounds: Vec<f64>,
}

/// Measures all contenders and adds what was found to the report.
///
/// `node` stands in the namespace of this thread.
///
/// # Errors
/// A contender cannot be set up, or loses frames.
pub fn measure(node: &mut Node, frames: &mut Frames<'_>, report: &mut Report) -> Result<()> {
    let home = here()?;
    furnish(node);
    let mut stages = vec![Stage::new(OURS, UP0_FAR, SERVICE_V4)?];
    frames.attach_sinks()?;
    for (name, device, destination, rules) in [
        (FLOOR, UP1.ifindex, SERVICE_V4, None),
        (FORWARDING, UP0_FAR, "10.60.0.1", None),
        (
            NUMGEN,
            UP0_FAR,
            SERVICE_V4,
            Some(nftables("numgen inc mod")),
        ),
        (
            JHASH,
            UP0_FAR,
            SERVICE_V4,
            Some(nftables("jhash ip saddr . tcp sport mod")),
        ),
        (IPTABLES, UP0_FAR, SERVICE_V4, Some(iptables())),
    ] {
        bare_place();
        receives_in_batches(UP0.name)?;
        match rules {
            Some(Rules::Nftables(text)) => run("nft", &["-f", "-"], Some(&text))?,
            Some(Rules::Iptables(text)) => run("iptables-restore", &[], Some(&text))?,
            None => {}
        }
        frames.attach_sinks()?;
        stages.push(Stage::new(name, device, destination)?);
    }
    take_turns(frames, &mut stages)?;
    setns(home, CloneFlags::CLONE_NEWNET).context("going back to the node's namespace")?;
    report.figures.extend(stages.iter().map(Stage::figures));
    let floor = report.median(FLOOR);
    let net = |name: &str| report.median(name) - floor;
    let ratios: Vec<_> = [NUMGEN, JHASH, IPTABLES]
        .map(|name| {
            (
                format!("{name} / fairlead, above the floor"),
                net(name) / net(OURS),
            )
        })
        .into();
    for (name, value) in ratios {
        report.ratio(name, value, Goal::AtLeast(3.0));
    }
    Ok(())
}

/// Runs all stages in turns.
///
/// # Errors
/// One of them loses frames.
pub fn take_turns(frames: &mut Frames<'_>, stages: &mut [Stage]) -> Result<()> {
    // A thread that moved would send on one core what the other still polls: a race, and frames are lost by the ten
    // thousand.
    let mut core = CpuSet::new();
    core.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("staying on one core")?;
    for stage in &mut *stages {
        // Every flow twice: conntrack learns them all, and caches are as warm as they get. In another order than later:
        // no clients send in the order in which conntrack's entries lie in memory, which a CPU would read ahead.
        frames.run(stage, FLOWS as u32 * 2, 1)?;
    }
    for _ in 0..ROUNDS {
        for stage in &mut *stages {
            let ns = frames.run(stage, FRAMES, STEP)?;
            stage.rounds.push(ns);
        }
    }
    Ok(())
}

/// A service with backends behind a router.
fn furnish(node: &mut Node) {
    let ids: Vec<u32> = (1..=BACKENDS)
        .map(|n| {
            let id = node.backend(&format!("10.60.0.{n}"), forward::ENCAPSULATE);
            node.next_hop(id, UP1, Some(BACKEND1), 1500);
            id
        })
        .collect();
    let ring: Vec<Slot> = (0..4096)
        .map(|slot| Slot {
            current: ids[slot * 7 % ids.len()],
            previous: 0,
        })
        .collect();
    node.service(SERVICE_V4, 80, Proto::TCP, &ring);
}

enum Rules {
    Nftables(String),
    Iptables(String),
}

/// A service as `nft` balances it: by a counter, or by a hash.
fn nftables(chosen_by: &str) -> Rules {
    let map: Vec<String> = (0..BACKENDS)
        .map(|n| format!("{n} : 10.60.0.{}", n + 1))
        .collect();
    Rules::Nftables(format!(
        "table ip nat {{\nchain prerouting {{\ntype nat hook prerouting priority -100;
         ip daddr {SERVICE_V4} tcp dport 80 dnat to {chosen_by} {BACKENDS} map {{ {} }}\n}}\n}}\n",
        map.join(", ")
    ))
}

/// A service as kube-proxy's iptables mode balances it: a rule per backend, taken by chance.
fn iptables() -> Rules {
    let rules: Vec<String> = (0..BACKENDS)
        .map(|n| {
            let left = BACKENDS - n;
            let chance = if left == 1 {
                String::new()
            } else {
                format!(
                    "-m statistic --mode random --probability {:.8} ",
                    1.0 / f64::from(left)
                )
            };
            format!(
                "-A SERVICE -p tcp {chance}-j DNAT --to-destination 10.60.0.{}:80\n",
                n + 1
            )
        })
        .collect();
    Rules::Iptables(format!(
        "*nat\n:SERVICE - [0:0]\n-A PREROUTING -d {SERVICE_V4}/32 -p tcp --dport 80 -j SERVICE\n{}COMMIT\n",
        rules.concat()
    ))
}

impl Stage {
    /// In the namespace of this thread.
    pub fn new(name: &'static str, device: u32, destination: &'static str) -> Result<Self> {
        // A router solicitation sent by another core's timer would have that core poll the ring from then on.
        let quiet = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        std::fs::write(quiet, "1").with_context(|| quiet.to_owned())?;
        Ok(Self {
            name,
            namespace: here()?,
            device,
            destination,
            answers_from: None,
            rounds: Vec::new(),
        })
    }

    /// The same, where what arrives are answers of this address.
    pub fn answered_by(self, address: Ipv4Addr) -> Self {
        Self {
            answers_from: Some(address),
            ..self
        }
    }

    /// What was measured.
    pub fn figures(&self) -> Figures {
        Figures::of(self.name, "ns/packet", &self.rounds)
    }
}

/// The generator and the sink.
pub struct Frames<'a> {
    object: &'a mut Ebpf,
    generate: Array<MapData, [u64; 12]>,
    sunk: Array<MapData, u64>,
}

impl<'a> Frames<'a> {
    /// Takes them out of the benchmark's object.
    ///
    /// # Errors
    /// It has none.
    pub fn open(object: &'a mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| object.take_map(name).with_context(|| format!("no {name}"));
        Ok(Self {
            generate: take("GENERATE")?.try_into()?,
            sunk: take("SUNK")?.try_into()?,
            object,
        })
    }

    fn program<'p, P: 'p>(&'p mut self, name: &str) -> Result<&'p mut P>
    where
        &'p mut P: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        let program = self.object.program_mut(name);
        Ok(program.with_context(|| format!("no {name}"))?.try_into()?)
    }

    /// At the far ends of both uplinks, in the namespace of this thread.
    fn attach_sinks(&mut self) -> Result<()> {
        self.attach_sink("up0-far")?;
        self.attach_sink("up1-far")
    }

    /// Has what arrives at a device of the namespace of this thread counted and dropped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_sink(&mut self, device: &str) -> Result<()> {
        self.program::<Xdp>("sink")?
            .attach(device, XdpMode::Driver)
            .with_context(|| format!("attaching sink to {device}"))?;
        Ok(())
    }

    /// Has what arrives at a device of the namespace of this thread answered, as a pod's end of a link.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_peer(&mut self, device: &str) -> Result<()> {
        receives_in_batches(device)?;
        self.program::<SchedClassifier>("reflect")?
            .attach(device, TcAttachType::Ingress)
            .with_context(|| format!("attaching reflect to {device}"))?;
        Ok(())
    }

    /// Nanoseconds per frame, from the first that is sent to the last that arrives, with flows visited in this step.
    fn run(&mut self, stage: &Stage, frames: u32, step: u64) -> Result<f64> {
        setns(&stage.namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        let packet = eth().ip("10.0.0.0", stage.destination).tcp(1024, 80);
        let mut frame = packet.flags(tcp::ACK).macs(ROUTER, UP0.mac).bytes();
        frame.resize(64, 0);
        let mut words = words(&frame);
        words[8..11].copy_from_slice(&[stage.device.into(), FLOWS - 1, step]);
        self.generate.set(0, words, 0)?;
        self.sunk.set(0, 0, 0)?;
        let began = now();
        self.program::<Xdp>("generate")?
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("{}: sending frames", stage.name))?;
        let mut seen = self.sunk.get(&0, 0)?;
        let mut last = now();
        while seen < frames.into() && now() - last < Duration::from_millis(50) {
            let before = seen;
            seen = self.sunk.get(&0, 0)?;
            if seen != before {
                last = now();
            }
        }
        ensure!(
            seen * LOST_OF >= u64::from(frames) * (LOST_OF - 1),
            "{}: of {frames} frames {seen} arrived",
            stage.name
        );
        if let Some(expected) = stage.answers_from {
            let source = Ipv4Addr::from((self.sunk.get(&1, 0)? as u32).to_ne_bytes());
            ensure!(
                source == expected,
                "{}: the last answer is from {source}, not {expected}",
                stage.name
            );
        }
        Ok((last - began).as_secs_f64() * 1e9 / f64::from(frames))
    }
}

/// A veth takes frames, and in batches, only with an XDP program or with GRO.
///
/// # Errors
/// The kernel refuses.
pub fn receives_in_batches(device: &str) -> Result<()> {
    run("ethtool", &["-K", device, "gro", "on"], None)
}

/// The namespace of this thread.
///
/// # Errors
/// `/proc` is not there.
pub fn here() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening the thread's namespace")
}

#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
fn now() -> Instant {
    Instant::now()
}

/// Runs a program of the system in the namespace of this thread.
///
/// # Errors
/// It is not there, or fails.
pub fn run(program: &str, words: &[&str], input: Option<&str>) -> Result<()> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}; install it by `cargo xtask setup`"))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        pipe.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
