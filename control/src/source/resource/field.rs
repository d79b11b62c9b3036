//! Fields that objects of several kinds have: numbers within limits, selectors.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Deserializer};

use super::Wrong;
use crate::object::{self, Requirement};
use crate::source::located::FieldPath;

/// A number within limits.
pub(super) fn within<'de, T, const LEAST: i64, const MOST: i64, D>(
    deserializer: D,
) -> Result<T, D::Error>
where
    T: TryFrom<i64>,
    D: Deserializer<'de>,
{
    let number = i64::deserialize(deserializer)?;
    T::try_from(number)
        .ok()
        .filter(|_| (LEAST..=MOST).contains(&number))
        .ok_or_else(|| {
            serde::de::Error::custom(format!("{number} is not within {LEAST} to {MOST}"))
        })
}

/// A number within limits, or none.
pub(super) fn within_if_any<'de, T, const LEAST: i64, const MOST: i64, D>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    T: TryFrom<i64>,
    D: Deserializer<'de>,
{
    struct Within<T, const LEAST: i64, const MOST: i64>(T);

    impl<'de, T: TryFrom<i64>, const LEAST: i64, const MOST: i64> Deserialize<'de>
        for Within<T, LEAST, MOST>
    {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            within::<T, LEAST, MOST, D>(deserializer).map(Self)
        }
    }

    let number = Option::<Within<T, LEAST, MOST>>::deserialize(deserializer)?;
    Ok(number.map(|within| within.0))
}

/// Checks a selector that may be absent.
pub(super) fn check_selector(
    path: &FieldPath,
    key: &str,
    selector: Option<&LabelSelector>,
) -> Result<(), Wrong> {
    let Some(selector) = selector else {
        return Ok(());
    };
    label_selector(selector).map(drop).map_err(|why| Wrong {
        path: path.clone().key(key),
        why,
    })
}

/// A selector as a value that answers.
///
/// # Errors
/// An expression contradicts itself; the text says how.
pub fn label_selector(selector: &LabelSelector) -> Result<object::LabelSelector, String> {
    let mut match_expressions = Vec::new();
    for need in selector.match_expressions.iter().flatten() {
        let key = need.key.clone();
        let values: std::collections::BTreeSet<_> = need.values.iter().flatten().cloned().collect();
        match_expressions.push(match (need.operator.as_str(), values.is_empty()) {
            ("In", false) => Requirement::In(key, values),
            ("NotIn", false) => Requirement::NotIn(key, values),
            ("Exists", true) => Requirement::Exists(key),
            ("DoesNotExist", true) => Requirement::DoesNotExist(key),
            ("In" | "NotIn", true) => {
                return Err(format!("{} {key}: needs values", need.operator));
            }
            ("Exists" | "DoesNotExist", false) => {
                return Err(format!("{} {key}: takes no values", need.operator));
            }
            (other, _) => {
                return Err(format!(
                    "{other} is no operator; use In, NotIn, Exists or DoesNotExist"
                ));
            }
        });
    }
    Ok(object::LabelSelector {
        match_labels: selector.match_labels.clone().unwrap_or_default(),
        match_expressions,
    })
}
