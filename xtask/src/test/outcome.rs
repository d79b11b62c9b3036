//! What came out of a suite: the lines that the test harness prints, counted.
//!
//! Not for running anything.

use std::{fmt, time::Duration};

/// The results of one suite.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub name: String,
    pub passed: usize,
    /// Tests that failed, programs that died without a word, and suites that ran nothing.
    failures: usize,
    ignored: usize,
    /// A suite without a single test proves nothing, unless a filter was asked for.
    must_run_some: bool,
    details: Vec<String>,
    failures_seen: usize,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    pub fn new(name: String, must_run_some: bool) -> Self {
        Self {
            name,
            passed: 0,
            failures: 0,
            ignored: 0,
            must_run_some,
            details: Vec::new(),
            failures_seen: 0,
            took: Duration::ZERO,
        }
    }

    /// Counts checks that are no tests like tests.
    pub fn of_checks(name: &str, all: usize, failed: &[&str]) -> Self {
        Self {
            passed: all - failed.len(),
            failures: failed.len(),
            details: failed.iter().map(|check| (*check).to_owned()).collect(),
            ..Self::new(name.to_owned(), true)
        }
    }

    /// Reads one line: `test result: ok. 6 passed; 0 failed; 0 ignored; …` counts, `test NAME ... FAILED` is kept.
    pub fn read(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.details.push(name.to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
            let count = |word: &str| {
                let found = counts
                    .split(';')
                    .map(str::trim)
                    .find_map(|part| part.strip_suffix(word));
                found
                    .and_then(|number| number.trim().parse::<usize>().ok())
                    .unwrap_or_default()
            };
            self.passed += count("passed");
            self.failures += count("failed");
            self.ignored += count("ignored");
        }
    }

    /// Takes note of how the program that ran the tests ended.
    pub fn ended(&mut self, well: bool) {
        if !well && self.failures == self.failures_seen {
            self.failures += 1;
            self.details
                .push("a test program did not compile, or died before it could report".to_owned());
        }
        self.failures_seen = self.failures;
    }

    /// Counts everything that is not a test that ran and passed.
    pub fn failed(&self) -> usize {
        self.failures + self.ignored + usize::from(self.ran_nothing())
    }

    fn ran_nothing(&self) -> bool {
        self.must_run_some && self.passed + self.failures + self.ignored == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:8} {:5} passed {:3} failed {:6} s",
            self.name,
            self.passed,
            self.failed(),
            self.took.as_secs()
        )?;
        if self.ignored > 0 {
            write!(
                f,
                ", {} of them ignored: a test that does not run proves nothing",
                self.ignored
            )?;
        }
        if self.ran_nothing() {
            write!(f, ": there is no test in this suite")?;
        }
        for detail in &self.details {
            write!(f, "\n         failed: {detail}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str], well: bool) -> Outcome {
        let mut outcome = Outcome::new("unit".to_owned(), true);
        for line in lines {
            outcome.read(line);
        }
        outcome.ended(well);
        outcome
    }

    #[test]
    fn results_of_all_programs_are_added_up() {
        let ok = "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s";
        let bad = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let outcome = after(
            &[ok, "test a::b ... FAILED", "test c ... FAILED", bad],
            false,
        );
        assert_eq!((outcome.passed, outcome.failed()), (7, 2));
        assert!(outcome.to_string().contains("failed: a::b"), "{outcome}");
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        let line = "test result: ok. 6 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(after(&[line], true).failed(), 1);
    }

    #[test]
    fn a_program_that_dies_without_a_result_is_a_failure() {
        assert_eq!(after(&["running 3 tests"], false).failed(), 1);
    }

    #[test]
    fn a_suite_without_tests_is_a_failure_unless_it_was_filtered() {
        assert_eq!(after(&[], true).failed(), 1);
        assert_eq!(Outcome::new("unit".to_owned(), false).failed(), 0);
    }
}
