//! `fairlead`: the agent and the few things done beside it; called as `dpctl` it is that: an image holds one program.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some("dpctl".as_ref()) {
        fairlead_control::dpctl::main()
    } else {
        fairlead_control::command::main()
    }
}
