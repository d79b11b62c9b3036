//! What the agent says of itself.
//!
//! ```text
//!   tracing ──> logs ──> stdout
//!   agent ───> health (beats, latches) ──┐
//!   agent ───> metrics::Meter ───────────┼─> exporter ──> /livez /readyz /metrics
//!   view ────> metrics::Figures ─────────┘
//!   desired ─> health_checks ──> spec.healthCheckNodePort
//! ```

pub mod cause;
pub mod exporter;
pub mod health;
pub mod health_checks;
pub mod logs;
pub mod metrics;
