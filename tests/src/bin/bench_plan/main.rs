//! `cargo xtask bench plan`: how long services take from objects into the kernel, and off the wire.
//!
//! ```text
//!   bench_plan OUT                      OUT: the JSON to write
//!   bench_plan OUT NETNS KUBECONFIG     `cargo xtask bench cluster`: with the API server that listens in NETNS
//!
//!   API server (ours) ──watch──> agent ──> tables <── looked at here
//!                                  └──BGP──> peer (ours)
//! ```
//! The agent is the real one, built as it is delivered, in a network namespace of its own, with a real uplink and the
//! kernel's real tables. Services are of both families in turn; no two have a backend in common, and all backends are
//! behind one router. [`parts`] says where the time goes, without an agent.
//!
//! Not for what a packet costs: `bench lb` measures that.
#![expect(clippy::print_stderr, reason = "it speaks to a person")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![expect(
    clippy::disallowed_types,
    reason = "a thread per connection writes down what it hears"
)]

mod api_server;
mod cluster;
mod parts;
mod peer;
mod real;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_control::dataplane::mapped::Access;
use fairlead_control::dataplane::table::Slots;
use fairlead_tests::report::{Figures, Goal, Report};

use self::cluster::{Agent, Ours, Size, Teller, Wires};

/// Ten thousand services with ten backends each.
const WIDE: Size = Size {
    services: 10_000,
    backends: 10,
};
/// Five thousand services with a hundred thousand endpoints.
const DEEP: Size = Size {
    services: 5_000,
    backends: 20,
};
/// How many endpoints are exchanged, and how many services lose their last backend, one after another.
const CHANGES: u32 = 100;
const LOSSES: u32 = 40;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (out, done) = match words.as_slice() {
        [out] if !out.as_encoded_bytes().starts_with(b"-") => (out, bench()),
        [out, netns, kubeconfig] => (out, real::bench(netns, Path::new(kubeconfig))),
        _ => {
            eprintln!(
                "usage: bench_plan OUT [NETNS KUBECONFIG] (`cargo xtask bench plan|cluster` say it)"
            );
            return ExitCode::from(2);
        }
    };
    done.and_then(|report| report.tell(Path::new(out)))
        .unwrap_or_else(|error| {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        })
}

fn bench() -> Result<Report> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs needs root"
    );
    let mut report = Report::default();
    parts::rings(&mut report);
    parts::rounds(WIDE, &mut report)?;
    let goals = Goals {
        from_nothing_s: 2.0,
        change_ms: 10.0,
        withdrawal_ms: 50.0,
    };
    whole("10,000 x 10", WIDE, &goals, &mut report)?;
    let goals = Goals {
        from_nothing_s: 20.0,
        change_ms: 50.0,
        withdrawal_ms: 50.0,
    };
    whole("5,000 x 20", DEEP, &goals, &mut report)?;
    Ok(report)
}

struct Goals {
    from_nothing_s: f64,
    change_ms: f64,
    withdrawal_ms: f64,
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The real agent: from the server's first word to the kernel's last row, and from an event to its rows.
fn whole(name: &str, size: Size, goals: &Goals, report: &mut Report) -> Result<()> {
    let wires = Wires::make()?;
    let ours = Ours::start(size, &wires)?;
    let agent = Agent::start(size, wires, Ours::KUBECONFIG)?;
    // Its watches wait for their lists then.
    std::thread::sleep(Duration::from_secs(1));
    let empty_kib = agent.memory_kib()?;
    let began = Instant::now();
    ours.0.release();
    agent.wait_for_all()?;
    let from_nothing = ms(began);
    wait(|| ours.0.watches("endpointslices") > 0)?;
    let empty = Figures::of(
        format!("{name}: the agent's memory, no services"),
        "KiB",
        &[empty_kib],
    );
    report.figures.push(empty);
    one_by_one(name, &agent, &ours, from_nothing, goals, report)
}

/// Everything is in the kernel: now endpoints are exchanged, and last ones lost.
fn one_by_one(
    name: &str,
    agent: &Agent,
    teller: &dyn Teller,
    from_nothing: f64,
    goals: &Goals,
    report: &mut Report,
) -> Result<()> {
    let size = agent.size;
    agent.wait_for_announcements()?;
    let slots = Slots::open(&agent.pins, Access::Read)?;

    let mut changes = Vec::new();
    for nth in 0..CHANGES {
        let service = nth * 7919 % size.services;
        let ring = agent.ring_of(service)?;
        let held = slots.ring(ring.0, ring.1);
        // Each change for itself: the round of the one before has ended.
        std::thread::sleep(Duration::from_millis(60));
        let began = Instant::now();
        teller.tell(&size.slice(service, size.backends, 1))?;
        wait(|| slots.ring(ring.0, ring.1) != held)?;
        changes.push(ms(began));
    }
    let mut losses = Vec::new();
    // Those of IPv4: what the peer reads of a withdrawal.
    for nth in 0..LOSSES {
        let service = nth * 7919 * 2 % size.services;
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        teller.tell(&size.slice(service, 0, 2))?;
        wait(|| agent.peer.has_lost(Size::address(service)))?;
        losses.push(ms(began));
    }
    let kib = agent.memory_kib()?;

    let mut add = |what: &str, unit, rounds: &[f64]| {
        let name = format!("{name}: {what}");
        report.figures.push(Figures::of(name, unit, rounds));
    };
    add("from nothing into the kernel", "ms", &[from_nothing]);
    add("one endpoint, word to ring", "ms", &changes);
    add("last backend lost, word to withdrawal", "ms", &losses);
    add("the agent's memory", "KiB", &[kib]);
    let mut ratio = |what: String, value: f64| report.ratio(what, value, Goal::AtMost(1.0));
    ratio(
        format!("{name}: from nothing / {} s", goals.from_nothing_s),
        from_nothing / goals.from_nothing_s / 1e3,
    );
    for (part, share) in [("median", 50), ("99th percentile", 99)] {
        ratio(
            format!("{name}: one endpoint, {part} / {} ms", goals.change_ms),
            percentile(&changes, share) / goals.change_ms,
        );
    }
    ratio(
        format!("{name}: withdrawal, median / {} ms", goals.withdrawal_ms),
        percentile(&losses, 50) / goals.withdrawal_ms,
    );
    Ok(())
}

fn percentile(rounds: &[f64], share: usize) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * share / 100]
}

/// Looks often, and lets others have the processor in between.
fn wait(mut is_done: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_done() {
        ensure!(
            began.elapsed() < Duration::from_mins(1),
            "not within a minute"
        );
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}
