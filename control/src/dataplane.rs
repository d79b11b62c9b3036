//! The edge towards the kernel's BPF side: loading, attaching, reading and writing tables.
//!
//! ```text
//!   pins   where everything is pinned, and who may change it
//!   load   embedded object -> maps and programs      attach  programs -> devices, by pinned links
//!   sockets  programs -> a cgroup, likewise
//!   table  typed rows          mapped, batch  the two faster ways to them
//!   decap  a backend behind a router: the one program it needs
//!   affinity  clients whose backend has left, let go      kept  flows that are translated to backends
//!   serving, copies  tables that follow from others, so that a packet's question is cheap
//!   apply  plan -> tables      observe  tables -> counters      dump  tables -> text for people
//! ```
//!
//! Everything that outlives the agent is a pin, so a new agent takes over without a packet noticing.
//!
//! Not here: what the tables should hold (`plan`), and devices' own settings (`host`).

pub mod affinity;
pub mod apply;
pub mod attach;
pub mod batch;
mod clsact;
mod copies;
pub mod decap;
pub mod dump;
pub mod kept;
pub mod link;
pub mod load;
pub mod mapped;
pub mod observe;
pub mod pins;
pub mod rehearse;
mod serving;
pub mod sockets;
pub mod table;
