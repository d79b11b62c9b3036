//! The agent and `dpctl`: everything of Fairlead that runs in userspace.
//!
//! ```text
//!  config ─┐
//!  source/manifests ─┬─> desired ──> plan ──> dataplane/apply ──> BPF maps
//!  host (links, routes) ┘     │        ^                             │
//!                             │        └──── dataplane/observe <─────┘  (actual)
//!                             └─> announcements ──> bgp_io <──> peers
//!  peers ──> bgp_io ──> learnt routes ──> plan/routes ──> host/routes ──> kernel table
//!                    api (unix socket) reads snapshots; dpctl asks it
//! ```
//!
//! State flows one way; each arrow is a pure function but the first and the last. `agent` is the only
//! room that knows every task and channel.

use mimalloc::MiMalloc;

/// Maps of small objects are most of what the agent holds: with the C library's allocator ten thousand services take
/// two thirds more memory, and a change among them a third more time (`cargo xtask bench plan`).
///
/// Without huge pages: the kernel clears, or first has to make, two megabytes for what may need four kilobytes. Ten
/// thousand routes took 17 or 50 ms, as it happened, and 35 MB; without, always about 20 ms, and 11 MB. A million cost
/// the same with and without (`cargo xtask bench bgp`).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

pub mod agent;
pub mod api;
pub mod bgp_io;
pub mod cleanup;
pub mod cni;
pub mod command;
pub mod config;
mod cores;
pub mod dataplane;
pub mod desired;
pub mod dpctl;
pub mod health;
pub mod host;
#[cfg(feature = "kubernetes")]
pub mod ipam;
pub mod object;
pub mod plan;
pub mod pod;
pub mod source;
pub mod telemetry;
pub mod view;
