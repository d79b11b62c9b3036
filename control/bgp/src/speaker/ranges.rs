//! Peers that nobody named: they dial from a range, and are gone with their sessions.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{Event, Speaker};
use crate::config::{PeerConfig, PeerRange};
use crate::peer::{Peer, Range};

impl Speaker {
    /// Makes the ranges exactly these. Sessions of peers that no range lets in any more end; those of the others change
    /// as [`Self::set_peer`] changes them.
    pub fn set_ranges(&mut self, ranges: Vec<PeerRange>, now: Instant) {
        self.ranges = ranges;
        let members: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.range().is_some())
            .map(|peer| (peer.name().to_owned(), peer.address()))
            .collect();
        for (name, address) in members {
            let found = self.range_of(address).cloned();
            let Some((id, range)) = self.find(&name).zip(found) else {
                self.remove_peer(&name, now);
                continue;
            };
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.belong(range.member());
                peer.reconfigure(range.peer(address), now, &mut self.shared);
            }
        }
        self.dismiss(now);
        self.pass_on(now);
    }

    /// Lets in who dials from a range, unless it is full.
    pub(super) fn admit(&mut self, remote: SocketAddr, now: Instant) {
        if self.peers.values().any(|peer| peer.is_at(remote)) {
            return;
        }
        let address = remote.ip().to_canonical();
        let Some(range) = self.range_of(address) else {
            return;
        };
        let name = range.template.name.clone();
        let members = self
            .peers
            .values()
            .filter(|peer| peer.range() == Some(&name));
        if members.count() >= range.limit {
            let full = Event::RangeFull {
                peer: name,
                address,
            };
            self.shared.events.push_back(full);
            return;
        }
        let (peer, member) = (range.peer(address), range.member());
        if self.find(&peer.name).is_none() {
            self.add(peer, Some(member), now);
        }
    }

    /// Forgets peers of ranges whose sessions are over.
    pub(super) fn dismiss(&mut self, now: Instant) {
        if self.ranges.is_empty() {
            return;
        }
        let over: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.is_over())
            .map(|peer| peer.name().to_owned())
            .collect();
        for name in over {
            self.remove_peer(&name, now);
        }
    }

    /// A peer that is named now is not one of a range any more.
    pub(super) fn give_way(&mut self, named: &PeerConfig, now: Instant) {
        let is_in_its_way = |peer: &&Peer| {
            peer.range().is_some() && (peer.name() == named.name || peer.address() == named.address)
        };
        let found = self.peers.values().find(is_in_its_way);
        if let Some(name) = found.map(|peer| peer.name().to_owned()) {
            self.remove_peer(&name, now);
        }
    }

    /// The range that an address is in: the one of the longest prefix.
    fn range_of(&self, address: IpAddr) -> Option<&PeerRange> {
        let fitting = self
            .ranges
            .iter()
            .filter(|range| range.prefix.contains(address));
        fitting.max_by_key(|range| range.prefix.prefix())
    }
}

impl PeerRange {
    fn member(&self) -> Range {
        Range {
            name: self.template.name.clone(),
            asns: self.asns.clone(),
        }
    }
}
