//! Routes learnt by BGP against the kernel's routes with our protocol number.
//!
//! Not here: which learnt routes are imported (`config`, the speaker), and netlink (`host::routes`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::diff::{Difference, difference};

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The router.
    pub via: IpAddr,
    /// The device it is behind, by index. Wanted without: the kernel finds it; the kernel always says it.
    pub dev: Option<u32>,
}

/// Routes by prefix; several next hops share the traffic.
pub type Routes = BTreeMap<IpNetwork, BTreeSet<NextHop>>;

/// One change of the kernel's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteStep {
    /// Adds a route.
    Add(IpNetwork, BTreeSet<NextHop>),
    /// Gives a route other next hops, without a moment in which it is not there.
    Replace(IpNetwork, BTreeSet<NextHop>),
    /// Removes a route.
    Remove(IpNetwork),
}

impl RouteStep {
    /// The prefix that changes.
    pub const fn prefix(&self) -> IpNetwork {
        match self {
            Self::Add(prefix, _) | Self::Replace(prefix, _) | Self::Remove(prefix) => *prefix,
        }
    }
}

/// What makes the kernel's routes equal to the wanted ones: additions before removals, so that a more
/// specific route that goes away finds its successor in place. A route without next hops is not wanted.
pub fn plan(wanted: &Routes, kernel: &Routes) -> Vec<RouteStep> {
    let wanted: Routes = wanted
        .iter()
        .filter(|(_, hops)| !hops.is_empty())
        .map(|(prefix, hops)| {
            let known = kernel.get(prefix).filter(|known| is_met_by(hops, known));
            (*prefix, known.unwrap_or(hops).clone())
        })
        .collect();
    let Difference { put, remove } = difference(&wanted, kernel);
    put.into_iter()
        .map(|(prefix, hops)| {
            if kernel.contains_key(&prefix) {
                RouteStep::Replace(prefix, hops)
            } else {
                RouteStep::Add(prefix, hops)
            }
        })
        .chain(remove.into_iter().map(RouteStep::Remove))
        .collect()
}

/// Whether the kernel's next hops are the wanted ones; a wanted one without a device is met by any.
fn is_met_by(wanted: &BTreeSet<NextHop>, kernel: &BTreeSet<NextHop>) -> bool {
    wanted.len() == kernel.len()
        && wanted.iter().all(|hop| {
            kernel
                .iter()
                .any(|known| known.via == hop.via && (hop.dev.is_none() || hop.dev == known.dev))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(via: &str, dev: Option<u32>) -> NextHop {
        let via = via.parse().unwrap();
        NextHop { via, dev }
    }

    fn routes(routes: &[(&str, &[NextHop])]) -> Routes {
        routes
            .iter()
            .map(|(prefix, hops)| (prefix.parse().unwrap(), hops.iter().copied().collect()))
            .collect()
    }

    #[test]
    fn routes_are_added_replaced_and_removed_in_this_order() {
        let wanted = routes(&[
            (
                "10.1.0.0/24",
                &[hop("10.0.0.1", None), hop("10.0.0.2", None)],
            ),
            ("10.2.0.0/24", &[hop("10.0.0.1", None)]),
            ("fd01::/64", &[hop("fd00::1", None)]),
        ]);
        let kernel = routes(&[
            ("10.0.0.0/8", &[hop("10.0.0.9", Some(2))]),
            ("10.1.0.0/24", &[hop("10.0.0.1", Some(2))]),
            ("fd01::/64", &[hop("fd00::1", Some(3))]),
        ]);

        let steps = plan(&wanted, &kernel);

        assert_eq!(
            steps,
            [
                RouteStep::Replace(
                    "10.1.0.0/24".parse().unwrap(),
                    wanted[&"10.1.0.0/24".parse().unwrap()].clone()
                ),
                RouteStep::Add(
                    "10.2.0.0/24".parse().unwrap(),
                    BTreeSet::from([hop("10.0.0.1", None)])
                ),
                RouteStep::Remove("10.0.0.0/8".parse().unwrap()),
            ]
        );
    }

    #[test]
    fn the_device_counts_where_it_is_wanted() {
        let kernel = routes(&[("fd01::/64", &[hop("fe80::1", Some(3))])]);

        let same = routes(&[("fd01::/64", &[hop("fe80::1", Some(3))])]);
        assert_eq!(plan(&same, &kernel), []);
        let other = routes(&[("fd01::/64", &[hop("fe80::1", Some(4))])]);
        assert_eq!(plan(&other, &kernel).len(), 1);
    }

    #[test]
    fn a_route_without_next_hops_is_not_wanted() {
        let kernel = routes(&[("10.1.0.0/24", &[hop("10.0.0.1", Some(2))])]);

        let steps = plan(&routes(&[("10.1.0.0/24", &[])]), &kernel);

        assert_eq!(steps, [RouteStep::Remove("10.1.0.0/24".parse().unwrap())]);
    }
}
