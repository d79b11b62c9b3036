//! `cargo xtask test`: every test there is, and no skipped one counts as passed.
//!
//! Which test runs in which suite is `SUITES`, and nowhere else. `FAIRLEAD_REQUIRE_ALL_TESTS=1` makes a test that
//! cannot run fail instead of printing why; an ignored test fails its suite, and so does a suite without tests.
//!
//! Not for the tests themselves, nor for the place where they run: that is the crate `tests`.

mod outcome;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    lint, setup,
    workspace::{self, now},
};
use outcome::Outcome;

#[derive(clap::Args)]
pub struct Arguments {
    /// Which tests; `all` lints first
    #[arg(value_enum, default_value_t = Choice::All)]
    suite: Choice,
    /// For the test programs, such as a part of a test's name
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Everything, and lint
    All,
    /// What needs no privilege: unit, property and simulation tests
    Unit,
    /// The real bytecode under `BPF_PROG_TEST_RUN`
    Kernel,
    /// Agents in network namespaces
    Netns,
    /// Real routers
    Interop,
    /// A real Kubernetes cluster; the first time, Kubernetes and the image are built for it
    Cluster,
}

struct Suite {
    choice: Choice,
    /// Files of `tests/tests` without `.rs`; `*` stands for any ending.
    files: &'static [&'static str],
    needs_root: bool,
    /// How many tests of one program run at a time: those with traffic leave a core to it.
    threads: Option<usize>,
}

/// The one table of what runs where; what no suite names is a unit test.
const SUITES: [Suite; 5] = [
    Suite {
        choice: Choice::Unit,
        files: &[],
        needs_root: false,
        threads: None,
    },
    Suite {
        choice: Choice::Kernel,
        files: &[
            "lb",
            "lb_here",
            "lb_kept",
            "lb_nat",
            "lb_relay",
            "lb_terms",
            "odd",
            "random_frames",
            "gue",
            "counts",
            "trace",
            "sock",
            "next_hop",
            "route",
            "snat",
            "decap",
            "verdicts",
            "registry",
            "budget",
            "consistency",
            "scale",
        ],
        needs_root: true,
        threads: None,
    },
    Suite {
        choice: Choice::Netns,
        files: &["agent_*", "demo*", "netns_*", "cli*"],
        needs_root: true,
        threads: Some(2),
    },
    Suite {
        choice: Choice::Interop,
        files: &["bgp_interop*"],
        needs_root: true,
        threads: Some(2),
    },
    Suite {
        choice: Choice::Cluster,
        files: &["cluster"],
        needs_root: true,
        threads: Some(1),
    },
];

/// Runs the tests that were asked for and prints, last, `N passed, M failed`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let suites: Vec<&Suite> = SUITES
        .iter()
        .filter(|suite| [suite.choice, Choice::All].contains(&arguments.suite))
        .collect();
    if suites.iter().any(|suite| suite.needs_root) && !workspace::is_root() {
        bail!(
            "these tests load programs and make namespaces: run them as root, or `cargo xtask test unit`"
        );
    }
    setup::ensure(&[setup::For::Build])?;
    if suites.iter().any(|suite| suite.needs_root) {
        setup::ensure(&[setup::For::Test])?;
    }

    if suites.iter().any(|suite| suite.choice == Choice::Cluster) {
        setup::ensure(&[setup::For::Cluster])?;
    }

    let mut outcomes = Vec::new();
    if arguments.suite == Choice::All && arguments.rest.is_empty() {
        setup::ensure(&[setup::For::Lint])?;
        let began = now();
        let failed = lint::run_checks();
        let mut outcome = Outcome::of_checks("lint", lint::CHECKS.len(), &failed);
        outcome.took = began.elapsed();
        outcomes.push(outcome);
    }
    // With all dependencies' features at once, so that no suite below compiles anything again; and with the agent,
    // which tests start as a program.
    let mut build = workspace::cargo();
    build.args(["build", "--workspace", "--all-targets", "--quiet"]);
    println!("test: building");
    workspace::run(&mut build, "building the programs and their tests")?;

    let files = test_files()?;
    for suite in suites {
        outcomes.push(run_suite(suite, &files, &arguments.rest)?);
    }
    println!();
    for outcome in &outcomes {
        println!("{outcome}");
    }
    let failed: usize = outcomes.iter().map(Outcome::failed).sum();
    println!(
        "{} passed, {failed} failed",
        outcomes.iter().map(|outcome| outcome.passed).sum::<usize>()
    );
    if failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

fn run_suite(suite: &Suite, files: &[String], rest: &[String]) -> Result<Outcome> {
    let name = suite
        .choice
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    let began = now();
    let mut outcome = Outcome::new(name, rest.is_empty());
    let chosen: Vec<&String> = files
        .iter()
        .filter(|file| suite_of(file) == suite.choice)
        .collect();
    let mut targets: Vec<&str> = chosen.iter().flat_map(|file| ["--test", file]).collect();
    if suite.choice == Choice::Unit {
        targets.extend(["--lib", "--bins"]);
    }
    if !targets.is_empty() {
        run_tests(&targets, suite, rest, &mut outcome)?;
    }
    if suite.choice == Choice::Unit {
        run_tests(&["--doc"], suite, rest, &mut outcome)?;
    }
    outcome.took = began.elapsed();
    Ok(outcome)
}

/// Runs `cargo test` on some targets, shows what it says, and reads the results from it.
fn run_tests(
    targets: &[&str],
    suite: &Suite,
    rest: &[String],
    outcome: &mut Outcome,
) -> Result<()> {
    println!("test: {} ({})", outcome.name, targets.join(" "));
    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(targets)
        .arg("--");
    if let Some(threads) = suite.threads {
        cargo.arg(format!("--test-threads={threads}"));
    }
    cargo
        .args(rest)
        .env("FAIRLEAD_REQUIRE_ALL_TESTS", "1")
        .env("CARGO_TERM_COLOR", "never");
    let mut running = cargo
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {cargo:?}"))?;
    let stdout = running
        .stdout
        .take()
        .context("reading what the tests say")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading what the tests say")?;
        println!("{line}");
        outcome.read(&line);
    }
    let status = running.wait().context("waiting for the tests")?;
    outcome.ended(status.success());
    Ok(())
}

fn test_files() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/tests");
    let mut names = Vec::new();
    if folder.is_dir() {
        for file in
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = file
                .with_context(|| format!("listing {}", folder.display()))?
                .path();
            // As cargo finds them: a file, or a folder with a `main.rs`.
            let is_test = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").is_file();
            if is_test {
                names.extend(
                    path.file_stem()
                        .and_then(|name| name.to_str())
                        .map(str::to_owned),
                );
            }
        }
    }
    names.sort();
    Ok(names)
}

fn suite_of(file: &str) -> Choice {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => file.starts_with(start),
        None => file == pattern,
    };
    let suite = SUITES
        .iter()
        .find(|suite| suite.files.iter().any(|pattern| fits(pattern)));
    suite.map_or(Choice::Unit, |suite| suite.choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_suite_and_what_nobody_names_needs_no_root() {
        assert_eq!(suite_of("lb"), Choice::Kernel);
        assert_eq!(suite_of("agent_restart"), Choice::Netns);
        assert_eq!(suite_of("demo"), Choice::Netns);
        assert_eq!(suite_of("bgp_interop_frr"), Choice::Interop);
        assert_eq!(suite_of("cluster"), Choice::Cluster);
        assert_eq!(suite_of("bgp_sim"), Choice::Unit);
        assert_eq!(suite_of("plan_laws"), Choice::Unit);
        assert_eq!(suite_of("lb_laws"), Choice::Unit);
    }
}
