//! What the agent says of itself.

pub mod cause;
pub mod logs;
