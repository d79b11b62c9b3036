//! An error and what caused it, on one line.
//!
//! Not for what to do about it: an error's own text says that.

/// The error and its causes, outermost first, each said once: many errors end with their cause's text
/// and name it as their source as well.
pub fn line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        if said.is_empty() {
            cause
        } else if said.ends_with(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_follow_their_error() {
        let error = anyhow!("denied").context("opening a").context("starting");

        assert_eq!(line(&error), "starting: opening a: denied");
    }

    #[test]
    fn a_cause_that_an_error_tells_itself_is_not_told_again() {
        let error = anyhow!("denied")
            .context("opening a: denied")
            .context("starting");

        assert_eq!(line(&error), "starting: opening a: denied");
    }
}
