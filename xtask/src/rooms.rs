//! The shape of the tree: a file is a room, its name says what it is for, and it is not too long.
//!
//! Not for who may import whom: that is `layers`.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A longer file says why, in a section `# Size` of its module doc.
const LONGEST: usize = 600;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "misc", "manager", "common2"];

/// Checks every Rust file of the workspace.
///
/// # Errors
/// Names each file that breaks a rule, and the rule.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let mut faults = Vec::new();
    for file in workspace::rust_files(root)? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(&file);
        faults.extend(faults_of(path, &text));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        bail!("{}", faults.join("\n"))
    }
}

fn faults_of(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let shown = path.display();
    for part in path.iter().filter_map(|part| part.to_str()) {
        let name = part.strip_suffix(".rs").unwrap_or(part);
        if EMPTY_NAMES.contains(&name) {
            faults.push(format!(
                "{shown}: `{name}` does not say what the room is for; name it after its noun"
            ));
        }
    }
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        faults.push(format!(
            "{shown}: write `room.rs` beside `room/`, not `room/mod.rs`"
        ));
    }
    let lines = text.lines().count();
    let says_why = text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .any(|line| line == "//! # Size");
    if lines > LONGEST && !says_why {
        faults.push(format!(
            "{shown}: {lines} lines; split it, or say why not in a section `# Size` of its module doc \
             (the limit is {LONGEST})"
        ));
    }
    let in_tests_folder = path
        .parent()
        .is_some_and(|folder| folder.ends_with("tests"));
    if in_tests_folder && !path.starts_with("tests/tests") && !path.iter().any(|part| part == "src")
    {
        faults.push(format!(
            "{shown}: integration tests live in tests/tests, where `cargo xtask test` sorts them"
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> usize {
        faults_of(Path::new(path), text).len()
    }

    #[test]
    fn a_name_that_says_nothing_is_refused_as_file_and_as_folder() {
        assert_eq!(faults("control/src/utils.rs", ""), 1);
        assert_eq!(faults("control/src/helpers/hash.rs", ""), 1);
        assert_eq!(faults("control/src/plan/mod.rs", ""), 1);
        assert_eq!(faults("control/src/plan.rs", ""), 0);
    }

    #[test]
    fn a_long_file_must_say_why() {
        let body = "fn f() {}\n".repeat(LONGEST);
        assert_eq!(faults("a.rs", &body), 0);
        assert_eq!(faults("a.rs", &format!("//! Room.\n{body}")), 1);
        assert_eq!(
            faults(
                "a.rs",
                &format!("//! Room.\n//!\n//! # Size\n//! One table.\n{body}")
            ),
            0
        );
        assert_eq!(
            faults("a.rs", &format!("fn f() {{}}\n//! # Size\n{body}")),
            1
        );
    }

    #[test]
    fn an_integration_test_outside_the_tests_crate_is_refused() {
        assert_eq!(faults("control/tests/agent.rs", ""), 1);
        assert_eq!(faults("tests/tests/agent.rs", ""), 0);
        assert_eq!(faults("tests/src/packet.rs", ""), 0);
    }
}
