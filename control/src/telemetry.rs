//! What the agent says of itself.

pub mod logs;
