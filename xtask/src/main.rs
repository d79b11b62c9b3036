//! The one interface for people and CI. Room under construction.
#[cfg(test)]
#[expect(
    dead_code,
    reason = "used by `setup` and `build`, which are under construction"
)]
mod ebpf;

fn main() {}
