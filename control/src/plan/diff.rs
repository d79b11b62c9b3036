//! The difference of two ordered tables: what to put and what to remove.

use std::collections::BTreeMap;

/// What makes one table the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<K, V> {
    /// Rows that are missing or differ.
    pub put: Vec<(K, V)>,
    /// Rows that are too many.
    pub remove: Vec<K>,
}

/// What makes `actual` equal to `wanted`, in the order of the keys.
pub fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    wanted: &BTreeMap<K, V>,
    actual: &BTreeMap<K, V>,
) -> Difference<K, V> {
    let put = wanted
        .iter()
        .filter(|(key, value)| actual.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let remove = actual
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .cloned()
        .collect();
    Difference { put, remove }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> impl Strategy<Value = BTreeMap<u8, u8>> {
        proptest::collection::btree_map(0_u8..20, 0_u8..3, 0..15)
    }

    proptest! {
        #[test]
        fn a_difference_makes_actual_what_was_wanted(wanted in table(), actual in table()) {
            let Difference { put, remove } = difference(&wanted, &actual);

            let mut after = actual.clone();
            for key in &remove {
                prop_assert!(after.remove(key).is_some());
            }
            for (key, value) in &put {
                prop_assert_ne!(after.insert(*key, *value), Some(*value));
            }
            prop_assert_eq!(after, wanted);
        }
    }
}
