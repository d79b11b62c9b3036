//! The paths of one prefix, and which of them are used.
//!
//! # Why a shape of its own
//! Most prefixes have one path. A million of these are kept in the table's own rows, and choosing among one
//! costs no memory.

use std::collections::BTreeMap;

use super::{Hop, Path, PeerId};
use crate::best_path::{self, Candidate, Source};

/// At least one path.
#[derive(Debug)]
pub(super) enum Paths {
    One(Path),
    #[expect(clippy::box_collection, reason = "it must not outgrow one path")]
    Many(Box<Vec<Path>>),
}

impl Paths {
    pub(super) fn as_slice(&self) -> &[Path] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Path] {
        match self {
            Self::One(path) => std::slice::from_mut(path),
            Self::Many(paths) => paths,
        }
    }

    pub(super) fn of(&self, peer: PeerId) -> Option<&Path> {
        self.as_slice().iter().find(|path| path.peer == peer)
    }

    /// Takes a path in the place of the one that its peer told before; gives that back.
    pub(super) fn put(&mut self, new: Path) -> Option<Path> {
        let peer = new.peer;
        if let Some(old) = self
            .as_mut_slice()
            .iter_mut()
            .find(|path| path.peer == peer)
        {
            return Some(std::mem::replace(old, new));
        }
        match self {
            Self::One(first) => *self = Self::Many(Box::new(vec![first.clone(), new])),
            Self::Many(paths) => paths.push(new),
        }
        None
    }

    /// Takes the path of a peer away, unless no other would be left: then it is for the caller to do that.
    pub(super) fn remove(&mut self, peer: PeerId) -> Removed {
        match self {
            Self::One(path) if path.peer == peer => Removed::Last(path.clone()),
            Self::One(_) => Removed::Nothing,
            Self::Many(paths) => {
                let Some(place) = paths.iter().position(|path| path.peer == peer) else {
                    return Removed::Nothing;
                };
                let gone = paths.remove(place);
                if let [_] = paths[..]
                    && let Some(last) = paths.pop()
                {
                    *self = Self::One(last);
                }
                Removed::One(gone)
            }
        }
    }
}

/// What became of the path of a peer.
pub(super) enum Removed {
    /// It has none.
    Nothing,
    /// Others are left.
    One(Path),
    /// It is the last one, and still there.
    Last(Path),
}

/// The used paths of a prefix, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Selection {
    #[default]
    Nothing,
    One(Hop),
    Many(Vec<Hop>),
}

impl Selection {
    pub(crate) fn as_slice(&self) -> &[Hop] {
        match self {
            Self::Nothing => &[],
            Self::One(hop) => std::slice::from_ref(hop),
            Self::Many(hops) => hops,
        }
    }
}

/// Chooses among paths.
#[derive(Debug)]
pub(super) struct Chooser {
    pub(super) sources: BTreeMap<PeerId, Source>,
    pub(super) multipath_limit: usize,
}

impl Chooser {
    pub(super) fn candidate<'s, 'a: 's>(&'s self, path: &'a Path) -> Option<Candidate<'s>> {
        Some(Candidate {
            attributes: &path.attributes,
            source: self.sources.get(&path.peer)?,
        })
    }

    /// The best path that may be used.
    pub(super) fn best<'a>(&self, paths: &'a [Path]) -> Option<&'a Path> {
        if let [path] = paths {
            return Some(path).filter(|path| path.rejection.is_none());
        }
        let usable: Vec<_> = self.usable(paths).collect();
        let candidates: Vec<_> = usable.iter().map(|(_, candidate)| *candidate).collect();
        Some(usable[best_path::rank(&candidates)?].0)
    }

    pub(super) fn select(&self, paths: &[Path]) -> Selection {
        if let [path] = paths {
            return match path.rejection {
                None => Selection::One(path.hop()),
                Some(_) => Selection::Nothing,
            };
        }
        let usable: Vec<_> = self.usable(paths).collect();
        let candidates: Vec<_> = usable.iter().map(|(_, candidate)| *candidate).collect();
        let Some(best) = best_path::rank(&candidates) else {
            return Selection::Nothing;
        };
        let mut together: Vec<_> = usable
            .iter()
            .filter(|(_, candidate)| {
                best_path::compare_for_multipath(*candidate, candidates[best])
                    .0
                    .is_eq()
            })
            .collect();
        together.sort_by(|a, b| best_path::compare(a.1, b.1).0);
        let mut hops: Vec<Hop> = Vec::new();
        for (path, _) in together {
            let hop = path.hop();
            if hops.len() < self.multipath_limit
                && hops.iter().all(|known| known.next_hop != hop.next_hop)
            {
                hops.push(hop);
            }
        }
        match hops.as_slice() {
            [hop] => Selection::One(hop.clone()),
            _ => Selection::Many(hops),
        }
    }

    fn usable<'s, 'a: 's>(
        &'s self,
        paths: &'a [Path],
    ) -> impl Iterator<Item = (&'a Path, Candidate<'s>)> + use<'s, 'a> {
        paths
            .iter()
            .filter(|path| path.rejection.is_none())
            .filter_map(|path| Some((path, self.candidate(path)?)))
    }
}

impl Path {
    fn hop(&self) -> Hop {
        Hop {
            peer: self.peer,
            next_hop: self.attributes.next_hop,
            link_local: self.attributes.link_local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_small_as_a_path() {
        assert_eq!(size_of::<Paths>(), size_of::<Path>());
        assert_eq!(size_of::<Path>(), 16);
    }
}
