//! The definitions of our own kinds (`CustomResourceDefinition`), made from the types that read the objects: what an
//! API server refuses is what the agent would refuse, said when it is applied.
//!
//! The chart's `crds/fairlead.io.yaml` is this text; `cargo xtask dist crds` writes it.
//!
//! Not for Cilium's kinds: they are Cilium's to define, and the chart's are no more than it takes to read them.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, json_schema};
use serde_json::{Value, json};

use super::peer_profile;

/// What stands above the definitions.
const HEAD: &str = "# Fairlead's own kinds: what Cilium's objects have no field for. Written by `cargo xtask dist crds`.\n";

/// A kind of ours.
struct Kind {
    name: &'static str,
    plural: &'static str,
    short: &'static str,
    /// What `kubectl get` shows: a heading, a type, a path.
    columns: &'static [(&'static str, &'static str, &'static str)],
    spec: fn() -> Value,
}

/// All of them.
const KINDS: [Kind; 1] = [Kind {
    name: "BGPPeerProfile",
    plural: "bgppeerprofiles",
    short: "bgpprofile",
    columns: &[
        ("Peers", "string", ".spec.peers"),
        ("BFD", "integer", ".spec.bfd.detectMultiplier"),
        ("Passive", "boolean", ".spec.passive"),
        ("Transit", "boolean", ".spec.transit"),
        ("Shutdown", "string", ".spec.shutdown"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ],
    spec: schema_of::<peer_profile::Spec>,
}];

/// The definitions as YAML documents.
///
/// # Errors
/// The text cannot be written; it is always the same, so a test would say so.
pub fn definitions() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = HEAD.to_owned();
    for (index, kind) in KINDS.iter().enumerate() {
        if index > 0 {
            text += "---\n";
        }
        text += &serde_saphyr::to_string(&definition(kind))?;
    }
    Ok(text)
}

fn definition(kind: &Kind) -> Value {
    let columns: Vec<_> = kind
        .columns
        .iter()
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.fairlead.io", kind.plural)},
        "spec": {
            "group": "fairlead.io",
            "scope": "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": format!("{}List", kind.name),
                "plural": kind.plural,
                "singular": kind.name.to_lowercase(),
                "shortNames": [kind.short],
                "categories": ["fairlead"],
            },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "spec": (kind.spec)(),
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    },
                }},
            }],
        },
    })
}

/// The schema of a type, in the words that an API server takes ("structural schema").
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        settings.transforms.push(Box::new(Structural));
    });
    settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Takes away what an API server does not know or refuses.
#[derive(Clone, Debug)]
struct Structural;

impl Transform for Structural {
    fn transform(&mut self, schema: &mut Schema) {
        // `uint8` and the like are limits already.
        for key in ["title", "format"] {
            schema.remove(key);
        }
        if schema.get("default").is_some_and(Value::is_null) {
            schema.remove("default");
        }
        transform_subschemas(self, schema);
    }
}

/// The schema of a `LabelSelector` (meta/v1).
pub(super) fn label_selector(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string"},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "items": {"type": "string"}},
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::resource::peer_profile::PeerProfile;

    #[test]
    fn the_chart_has_what_the_types_say() {
        let chart = include_str!("../../../packaging/helm/fairlead/crds/fairlead.io.yaml");

        assert!(
            definitions().unwrap() == chart,
            "the chart's definitions are not those of the types; `cargo xtask dist crds` writes them"
        );
    }

    /// The number at a path is the only thing that a profile says, but for what must stand beside it.
    fn is_read(path: &[&str], number: i64) -> bool {
        let mut spec = path
            .iter()
            .rev()
            .fold(json!(number), |value, key| json!({ *key: value }));
        if *path == ["range", "limit"] {
            spec["range"]["prefixLength"] = json!(24);
        }
        let object = json!({
            "apiVersion": "fairlead.io/v1alpha1", "kind": "BGPPeerProfile", "metadata": {"name": "a"},
            "spec": spec,
        });
        serde_json::from_value::<PeerProfile>(object).is_ok()
    }

    /// The numbers of a schema, by their path, and their limits.
    fn limits(schema: &Value, path: &[&'static str]) -> Vec<(Vec<&'static str>, i64, i64)> {
        let mut found = Vec::new();
        for (key, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = [path, &[&*key.clone().leak()]].concat();
            if field["type"] == "integer" {
                let limit = |name: &str| field[name].as_i64().unwrap();
                found.push((path, limit("minimum"), limit("maximum")));
            } else {
                found.extend(limits(field, &path));
            }
        }
        found
    }

    #[test]
    fn an_api_server_refuses_the_numbers_that_the_agent_refuses() {
        let schema = schema_of::<peer_profile::Spec>();
        assert_eq!(schema.get("required"), None, "nothing must be said");
        let numbers = limits(&schema, &[]);

        assert_eq!(numbers.len(), 8, "{numbers:?}");
        for (path, least, most) in numbers {
            assert!(is_read(&path, least) && is_read(&path, most), "{path:?}");
            assert!(!is_read(&path, least - 1), "{path:?}: {least}");
            assert!(!is_read(&path, most + 1), "{path:?}: {most}");
        }
    }

    #[test]
    fn a_schema_has_only_words_that_an_api_server_knows() {
        fn words(value: &Value, found: &mut std::collections::BTreeSet<String>) {
            let properties = value["properties"].as_object();
            for field in properties.into_iter().flat_map(serde_json::Map::values) {
                words(field, found);
            }
            if let Some(items) = value.get("items") {
                words(items, found);
            }
            found.extend(value.as_object().unwrap().keys().cloned());
        }
        let mut found = std::collections::BTreeSet::new();

        words(&schema_of::<peer_profile::Spec>(), &mut found);

        let known = [
            "default",
            "description",
            "enum",
            "items",
            "maxLength",
            "maximum",
            "minProperties",
            "minimum",
            "nullable",
            "pattern",
            "properties",
            "required",
            "type",
            "additionalProperties",
        ];
        assert!(
            found.iter().all(|word| known.contains(&word.as_str())),
            "{found:?}"
        );
    }
}
