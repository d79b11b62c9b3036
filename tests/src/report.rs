//! What a benchmark found: figures and the ratios between them, as a table for people and as JSON.
//!
//! ```text
//!   {machine, kernel, commit,
//!    cases:  [{name, unit, rounds, min, p25, median, max}],
//!    ratios: [{name, value, goal, holds}]}
//! ```
//! Figures of one run are compared with each other only: machines differ, and so do their days. Not for
//! measuring.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A case's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What was measured.
    pub name: String,
    /// What the numbers count.
    pub unit: &'static str,
    /// How many times it was measured.
    pub rounds: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter is smaller.
    pub p25: f64,
    /// Half are smaller.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Figures {
    /// Sums up what the rounds of a case gave.
    pub fn of(name: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        Self {
            name: name.into(),
            unit,
            rounds: sorted.len(),
            min: at(0),
            p25: at(sorted.len() / 4),
            median: at(sorted.len() / 2),
            max: at(sorted.len().saturating_sub(1)),
        }
    }

    /// The same less what every round has in common with another case.
    #[must_use]
    pub fn less(self, share: f64) -> Self {
        let less = |figure: f64| (figure - share).max(0.0);
        Self {
            min: less(self.min),
            p25: less(self.p25),
            median: less(self.median),
            max: less(self.max),
            ..self
        }
    }
}

/// The middle of what was measured; not a number when nothing was.
pub fn median(rounds: &[f64]) -> f64 {
    Figures::of("", "", rounds).median
}

/// What a ratio must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// What must hold between cases.
#[derive(Clone, Debug)]
pub struct Ratio {
    /// What is compared.
    pub name: String,
    /// What it is.
    pub value: f64,
    /// What it must be.
    pub goal: Goal,
}

impl Ratio {
    /// Whether it is what it must be; what was not measured does not hold.
    pub fn holds(&self) -> bool {
        match self.goal {
            Goal::AtMost(most) => self.value <= most,
            Goal::AtLeast(least) => self.value >= least,
        }
    }
}

/// What a benchmark found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases in their order.
    pub figures: Vec<Figures>,
    /// What must hold.
    pub ratios: Vec<Ratio>,
}

impl Report {
    /// The median of a case; not a number when there is none of this name.
    pub fn median(&self, name: &str) -> f64 {
        let found = self.figures.iter().find(|one| one.name == name);
        found.map_or(f64::NAN, |one| one.median)
    }

    /// Adds a ratio.
    pub fn ratio(&mut self, name: impl Into<String>, value: f64, goal: Goal) {
        self.ratios.push(Ratio {
            name: name.into(),
            value,
            goal,
        });
    }

    /// Prints the table, writes the JSON, and says whether every ratio holds: by exit code 0, or 1.
    ///
    /// # Errors
    /// The file cannot be written.
    #[expect(
        clippy::print_stdout,
        clippy::print_stderr,
        reason = "a benchmark shows its figures to a person"
    )]
    pub fn tell(&self, out: &Path) -> Result<ExitCode> {
        println!("{self}");
        if let Some(folder) = out.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        std::fs::write(out, format!("{:#}\n", self.json()?))
            .with_context(|| format!("writing {}", out.display()))?;
        println!("{}", out.display());
        if self.ratios.iter().all(Ratio::holds) {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("bench: a ratio does not hold");
        Ok(ExitCode::FAILURE)
    }

    fn json(&self) -> Result<Value> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("reading the kernel's release")?;
        let cases = self.figures.iter().map(|one| {
            json!({
                "name": one.name, "unit": one.unit, "rounds": one.rounds,
                "min": one.min, "p25": one.p25, "median": one.median, "max": one.max,
            })
        });
        let ratios = self.ratios.iter().map(|one| {
            let (Goal::AtMost(goal) | Goal::AtLeast(goal)) = one.goal;
            json!({ "name": one.name, "value": one.value, "goal": goal, "holds": one.holds() })
        });
        Ok(json!({
            "machine": model.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']),
            "kernel": kernel.trim(),
            "commit": commit(),
            "cases": cases.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
        }))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widest = self.figures.iter().map(|one| one.name.len());
        let widest = widest.chain(self.ratios.iter().map(|one| one.name.len()));
        let width = widest.max().unwrap_or(0);
        writeln!(
            f,
            "{:<width$} {:>10} {:>10} {:>10} {:>10}  unit",
            "case", "min", "p25", "median", "max"
        )?;
        for one in &self.figures {
            writeln!(
                f,
                "{:<width$} {:>10.1} {:>10.1} {:>10.1} {:>10.1}  {}",
                one.name, one.min, one.p25, one.median, one.max, one.unit
            )?;
        }
        writeln!(f, "\n{:<width$} {:>10} {:>10}", "ratio", "value", "goal")?;
        for one in &self.ratios {
            let goal = match one.goal {
                Goal::AtMost(most) => format!("<= {most:.2}"),
                Goal::AtLeast(least) => format!(">= {least:.2}"),
            };
            let word = if one.holds() {
                "holds"
            } else {
                "DOES NOT HOLD"
            };
            writeln!(
                f,
                "{:<width$} {:>10.2} {goal:>10}  {word}",
                one.name, one.value
            )?;
        }
        Ok(())
    }
}

fn commit() -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .output();
    let said = git.ok().filter(|git| git.status.success());
    said.map_or_else(
        || "unknown".to_owned(),
        |git| String::from_utf8_lossy(&git.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_of_nothing_does_not_hold() {
        let mut report = Report::default();
        report.ratio("a / b", report.median("a"), Goal::AtMost(1.0));
        report.ratio("b / a", report.median("b"), Goal::AtLeast(1.0));

        assert!(report.ratios.iter().all(|ratio| !ratio.holds()));
    }

    #[test]
    fn figures_are_those_of_the_sorted_rounds() {
        let figures = Figures::of("x", "ns", &[5.0, 1.0, 4.0, 2.0, 3.0]).less(1.5);

        assert_eq!(
            (figures.min, figures.p25, figures.median, figures.max),
            (0.0, 0.5, 1.5, 3.5)
        );
    }
}
