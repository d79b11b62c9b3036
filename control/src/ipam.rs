//! Addresses for services of type LoadBalancer, from pools (Cilium's LB-IPAM): one agent of the cluster gives them,
//! the others are ready to.
//!
//! ```text
//!   Services, pools ──> allocate ──> status.loadBalancer.ingress and a condition, of each service
//!    (controller)        (pure)      numbers, of each pool
//!         ▲
//!       lease: who of the agents does it
//! ```
//!
//! # Why nothing is kept
//! What a service holds stands in its status, and only there: a leader that begins reads it all before it gives
//! anything, so no address is given twice whoever led before. Every write carries the version it was decided on.
//!
//! Addresses that somebody else gave (no condition of ours on the service, outside of every pool) are left alone.
//!
//! Not here: who announces an address (`desired::announce`), or balances what comes to it.

pub mod allocate;
pub mod controller;
mod lease;
pub mod pool;
mod service;
