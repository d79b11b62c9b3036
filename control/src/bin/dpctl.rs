//! `dpctl`: asks what the node does and why.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairlead_control::dpctl::main()
}
