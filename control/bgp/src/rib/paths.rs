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
    /// Of identifier 0.
    One(Path),
    Many(Box<Several>),
}

/// Paths that need to be told apart.
#[derive(Debug, Default)]
pub(super) struct Several {
    paths: Vec<Path>,
    /// That of each path (RFC 7911 §3); none while all are 0.
    identifiers: Vec<u32>,
}

impl Several {
    fn push(&mut self, path: Path, identifier: u32) {
        if identifier != 0 {
            self.identifiers.resize(self.paths.len(), 0);
        }
        if identifier != 0 || !self.identifiers.is_empty() {
            self.identifiers.push(identifier);
        }
        self.paths.push(path);
    }

    fn remove(&mut self, place: usize) -> Path {
        if !self.identifiers.is_empty() {
            self.identifiers.remove(place);
        }
        self.paths.remove(place)
    }
}

impl Paths {
    pub(super) fn new(path: Path, identifier: u32) -> Self {
        if identifier == 0 {
            return Self::One(path);
        }
        let mut several = Several::default();
        several.push(path, identifier);
        Self::Many(Box::new(several))
    }

    pub(super) fn as_slice(&self) -> &[Path] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(several) => &several.paths,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Path] {
        match self {
            Self::One(path) => std::slice::from_mut(path),
            Self::Many(several) => &mut several.paths,
        }
    }

    /// The identifier of the path at a place.
    pub(super) fn identifier(&self, place: usize) -> u32 {
        match self {
            Self::One(_) => 0,
            Self::Many(several) => several.identifiers.get(place).copied().unwrap_or(0),
        }
    }

    /// The paths that a peer told, with their identifiers.
    pub(super) fn of(&self, peer: PeerId) -> impl Iterator<Item = (u32, &Path)> {
        let paths = self.as_slice().iter().enumerate();
        paths
            .filter(move |(_, path)| path.peer == peer)
            .map(|(place, path)| (self.identifier(place), path))
    }

    fn place(&self, peer: PeerId, identifier: u32) -> Option<usize> {
        let mut paths = self.as_slice().iter().enumerate();
        let found = paths
            .find(|(place, path)| path.peer == peer && self.identifier(*place) == identifier)?;
        Some(found.0)
    }

    /// Takes a path in the place of the one of its identifier that its peer told before; gives that back.
    pub(super) fn put(&mut self, new: Path, identifier: u32) -> Option<Path> {
        if let Some(place) = self.place(new.peer, identifier) {
            return Some(std::mem::replace(&mut self.as_mut_slice()[place], new));
        }
        match self {
            Self::One(first) => {
                let mut several = Several::default();
                several.push(first.clone(), 0);
                several.push(new, identifier);
                *self = Self::Many(Box::new(several));
            }
            Self::Many(several) => several.push(new, identifier),
        }
        None
    }

    /// Takes a path of a peer away, unless no other would be left: then it is for the caller to do that.
    pub(super) fn remove(&mut self, peer: PeerId, identifier: u32) -> Removed {
        let Some(place) = self.place(peer, identifier) else {
            return Removed::Nothing;
        };
        match self {
            Self::One(path) => Removed::Last(path.clone()),
            Self::Many(several) if several.paths.len() == 1 => {
                Removed::Last(several.paths[place].clone())
            }
            Self::Many(several) => {
                let gone = several.remove(place);
                if let ([last], [] | [0]) = (&several.paths[..], &several.identifiers[..]) {
                    *self = Self::One(last.clone());
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
    /// The path at a place, if it may be used.
    pub(super) fn candidate<'s, 'a: 's>(
        &'s self,
        paths: &'a Paths,
        place: usize,
    ) -> Option<Candidate<'s>> {
        let path = paths.as_slice().get(place)?;
        let source = self.sources.get(&path.peer)?;
        path.rejection.is_none().then(|| Candidate {
            attributes: &path.attributes,
            source,
            identifier: paths.identifier(place),
        })
    }

    /// The best path that may be used.
    pub(super) fn best<'a>(&self, paths: &'a Paths) -> Option<&'a Path> {
        if let [path] = paths.as_slice() {
            return Some(path).filter(|path| path.rejection.is_none());
        }
        let (places, candidates) = self.usable(paths);
        Some(&paths.as_slice()[places[best_path::rank(&candidates)?]])
    }

    pub(super) fn select(&self, paths: &Paths) -> Selection {
        if let [path] = paths.as_slice() {
            return match path.rejection {
                None => Selection::One(path.hop()),
                Some(_) => Selection::Nothing,
            };
        }
        let chosen = self.choose(paths);
        let mut hops = chosen.iter().map(|place| paths.as_slice()[*place].hop());
        match chosen[..] {
            [] => Selection::Nothing,
            [_] => hops.next().map_or(Selection::Nothing, Selection::One),
            _ => Selection::Many(hops.collect()),
        }
    }

    /// The places of the paths that are used, best first.
    pub(super) fn choose(&self, paths: &Paths) -> Vec<usize> {
        let (places, candidates) = self.usable(paths);
        let Some(best) = best_path::rank(&candidates) else {
            return Vec::new();
        };
        let mut together: Vec<_> = places
            .into_iter()
            .zip(&candidates)
            .filter(|(_, candidate)| {
                best_path::compare_for_multipath(**candidate, candidates[best])
                    .0
                    .is_eq()
            })
            .collect();
        together.sort_by(|a, b| best_path::compare(*a.1, *b.1).0);
        let mut chosen: Vec<usize> = Vec::new();
        for (place, candidate) in together {
            let next_hop = candidate.attributes.next_hop;
            let mut known = chosen.iter().map(|place| &paths.as_slice()[*place]);
            if chosen.len() < self.multipath_limit
                && known.all(|known| known.attributes.next_hop != next_hop)
            {
                chosen.push(place);
            }
        }
        chosen
    }

    fn usable<'s, 'a: 's>(&'s self, paths: &'a Paths) -> (Vec<usize>, Vec<Candidate<'s>>) {
        let places = 0..paths.as_slice().len();
        places
            .filter_map(|place| Some((place, self.candidate(paths, place)?)))
            .unzip()
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
