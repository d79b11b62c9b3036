//! Whether a test that needs root runs, and how it says that it does not.

/// Whether this process may make namespaces and load programs. If not, the test says so and is
/// skipped; where every test must run (`FAIRLEAD_REQUIRE_ALL_TESTS=1`) that is a failure.
///
/// # Panics
/// Not root, and every test must run.
#[must_use]
pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skip("needs root: run it with sudo -E cargo xtask test");
    false
}

/// Says why a test is skipped.
///
/// # Panics
/// Every test must run.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("FAIRLEAD_REQUIRE_ALL_TESTS").is_none(),
        "a test that must run would be skipped: {reason}"
    );
    #[expect(clippy::print_stderr, reason = "a skipped test is never silent")]
    {
        eprintln!("SKIPPED: {reason}");
    }
}
