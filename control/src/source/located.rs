//! YAML (and JSON, which it contains) as a tree that knows its lines.
//!
//! A Kubernetes type is deserialized from the tree's value; a path that serde reports (a wrong type,
//! an unknown field) is then found again in the tree and has its line. Not here: what the values mean.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The line, from 1.
    pub line: u64,
    /// The value.
    pub shape: Shape,
}

/// What a value is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A list.
    List(Vec<Located>),
    /// Keys with their lines, in the order they are written.
    Map(Vec<(String, u64, Located)>),
}

/// One step of a path into a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The value of a key.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// A path into a value, printed as `spec.ports[0].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(pub Vec<Step>);

impl FieldPath {
    /// This path and one key more.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.to_owned()));
        self
    }

    /// This path and one index more.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if place == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl Located {
    /// The documents of a text; empty ones are left out. Booleans are `true` and `false` (YAML 1.2), so
    /// that a node may be called `n` and a country `no`.
    pub fn documents(text: &str) -> Result<Vec<Self>, serde_saphyr::Error> {
        serde_saphyr::from_multiple_with_options(
            text,
            serde_saphyr::options! { strict_booleans: true },
        )
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.shape {
            Shape::Map(fields) => fields
                .iter()
                .find(|(name, ..)| name == key)
                .map(|(.., value)| value),
            Shape::Scalar(_) | Shape::List(_) => None,
        }
    }

    /// The string it is, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.shape {
            Shape::Scalar(value) => value.as_str(),
            Shape::List(_) | Shape::Map(_) => None,
        }
    }

    /// The line of the field at `path`, or of the innermost part of the path that is there.
    pub fn line_of(&self, path: &FieldPath) -> u64 {
        let mut here = self;
        let mut line = self.line;
        for step in &path.0 {
            let next = match (step, &here.shape) {
                (Step::Key(key), Shape::Map(fields)) => fields
                    .iter()
                    .find(|(name, ..)| name == key)
                    .map(|(_, line, value)| (*line, value)),
                (Step::Index(index), Shape::List(list)) => {
                    list.get(*index).map(|value| (value.line, value))
                }
                (Step::Key(_), Shape::List(_) | Shape::Scalar(_))
                | (Step::Index(_), Shape::Map(_) | Shape::Scalar(_)) => None,
            };
            match next {
                Some((at, value)) => {
                    line = at;
                    here = value;
                }
                None => break,
            }
        }
        line
    }

    /// The value without its lines.
    pub fn to_value(&self) -> Value {
        match &self.shape {
            Shape::Scalar(value) => value.clone(),
            Shape::List(list) => Value::Array(list.iter().map(Self::to_value).collect()),
            Shape::Map(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, _, value)| (key.clone(), value.to_value()))
                    .collect(),
            ),
        }
    }
}

/// A value that stands on no line.
impl From<Value> for Located {
    fn from(value: Value) -> Self {
        let shape = match value {
            Value::Array(list) => Shape::List(list.into_iter().map(Self::from).collect()),
            Value::Object(fields) => Shape::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| (key, 0, value.into()))
                    .collect(),
            ),
            scalar @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
                Shape::Scalar(scalar)
            }
        };
        Self { line: 0, shape }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Shape>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            shape: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
                Ok(Shape::Scalar(Value::Bool(value)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
                Ok(Shape::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
                Ok(Shape::Scalar(value.into()))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Shape, E> {
                Number::from_f64(value)
                    .map(|number| Shape::Scalar(Value::Number(number)))
                    .ok_or_else(|| E::custom("infinity and NaN are no values of Kubernetes"))
            }

            fn visit_str<E>(self, value: &str) -> Result<Shape, E> {
                Ok(Shape::Scalar(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<Shape, E> {
                Ok(Shape::Scalar(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Scalar(Value::Null))
            }

            fn visit_none<E>(self) -> Result<Shape, E> {
                Ok(Shape::Scalar(Value::Null))
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Shape, D::Error> {
                Shape::deserialize(inner)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Shape::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut fields = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    fields.push((key.value, key.referenced.line(), map.next_value()?));
                }
                Ok(Shape::Map(fields))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
a: 1
b:
- x: yes
  y: 'two'
---
# empty
---
c: {d: [1, 2,
  3]}
";

    #[test]
    fn every_field_knows_its_line() {
        let documents = Located::documents(TEXT).unwrap();

        assert_eq!(documents.len(), 2);
        let path = FieldPath::default().key("b").index(0).key("y");
        assert_eq!(path.to_string(), "b[0].y");
        assert_eq!(documents[0].line_of(&path), 4);
        assert_eq!(documents[0].line_of(&FieldPath::default().key("b")), 2);
        let third = FieldPath::default().key("c").key("d").index(2);
        assert_eq!(documents[1].line_of(&third), 9);
        assert_eq!(documents[1].line, 8);
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        let documents = Located::documents("[n, no, on, true]").unwrap();

        assert_eq!(
            documents[0].to_value(),
            serde_json::json!(["n", "no", "on", true])
        );
    }

    #[test]
    fn a_path_that_ends_early_has_the_line_where_it_ends() {
        let documents = Located::documents(TEXT).unwrap();

        let path = FieldPath::default().key("b").index(0).key("missing");
        assert_eq!(documents[0].line_of(&path), 3);
    }

    #[test]
    fn json_is_read_as_well() {
        let documents = Located::documents("{\"a\": [true, null, 1.5,\n\"s\"]}").unwrap();

        assert_eq!(
            documents[0].to_value(),
            serde_json::json!({"a": [true, null, 1.5, "s"]})
        );
    }

    #[test]
    fn a_quoted_number_stays_a_string() {
        let documents = Located::documents("a: '1'\nb: 1\n").unwrap();

        assert_eq!(
            documents[0].to_value(),
            serde_json::json!({"a": "1", "b": 1})
        );
    }
}
