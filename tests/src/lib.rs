//! What the integration tests and the demonstration stand on: network namespaces, processes, real
//! peers, packets and the kernel's own test run.

pub mod bpffs;
pub mod cgroup;
pub mod cluster;
pub mod host;
pub mod kernel;
pub mod lab;
pub mod netlink;
pub mod netns;
pub mod packet;
pub mod peer;
pub mod place;
pub mod process;
pub mod report;
pub mod root;
