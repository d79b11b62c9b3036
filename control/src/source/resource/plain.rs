//! Objects of the kinds that clusters have thousands of, when nothing is wrong with them.
//!
//! What is wrong, and where, is for the reader to say that knows paths, which costs several times as much. Fields that
//! we do not know are a server's that is newer than we.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Check, Resource};

/// Reads an object; `None`: it is of another kind, or something is wrong with it.
pub(super) fn read(object: &Value) -> Option<Resource> {
    let resource = match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("v1", "Node") => Resource::Node(checked(object)?),
        ("v1", "Service") => Resource::Service(checked(object)?),
        ("discovery.k8s.io/v1", "EndpointSlice") => Resource::EndpointSlice(checked(object)?),
        _ => return None,
    };
    (!resource.name().name.is_empty()).then_some(resource)
}

fn checked<T: DeserializeOwned + Check>(object: &Value) -> Option<Box<T>> {
    let read = T::deserialize(object).ok()?;
    read.check().ok()?;
    Some(Box::new(read))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_left_to_the_reader_that_says_where() {
        let service = |port: i32| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": port}]}});
        assert!(read(&service(80)).is_some());
        assert_eq!(read(&service(70_000)), None);
        assert_eq!(read(&json!({"apiVersion": "v1", "kind": "Service"})), None);

        let told = super::super::read_value("here", service(70_000));
        assert_eq!(told.objects, []);
        let message = &told.conditions[0].message;
        assert!(message.starts_with("spec.ports[0].port: "), "{message}");
    }
}
