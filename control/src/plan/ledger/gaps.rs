//! Which ids have no row, without looking at those that have one.

use imbl::OrdSet;

/// The ids from 1 on that are not taken; 0 is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::plan) struct Gaps {
    /// The greatest id that is taken; 0: none is.
    top: u32,
    /// Those below it that are not.
    below: OrdSet<u32>,
}

impl Gaps {
    /// An id is taken from now on.
    pub(super) fn take(&mut self, id: u32) {
        if id > self.top {
            self.below.extend(self.top + 1..id);
            self.top = id;
        } else {
            self.below.remove(&id);
        }
    }

    /// An id is not taken any more.
    pub(super) fn give(&mut self, id: u32) {
        if id == 0 || id > self.top {
            return;
        }
        self.below.insert(id);
        while self.top > 0 && self.below.remove(&self.top).is_some() {
            self.top -= 1;
        }
    }

    /// Those that are not taken, from `first` on, ascending.
    pub(in crate::plan) fn from(&self, first: u32) -> impl Iterator<Item = u32> {
        let below = self.below.range(first..).copied();
        below.chain((self.top + 1).max(first)..)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_a_search_finds(
            steps in proptest::collection::vec((any::<bool>(), 1_u32..40), 0..80), first in 1_u32..50,
        ) {
            let (mut gaps, mut taken) = (Gaps::default(), BTreeSet::new());
            for (takes, id) in steps {
                if takes {
                    gaps.take(id);
                    taken.insert(id);
                } else {
                    gaps.give(id);
                    taken.remove(&id);
                }
            }

            let found: Vec<_> = gaps.from(first).take(60).collect();
            let expected: Vec<_> = (first..).filter(|id| !taken.contains(id)).take(60).collect();
            prop_assert_eq!(found, expected);
            let mut again = Gaps::default();
            for id in &taken {
                again.take(*id);
            }
            prop_assert_eq!(again, gaps);
        }
    }
}
