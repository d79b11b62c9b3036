//! Questions and answers over the agent's unix socket: JSON over HTTP, so that
//! `curl --unix-socket /run/fairlead/agent.sock http://x/v1/status` works, too.

pub mod client;
pub mod server;
pub mod types;
