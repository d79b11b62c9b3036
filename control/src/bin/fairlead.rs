//! `fairlead`: the agent and the few things done beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairlead_control::command::main()
}
