//! Where objects come from: today a watched folder of Kubernetes manifests.
//!
//! ```text
//!   files --(manifests)--> text --(located)--> trees with lines --(resource)--> Resources
//! ```
//!
//! Not here: what the objects mean for this node (`desired::merge`).

pub mod located;
pub mod manifests;
pub mod resource;

pub use resource::{Origin, Resources};
