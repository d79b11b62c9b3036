//! `cargo xtask bench bgp`: how long a table takes through a BGP speaker, and what it then holds in memory.
//!
//! ```text
//!   bench_bgp OUT [NAME…]   OUT: the JSON to write; NAME: measure and compare these speakers only
//!   bench_bgp speaker N …   our speaker, as the agent runs it, until it is killed
//!
//!   injector ──eBGP──► speaker ──eBGP──► monitor        each in a network namespace of its own
//! ```
//! Every speaker takes /8 to /24 (IPv6: /16 to /48) from the injector by policy, chooses best paths, and passes
//! them on. Time runs from the injector's first octet until every monitor, of which one case has many, holds every
//! prefix; memory is what the
//! speaker's processes have resident then. They take turns, one at a time.
//!
//! Not for failure detection, and not for what a table costs the kernel: none of them installs it.
#![expect(clippy::print_stderr, reason = "it speaks to a person")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![expect(
    clippy::cast_precision_loss,
    reason = "figures of a report are fractions, and far below 2^52"
)]

mod contender;
mod load;
mod session;

use std::net::Shutdown;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::report::{Figures, Goal, Report};

use contender::{Contender, Running};
use load::Load;
use session::{Monitor, Session};

/// How long a speaker may take: what takes longer counts as this.
const PATIENCE: Duration = Duration::from_mins(10);

/// The AS numbers of the three.
pub const INJECTOR_AS: u32 = 65010;
pub const SPEAKER_AS: u32 = 65000;
pub const MONITOR_AS: u32 = 65020;

/// A table, who takes it how often, and how many are told of it.
struct Case {
    load: Load,
    monitors: u8,
    rounds: &'static [(Contender, usize)],
}

const CASES: [Case; 5] = [
    Case {
        load: Load {
            name: "1M IPv4, 5 per UPDATE",
            prefixes: 1_000_000,
            per_update: 5,
            ipv6: false,
        },
        monitors: 1,
        rounds: &[
            (Contender::Fairlead, 3),
            (Contender::Bird, 3),
            (Contender::OpenBgpd, 1),
            (Contender::Frr, 1),
            (Contender::GoBgp, 1),
        ],
    },
    Case {
        load: Load {
            name: "1M IPv4, 900 per UPDATE",
            prefixes: 1_000_000,
            per_update: 900,
            ipv6: false,
        },
        monitors: 1,
        rounds: &[
            (Contender::Fairlead, 3),
            (Contender::Bird, 3),
            (Contender::OpenBgpd, 1),
            (Contender::Frr, 1),
            (Contender::GoBgp, 1),
        ],
    },
    Case {
        load: Load {
            name: "10k IPv4, 5 per UPDATE",
            prefixes: 10_000,
            per_update: 5,
            ipv6: false,
        },
        monitors: 1,
        rounds: &[
            (Contender::Fairlead, 7),
            (Contender::Bird, 7),
            (Contender::OpenBgpd, 3),
            (Contender::Frr, 3),
            (Contender::GoBgp, 3),
        ],
    },
    Case {
        load: Load {
            name: "200k IPv6, 5 per UPDATE",
            prefixes: 200_000,
            per_update: 5,
            ipv6: true,
        },
        monitors: 1,
        rounds: &[(Contender::Fairlead, 3), (Contender::Bird, 3)],
    },
    Case {
        load: Load {
            name: "100k IPv4, 5 per UPDATE, 50 monitors",
            prefixes: 100_000,
            per_update: 5,
            ipv6: false,
        },
        monitors: 50,
        rounds: &[(Contender::Fairlead, 3), (Contender::Bird, 3)],
    },
];

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    let outcome = match argument.as_deref() {
        Some(word) if word == "speaker" => contender::speak().map(|()| ExitCode::SUCCESS),
        Some(out) => bench(Path::new(out)),
        None => {
            eprintln!("usage: bench_bgp OUT (`cargo xtask bench bgp` says it)");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("bench bgp: {error:#}");
        ExitCode::from(2)
    })
}

fn bench(out: &Path) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "namespaces need root");
    let wanted = wanted(std::env::args().skip(2))?;
    let mut report = Report::default();
    for case in &CASES {
        measure(case, &wanted, &mut report)?;
    }
    compare(&wanted, &mut report);
    report.tell(out)
}

/// The speakers of these names; all when there is none.
///
/// # Errors
/// No speaker is called so.
fn wanted(names: impl Iterator<Item = String>) -> Result<Vec<Contender>> {
    let named = names
        .map(|name| {
            let known = Contender::ALL.into_iter();
            let mut called = known.filter(|contender| contender.to_string() == name);
            let all = Contender::ALL.map(|contender| contender.to_string());
            called
                .next()
                .with_context(|| format!("no speaker is called {name}; {}", all.join(", ")))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(if named.is_empty() {
        Contender::ALL.to_vec()
    } else {
        named
    })
}

/// Adds the ratios between what was measured.
fn compare(wanted: &[Contender], report: &mut Report) {
    if !wanted.contains(&Contender::Fairlead) {
        return;
    }
    let ours =
        |report: &Report, load: &Load, what| report.median(&name(load, Contender::Fairlead, what));
    for (case, seconds) in CASES
        .iter()
        .zip([Some(1.5), Some(1.5), Some(0.03), None, None])
    {
        let time = ours(report, &case.load, TIME);
        if let Some(seconds) = seconds {
            let goal = format!("{}: fairlead, s", case.load.name);
            report.ratio(goal, time / 1000.0, Goal::AtMost(seconds));
        }
        if case.load.prefixes == 1_000_000 {
            let memory = ours(report, &case.load, MEMORY);
            let goal = format!("{}: fairlead, MB", case.load.name);
            report.ratio(goal, memory, Goal::AtMost(300.0));
        }
        for (contender, _) in case
            .rounds
            .iter()
            .filter(|(one, _)| *one != Contender::Fairlead && wanted.contains(one))
        {
            let theirs = report.median(&name(&case.load, *contender, TIME));
            let what = format!("{}: fairlead / {contender}", case.load.name);
            report.ratio(what, time / theirs, Goal::AtMost(1.0));
        }
    }
}

const TIME: &str = "time";
const MEMORY: &str = "memory";

fn name(load: &Load, contender: Contender, what: &str) -> String {
    format!("{}: {contender}, {what}", load.name)
}

fn measure(case: &Case, wanted: &[Contender], report: &mut Report) -> Result<()> {
    let updates = case.load.updates();
    let most = case.rounds.iter().map(|(_, rounds)| *rounds).max();
    let mut found: Vec<(Vec<f64>, Vec<f64>)> =
        case.rounds.iter().map(|_| Default::default()).collect();
    for round in 0..most.unwrap_or(0) {
        for ((contender, rounds), found) in case.rounds.iter().zip(&mut found) {
            if round >= *rounds || !wanted.contains(contender) {
                continue;
            }
            let (time, megabytes) = once(*contender, case, &updates)
                .with_context(|| format!("{contender}, {}", case.load.name))?;
            eprintln!(
                "{}: {contender}: {time:.2?}, {megabytes:.0} MB",
                case.load.name
            );
            found.0.push(time.as_secs_f64() * 1000.0);
            found.1.push(megabytes);
        }
    }
    for ((contender, _), (times, memory)) in case.rounds.iter().zip(found) {
        if times.is_empty() {
            continue;
        }
        report.figures.push(Figures::of(
            name(&case.load, *contender, TIME),
            "ms",
            &times,
        ));
        report.figures.push(Figures::of(
            name(&case.load, *contender, MEMORY),
            "MB",
            &memory,
        ));
    }
    Ok(())
}

/// Three namespaces in a row.
struct Row {
    injector: Netns,
    speaker: Netns,
    monitor: Netns,
}

impl Row {
    /// The monitors share a namespace, each with an address of its own.
    fn new(monitors: u8) -> Result<Self> {
        let row = Self {
            injector: Netns::unique("fl-bench-in")?,
            speaker: Netns::unique("fl-bench-bgp")?,
            monitor: Netns::unique("fl-bench-mon")?,
        };
        for (link, netns) in [(1, &row.injector), (2, &row.monitor)] {
            veth((netns, "eth0"), (&row.speaker, &format!("eth{link}")))?;
            for (at, device, host) in [
                (netns, "eth0".to_owned(), 2),
                (&row.speaker, format!("eth{link}"), 1),
            ] {
                at.ip(&format!("addr add 10.0.{link}.{host}/24 dev {device}"))?;
                at.ip(&format!(
                    "addr add fd00:{link}::{host}/64 dev {device} nodad"
                ))?;
            }
        }
        for host in 3..2 + monitors {
            row.monitor
                .ip(&format!("addr add 10.0.2.{host}/24 dev eth0"))?;
        }
        Ok(row)
    }
}

/// Sends a table through a speaker once: how long it took, and the megabytes that the speaker has then.
fn once(contender: Contender, case: &Case, updates: &[u8]) -> Result<(Duration, f64)> {
    let load = &case.load;
    let row = Row::new(case.monitors)?;
    let folder = tempfile::Builder::new().prefix("fl-bench-bgp-").tempdir()?;
    let mut running: Running =
        contender.start(&row.speaker, folder.path(), load.ipv6, case.monitors)?;
    let mut injector = row
        .injector
        .enter(|| Session::establish(load.injector(), load.speaker(1), INJECTOR_AS))??;
    let (done, wait) = mpsc::channel();
    let watching: Vec<Monitor> = row.monitor.enter(|| {
        (0..case.monitors)
            .map(|number| {
                let own = load.monitor(number);
                let session = Session::establish(own, load.speaker(2), MONITOR_AS)?;
                Monitor::start(session, load, done.clone())
            })
            .collect::<Result<_>>()
    })??;
    drop(done);
    injector.discard_what_comes()?;
    // End-of-RIB markers and whatever else a fresh session brings.
    std::thread::sleep(Duration::from_millis(500));
    let line = injector.line()?;
    std::thread::scope(|scope| {
        // When it fails, the monitor does not get all: that is noticed.
        scope.spawn(|| injector.write(updates));
        let outcome = wait_for_all(contender, load, &wait, &watching, &mut running);
        let memory = running.megabytes();
        // Whatever is still being written is not wanted any more.
        let _ = line.shutdown(Shutdown::Both);
        Ok((outcome?, memory?))
    })
}

/// Waits until every monitor holds everything: how long that took.
fn wait_for_all(
    contender: Contender,
    load: &Load,
    done: &Receiver<Instant>,
    monitors: &[Monitor],
    running: &mut Running,
) -> Result<Duration> {
    let begin = Instant::now();
    let mut left = monitors.len();
    loop {
        match done.recv_timeout(Duration::from_secs(10)) {
            Ok(end) => {
                left -= 1;
                if left == 0 {
                    return Ok(end - begin);
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the session with a monitor ended; {}", running.last_words())
            }
        }
        running.check()?;
        if begin.elapsed() >= PATIENCE {
            eprintln!(
                "{}: {contender}: {} prefixes are through after {PATIENCE:?}",
                load.name,
                monitors.iter().map(Monitor::seen).min().unwrap_or(0)
            );
            return Ok(PATIENCE);
        }
        monitors.iter().try_for_each(Monitor::keep_alive)?;
    }
}
