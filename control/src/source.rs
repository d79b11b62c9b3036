//! Where objects come from: a watched folder of Kubernetes manifests, or the API server.
//!
//! ```text
//!   files --(manifests)--> text --(located)--> trees with lines --(resource)--> Resources
//!   API server --(kubernetes)--> objects --------------------------(resource)----^
//! ```
//!
//! Not here: what the objects mean for this node (`desired::merge`).

#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod located;
pub mod manifests;
pub mod resource;

pub use resource::{Origin, Resources};

/// Where this agent's objects come from.
pub enum Source {
    /// From nowhere: there are none.
    Nowhere,
    /// A folder.
    Manifests(Box<manifests::Manifests>),
    /// An API server.
    #[cfg(feature = "kubernetes")]
    Kubernetes(Box<kubernetes::Kubernetes>),
}

impl Source {
    /// Waits for a change and makes it in `resources`, the same each time; the first time, as soon as all is
    /// known. Cancel-safe.
    pub async fn next(&mut self, resources: &mut Resources) {
        match self {
            Self::Nowhere => std::future::pending().await,
            Self::Manifests(manifests) => *resources = manifests.next().await,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.next(resources).await,
        }
    }
}
