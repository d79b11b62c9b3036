//! An object that the API server told, read where it was heard: a watch is a task, and whoever keeps all objects has
//! their order to see to alone.

use std::sync::Arc;

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::kinds::KINDS;
use crate::object::ObjectName;
use crate::source::resource::{self, Reading};

/// An object, and what it says.
#[derive(Clone, Debug)]
pub struct Read {
    /// Its name, as the server has it.
    pub name: ObjectName,
    /// Its text, as the snapshot keeps it.
    pub text: Arc<RawValue>,
    /// What it says, or why it cannot be read.
    pub reading: Reading,
}

impl Read {
    /// Reads an object of the kind with this number in [`KINDS`], told by `server`.
    pub fn of(server: &str, kind: usize, object: Value) -> Self {
        let name = name_of(&object);
        let Ok(text) = to_raw_value(&object) else {
            unreachable!("a value from JSON is JSON")
        };
        let mut reading = resource::read_value(server, object);
        // A server newer than our types has fields for others; in Cilium's kinds what we lack is what we do not do.
        reading
            .conditions
            .retain(|c| KINDS[kind].is_custom || c.reason != "UnknownField");
        Self {
            name,
            text: text.into(),
            reading,
        }
    }
}

fn name_of(object: &Value) -> ObjectName {
    let text = |key: &str| {
        object["metadata"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    ObjectName {
        namespace: text("namespace"),
        name: text("name"),
    }
}
