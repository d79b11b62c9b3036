//! `kubectl fairlead`: `dpctl` on every node of a cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairlead_control::dpctl::everywhere::main()
}
