//! The node's own configuration: `/etc/fairlead/config.yaml`, as it was written and as it was meant.
//!
//! Not here: which of flag, environment and file wins (`agent`), and Kubernetes objects (`source`).

pub mod document;
pub mod listen;
pub mod load;

pub use document::Document;
