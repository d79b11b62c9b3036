//! `cargo xtask bench bfd`: how fast BFD sees a failure, and that it sees none where there is none.
//!
//! ```text
//!   bench_bfd OUT SECONDS      OUT: the JSON to write; SECONDS: how long nothing may fail
//! ```
//! Detection: our speaker and BIRD at 50 ms x 3 on one link; the link is cut by a packet filter, and the
//! time is taken from before the filter is told until the speaker has ended the BGP session. False alarms: 64
//! sessions of two of our own threads at 50 ms x 3 while every core computes; a session that fails is one.
#![expect(clippy::print_stderr, reason = "it speaks to a person")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_bgp::bfd::{Hops, Key, State, Timing};
use fairlead_bgp::{BfdConfig, Event, PeerConfig, SpeakerConfig};
use fairlead_control::bgp_io::{self, bfd::Bfd};
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::peer::Bird;
use fairlead_tests::report::{Figures, Goal, Report};
use tokio_util::sync::CancellationToken;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CUTS: usize = 15;
const SESSIONS: u8 = 64;
const TIMING: Timing = Timing {
    min_transmit: Duration::from_millis(50),
    min_receive: Duration::from_millis(50),
    multiplier: 3,
};
const BIRD: &str = "router id 10.77.0.2;\n\
    protocol device {}\n\
    protocol bfd { interface \"*\" { interval 50 ms; multiplier 3; }; }\n\
    protocol bgp fairlead {\n\
    \x20 local 10.77.0.2 as 65000; neighbor 10.77.0.1 as 65001;\n\
    \x20 connect delay time 1; connect retry time 1; error wait time 1, 1; bfd on;\n\
    \x20 ipv4 { import all; export all; };\n\
    }\n";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seconds = words.get(1).and_then(|word| word.parse().ok());
    let (Some(out), Some(seconds)) = (words.first().map(PathBuf::from), seconds) else {
        eprintln!("usage: bench_bfd OUT SECONDS (`cargo xtask bench bfd` says both)");
        return ExitCode::from(2);
    };
    bench(&out, seconds).unwrap_or_else(|error| {
        eprintln!("bench bfd: {error:#}");
        ExitCode::from(2)
    })
}

fn bench(out: &Path, seconds: u64) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "namespaces need root");
    let mut report = Report::default();
    let took = detections()?;
    let figures = Figures::of("detection, 50 ms x 3", "ms", &took);
    report.ratio(
        "median of detection, ms",
        figures.median,
        Goal::AtMost(150.0),
    );
    report.figures.push(figures);
    let failures = false_alarms(seconds)?;
    report.ratio(
        format!("failures in {seconds} s, {SESSIONS} sessions, all cores busy"),
        failures,
        Goal::AtMost(0.0),
    );
    report.tell(out)
}

/// Two namespaces on one link, and a runtime in the first.
fn link() -> Result<(Netns, Netns)> {
    let ours = Netns::unique("fl-bfd-us")?;
    let theirs = Netns::unique("fl-bfd-peer")?;
    veth((&ours, "eth0"), (&theirs, "eth0"))?;
    for (netns, address) in [(&ours, OURS), (&theirs, THEIRS)] {
        netns.ip(&format!("addr add {address}/24 dev eth0"))?;
    }
    Ok((ours, theirs))
}

fn inside<T: Send>(netns: &Netns, story: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    netns.enter(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(story())
    })?
}

/// A packet filter that waits for orders: to start a program for each would take longer than a detection.
struct Filter(Child);

impl Filter {
    fn open(netns: &Netns) -> Result<Self> {
        let mut nft = netns.command("nft");
        let child = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut filter = Self(child.spawn().context("starting nft")?);
        filter.tell("add table inet cut")?;
        for hook in ["input", "output"] {
            filter.tell(&format!(
                "add chain inet cut {hook}s {{ type filter hook {hook} priority 0; policy accept; }}"
            ))?;
        }
        Ok(filter)
    }

    fn set(&mut self, policy: &str) -> Result<()> {
        for chain in ["inputs", "outputs"] {
            self.tell(&format!("chain inet cut {chain} {{ policy {policy}; }}"))?;
        }
        Ok(())
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.0.stdin.as_mut().context("nft has ended")?;
        writeln!(input, "{line}").context("telling nft")
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // It ends with its input; gone already is as good.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Milliseconds from each cut to the end of the BGP session.
fn detections() -> Result<Vec<f64>> {
    let (ours, theirs) = link()?;
    let dir = tempfile::tempdir()?;
    let _bird = Bird::start(&theirs, &dir.path().join("bird"), BIRD)?;
    let mut filter = Filter::open(&theirs)?;
    inside(&ours, async || {
        let config = SpeakerConfig {
            local_as: 65001,
            router_id: OURS,
            hostname: None,
            multipath_limit: 1,
        };
        let bfd = Bfd::start()?;
        let cancel = CancellationToken::new();
        let (handle, task) = bgp_io::start(config, 1, Some(179), None, cancel.clone())?;
        handle.set_bfd(Some(bfd.watch())).await?;
        let mut peer = PeerConfig::new("bird", THEIRS.into(), 65000);
        peer.connect_retry_time = Duration::from_secs(1);
        peer.bfd = Some(BfdConfig {
            timing: TIMING,
            hops: Hops::Single,
            strict: false,
        });
        let mut events = handle.events();
        handle.set_peers(vec![peer]).await?;
        let mut took = Vec::new();
        while took.len() < CUTS {
            settle(&bfd, &handle).await?;
            // Not in step with the packets.
            tokio::time::sleep(Duration::from_millis(137 * (1 + took.len() as u64 % 7))).await;
            while events.try_recv().is_ok() {}
            let cut_at = now();
            filter.set("drop")?;
            loop {
                if let Event::PeerDown { .. } = events.recv().await? {
                    break;
                }
            }
            took.push((now() - cut_at).as_secs_f64() * 1000.0);
            filter.set("accept")?;
        }
        cancel.cancel();
        task.await?;
        bfd.stop().await;
        Ok(took)
    })
}

/// Waits for BGP, and for BFD at its final timing.
async fn settle(bfd: &Bfd, handle: &bgp_io::BgpHandle) -> Result<()> {
    for _ in 0..600 {
        let sessions = bfd.snapshot().await.sessions;
        let is_fast = sessions.iter().any(|session| {
            session.standing.state == State::Up
                && session.detection_time == Duration::from_millis(150)
        });
        let peers = handle.peers().await?;
        let is_up = peers
            .iter()
            .any(|peer| peer.state == fairlead_bgp::State::Established);
        if is_fast && is_up {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no session with BIRD within 30 s")
}

/// Failures of sessions that nothing is wrong with.
#[expect(clippy::cast_precision_loss, reason = "there are few, or none")]
fn false_alarms(seconds: u64) -> Result<f64> {
    let (ours, theirs) = link()?;
    for number in 0..SESSIONS {
        let [a, b] = pair(number);
        ours.ip(&format!("addr add {a}/16 dev eth0"))?;
        theirs.ip(&format!("addr add {b}/16 dev eth0"))?;
    }
    let busy = Arc::new(AtomicBool::new(true));
    let cores = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..cores)
        .map(|_| {
            let busy = Arc::clone(&busy);
            std::thread::spawn(move || {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let ends = [(&ours, 0), (&theirs, 1)].map(|(netns, end)| {
        netns.enter(|| {
            let bfd = Bfd::start()?;
            let watch = bfd.watch();
            let key = |number| {
                let addresses = pair(number).map(IpAddr::from);
                Key {
                    peer: addresses[1 - end],
                    local: Some(addresses[end]),
                    hops: Hops::Single,
                }
            };
            let sessions = (0..SESSIONS).map(|number| (key(number), TIMING));
            watch.follow(sessions.collect::<BTreeMap<_, _>>());
            Ok::<_, std::io::Error>((bfd, watch))
        })
    });
    let outcome = tokio::runtime::Runtime::new()?.block_on(async {
        let mut failures = 0;
        let mut held = Vec::new();
        for end in ends {
            held.push(end??);
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        for (bfd, _watch) in &held {
            let sessions = bfd.snapshot().await.sessions;
            let up = sessions.iter().filter(|s| s.standing.state == State::Up);
            ensure!(up.count() == usize::from(SESSIONS), "sessions are down");
            failures += sessions.iter().map(|session| session.failures).sum::<u64>();
        }
        Ok(failures)
    });
    busy.store(false, Ordering::Relaxed);
    for thread in threads {
        // A thread that only spins does not fail.
        let _ = thread.join();
    }
    Ok(outcome? as f64)
}

fn pair(number: u8) -> [Ipv4Addr; 2] {
    [
        Ipv4Addr::new(10, 78, 1, number),
        Ipv4Addr::new(10, 78, 2, number),
    ]
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "an edge: it times real events")]
    Instant::now()
}
