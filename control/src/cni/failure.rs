//! Why a command failed, as a runtime reads it: a code, a sentence, details.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::NEWEST;

/// The codes of the specification (CNI 1.1, "Well-known error codes"), and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The network configuration is of a version that is not spoken.
    IncompatibleVersion,
    /// A field of the network configuration is not supported.
    UnsupportedField,
    /// The container is not there; nothing of it has to be cleaned up.
    UnknownContainer,
    /// A variable of the environment is missing or wrong.
    Environment,
    /// Something could not be read or written.
    Io,
    /// Something that was read is not what it should be.
    Decoding,
    /// The network configuration is wrong.
    Configuration,
    /// The plugin cannot serve new pods.
    NotAvailable,
    /// As before, and pods that are there may be without a part of their network.
    LimitedConnectivity,
    /// The kernel refused a part of the network.
    Network,
    /// A pod is not as it was made.
    Differs,
    /// The IPAM plugin failed without saying how.
    Ipam,
    /// What another plugin said.
    Other(u32),
}

impl Code {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::Configuration => 7,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Network => 100,
            Self::Differs => 101,
            Self::Ipam => 102,
            Self::Other(number) => number,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// What else went wrong on the way.
    pub details: String,
}

/// What a plugin prints when it fails; also that of other plugins.
#[derive(Debug, Serialize, Deserialize)]
struct Printed {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// What another plugin printed; `None` when that is no error of CNI.
    pub fn of_plugin(plugin: &str, printed: &[u8]) -> Option<Self> {
        let Printed { code, msg, details } = serde_json::from_slice(printed).ok()?;
        Some(Self {
            code: Code::Other(code),
            message: format!("{plugin}: {msg}"),
            details,
        })
    }

    /// Adds a sentence to the details.
    #[must_use]
    pub fn with(mut self, detail: impl fmt::Display) -> Self {
        if !self.details.is_empty() {
            self.details += "; ";
        }
        self.details += &detail.to_string();
        self
    }

    /// As it is printed for a runtime that speaks `version`.
    pub fn render(&self, version: Option<&str>) -> Value {
        let mut text = json!({
            "cniVersion": version.unwrap_or(NEWEST),
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            text["details"] = json!(self.details);
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.details)
        }
    }
}

impl From<crate::host::Error> for Failure {
    fn from(error: crate::host::Error) -> Self {
        Self::new(Code::Network, error.to_string())
    }
}
