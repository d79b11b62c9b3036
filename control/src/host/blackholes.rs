//! Prefixes that are announced as wholes: what comes for one and is for nothing in it is dropped here.
//! Without that it would follow the default route back to who sent it.
//!
//! Not for which prefixes those are (`desired::announce`).

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};

use super::routes::{learnt, prefix};
use super::{Error, Netlink, PROTOCOL};

impl Netlink {
    /// Makes our blackhole routes exactly these.
    ///
    /// # Errors
    /// The first that could not be written or removed; the others are tried all the same.
    pub async fn keep_blackholes(&self, wanted: &BTreeSet<IpNetwork>) -> Result<(), Error> {
        let all = self.routes_of(PROTOCOL).await?;
        let known: BTreeSet<_> = all
            .iter()
            .filter(|r| is_one(r))
            .filter_map(prefix)
            .collect();
        let mut outcome = Ok(());
        for prefix in wanted.difference(&known) {
            let route = self.handle.route().add(blackhole(*prefix)).replace();
            let written = route.execute().await;
            outcome =
                outcome.and(written.map_err(Error::new(format!("writing blackhole {prefix}"))));
        }
        for prefix in known.difference(wanted) {
            let removed = self.handle.route().del(blackhole(*prefix)).execute().await;
            outcome =
                outcome.and(removed.map_err(Error::new(format!("removing blackhole {prefix}"))));
        }
        outcome
    }
}

/// Whether a route drops what it is for.
pub(super) fn is_one(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::BlackHole
}

fn blackhole(prefix: IpNetwork) -> RouteMessage {
    let mut message = learnt(prefix);
    message.header.kind = RouteType::BlackHole;
    message
}
