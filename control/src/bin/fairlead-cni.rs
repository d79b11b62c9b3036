//! `fairlead-cni`: the CNI plugin. A program of its own, because each pod waits for its start.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairlead_control::cni::main()
}
