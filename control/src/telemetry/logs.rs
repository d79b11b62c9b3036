//! Log lines: for eyes on a terminal, JSON elsewhere.
//!
//! TRACE per packet or message, DEBUG per condition, INFO a state that a user cares about, WARN what
//! someone would look at tomorrow, ERROR the agent stops.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to stdout. `FAIRLEAD_LOG` holds a filter such as `info,fairlead_control=debug`.
pub fn start(json: Option<bool>) {
    let filter = EnvFilter::try_from_env("FAIRLEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stdout().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    if json.unwrap_or(!terminal) {
        subscriber.json().flatten_event(true).init();
    } else {
        subscriber.with_ansi(terminal).compact().init();
    }
}
