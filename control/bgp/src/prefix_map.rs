//! Maps and sets of prefixes, in the order of [`IpNetwork`].
//!
//! # Why not a `BTreeMap<IpNetwork, V>`
//! A table of a million routes spends its time on comparing keys. With a tree per family a key has no tag, is
//! as long as its family needs (IPv4: 5 octets, not 18), and is compared as a number.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::wire::Family;

/// A key, compared as address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct V4(Ipv4Network);

impl Ord for V4 {
    fn cmp(&self, other: &Self) -> Ordering {
        let number =
            |key: &Self| (u64::from(u32::from(key.0.ip())) << 8) | u64::from(key.0.prefix());
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for V4 {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A key, compared as address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct V6(Ipv6Network);

impl Ord for V6 {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |key: &Self| (u128::from(key.0.ip()), key.0.prefix());
        numbers(self).cmp(&numbers(other))
    }
}

impl PartialOrd for V6 {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixMap<V> {
    v4: BTreeMap<V4, V>,
    v6: BTreeMap<V6, V>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self {
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
        }
    }
}

/// The place of a prefix.
pub(crate) enum Entry<'a, V> {
    V4(btree_map::Entry<'a, V4, V>),
    V6(btree_map::Entry<'a, V6, V>),
}

impl<V> PrefixMap<V> {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether a prefix is there.
    pub fn contains_key(&self, prefix: &IpNetwork) -> bool {
        self.get(prefix).is_some()
    }

    /// Puts a value; gives back the one before.
    pub fn insert(&mut self, prefix: IpNetwork, value: V) -> Option<V> {
        match prefix {
            IpNetwork::V4(v4) => self.v4.insert(V4(v4), value),
            IpNetwork::V6(v6) => self.v6.insert(V6(v6), value),
        }
    }

    /// Takes a value away.
    pub fn remove(&mut self, prefix: &IpNetwork) -> Option<V> {
        match prefix {
            IpNetwork::V4(v4) => self.v4.remove(&V4(*v4)),
            IpNetwork::V6(v6) => self.v6.remove(&V6(*v6)),
        }
    }

    /// The value of a prefix.
    pub fn get(&self, prefix: &IpNetwork) -> Option<&V> {
        match prefix {
            IpNetwork::V4(v4) => self.v4.get(&V4(*v4)),
            IpNetwork::V6(v6) => self.v6.get(&V6(*v6)),
        }
    }

    /// Puts a value, unless the prefix has one.
    pub(crate) fn insert_if_new(&mut self, prefix: IpNetwork, value: V) {
        match prefix {
            IpNetwork::V4(v4) => {
                self.v4.entry(V4(v4)).or_insert(value);
            }
            IpNetwork::V6(v6) => {
                self.v6.entry(V6(v6)).or_insert(value);
            }
        }
    }

    /// Takes the first prefix away.
    pub(crate) fn pop_first(&mut self) -> Option<(IpNetwork, V)> {
        if let Some((key, value)) = self.v4.pop_first() {
            return Some((key.0.into(), value));
        }
        let (key, value) = self.v6.pop_first()?;
        Some((key.0.into(), value))
    }

    /// How many there are of a family.
    pub(crate) fn count(&self, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.v4.len(),
            Family::Ipv6Unicast => self.v6.len(),
        }
    }

    pub(crate) fn entry(&mut self, prefix: IpNetwork) -> Entry<'_, V> {
        match prefix {
            IpNetwork::V4(v4) => Entry::V4(self.v4.entry(V4(v4))),
            IpNetwork::V6(v6) => Entry::V6(self.v6.entry(V6(v6))),
        }
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNetwork, &V)> {
        let v4 = self.v4.iter().map(|(key, value)| (key.0.into(), value));
        v4.chain(self.v6.iter().map(|(key, value)| (key.0.into(), value)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (IpNetwork, &mut V)> {
        let v4 = self.v4.iter_mut().map(|(key, value)| (key.0.into(), value));
        v4.chain(self.v6.iter_mut().map(|(key, value)| (key.0.into(), value)))
    }

    /// All prefixes, in their order.
    pub fn keys(&self) -> impl Iterator<Item = IpNetwork> {
        self.iter().map(|(prefix, _)| prefix)
    }

    /// The prefixes whose addresses lie inside of one.
    pub(crate) fn within(&self, outer: &IpNetwork) -> Vec<IpNetwork> {
        match outer {
            IpNetwork::V4(outer) => {
                let bounds = Ipv4Network::new(outer.network(), 0)
                    .and_then(|first| Ok((first, Ipv4Network::new(outer.broadcast(), 32)?)));
                let rows = bounds.map(|(first, last)| self.v4.range(V4(first)..=V4(last)));
                let rows = rows.into_iter().flatten();
                rows.map(|(key, _)| key.0.into()).collect()
            }
            IpNetwork::V6(outer) => {
                let bounds = Ipv6Network::new(outer.network(), 0)
                    .and_then(|first| Ok((first, Ipv6Network::new(outer.broadcast(), 128)?)));
                let rows = bounds.map(|(first, last)| self.v6.range(V6(first)..=V6(last)));
                let rows = rows.into_iter().flatten();
                rows.map(|(key, _)| key.0.into()).collect()
            }
        }
    }
}

impl<V> FromIterator<(IpNetwork, V)> for PrefixMap<V> {
    fn from_iter<I: IntoIterator<Item = (IpNetwork, V)>>(rows: I) -> Self {
        let mut map = Self::default();
        for (prefix, value) in rows {
            map.insert(prefix, value);
        }
        map
    }
}

/// A set of prefixes.
#[derive(Debug, Default)]
pub(crate) struct PrefixSet(PrefixMap<()>);

impl PrefixSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn insert(&mut self, prefix: IpNetwork) {
        self.0.insert(prefix, ());
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, prefix: &IpNetwork) -> bool {
        self.0.remove(prefix).is_some()
    }

    pub(crate) fn pop_first(&mut self) -> Option<IpNetwork> {
        self.0.pop_first().map(|(prefix, ())| prefix)
    }
}

impl Extend<IpNetwork> for PrefixSet {
    fn extend<I: IntoIterator<Item = IpNetwork>>(&mut self, prefixes: I) {
        for prefix in prefixes {
            self.insert(prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        (any::<bool>(), 0..4_u8, 0..4_u8, 0..=32_u8).prop_map(|(is_v4, first, last, length)| {
            let (address, length) = if is_v4 {
                (IpAddr::from([first << 6, 0, 0, last]), length)
            } else {
                let mut octets = [0; 16];
                octets[0] = first << 6;
                octets[15] = last;
                (IpAddr::from(octets), length * 4)
            };
            let network = IpNetwork::new(address, length).unwrap().network();
            IpNetwork::new(network, length).unwrap()
        })
    }

    proptest! {
        #[test]
        fn it_is_a_set_in_the_order_of_prefixes(
            inserted in proptest::collection::vec(prefix(), 0..40),
            removed in proptest::collection::vec(prefix(), 0..20),
            outer in prefix(),
        ) {
            let mut set = PrefixSet::default();
            let mut model: BTreeSet<IpNetwork> = inserted.iter().copied().collect();
            set.extend(inserted);
            for prefix in removed {
                prop_assert_eq!(set.remove(&prefix), model.remove(&prefix));
            }
            prop_assert_eq!(set.0.keys().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let inside: Vec<_> = set.0.within(&outer);
            let is_inside = |prefix: &&IpNetwork| {
                prefix.is_ipv4() == outer.is_ipv4() && outer.contains(prefix.ip())
            };
            prop_assert_eq!(inside, model.iter().filter(is_inside).copied().collect::<Vec<_>>());
            prop_assert_eq!(set.pop_first(), model.pop_first());
        }
    }
}
