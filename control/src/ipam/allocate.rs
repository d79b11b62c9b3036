//! Which service has which address: from pools and services alone, with nothing kept.
//!
//! What a service holds it keeps while its pool is there and selects it; then the oldest service is asked first what
//! it lacks. The same input gives the same answer, and an answer that was carried out gives itself again.
//!
//! Not here: how services say what they want (`service`), and who writes it down (`controller`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::pool::{Pool, number};
use crate::object::ObjectName;

/// What a service of type LoadBalancer wants, and what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub name: ObjectName,
    /// When it was made.
    pub created: Option<jiff::Timestamp>,
    /// Its labels, with its name and namespace among them as pools select by.
    pub labels: BTreeMap<String, String>,
    /// Of which families it wants an address, IPv4 if `true`, the first before the second.
    pub families: Vec<bool>,
    /// Whether one family does not do when it wants two.
    pub needs_all: bool,
    /// The addresses that it asks for; empty: any.
    pub asked: Vec<IpAddr>,
    /// With whom it shares an address.
    pub sharing: Option<Sharing>,
    /// What it has.
    pub held: Vec<IpAddr>,
    /// Whether we have answered it before: then what it has is ours to take away.
    pub is_answered: bool,
}

/// With whom a service shares an address: those with the same key, when no port is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// The key.
    pub key: String,
    /// Namespaces beside its own; `*` stands for all.
    pub namespaces: BTreeSet<String>,
    /// Protocol and number of its ports.
    pub ports: BTreeSet<(String, i32)>,
    /// With `externalTrafficPolicy: Local`: the pods it selects. Only services of the same pods are announced by
    /// the same nodes.
    pub local_to: Option<BTreeMap<String, String>>,
}

/// What a service has, and why not more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What it lacks; none: it has what it wants.
    pub lack: Option<Lack>,
}

/// Why a service lacks an address: a word as Cilium has it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// `no_pool`, `out_of_ips`, `already_allocated`, `pool_selector_mismatch`.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// How full a pool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its addresses.
    pub total: u128,
    /// Those that services have.
    pub used: u128,
    /// An older pool with an address of this one: nothing new is given of the younger.
    pub conflict: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// By service. A service whose address somebody else gave is not here.
    pub services: BTreeMap<ObjectName, Given>,
    /// By pool.
    pub pools: BTreeMap<String, Usage>,
}

/// Gives addresses of `pools` to those who want them. `are_all`: there are no pools beside these; when there are some
/// that cannot be read, what is of none of these may be of them, and stays with who has it.
pub fn allocate(pools: &[Pool], are_all: bool, requests: &[Request]) -> Allocation {
    if pools.is_empty() && !requests.iter().any(|request| request.is_answered) {
        return Allocation::default();
    }
    let mut in_order: Vec<&Request> = requests.iter().collect();
    in_order.sort_by_key(|request| (request.created, &request.name));
    let mut by_age: Vec<&Pool> = pools.iter().collect();
    by_age.sort_by_key(|pool| &pool.age);
    let mut ledger = Ledger::new(&by_age, are_all);

    let kept: Vec<Option<Vec<IpAddr>>> = in_order
        .iter()
        .map(|request| ledger.keep(request))
        .collect();
    let services = in_order.iter().zip(kept).filter_map(|(request, kept)| {
        let given = ledger.complete(request, kept?);
        Some((request.name.clone(), given))
    });
    let services = services.collect();
    Allocation {
        services,
        pools: ledger.usage(),
    }
}

/// Who has which address so far.
struct Ledger<'a> {
    /// The oldest first.
    pools: &'a [&'a Pool],
    /// Whether there are no others, which cannot be read.
    are_all: bool,
    /// By pool: the older one that it overlaps.
    conflicts: Vec<Option<String>>,
    holders: BTreeMap<IpAddr, Vec<&'a Request>>,
    /// By pool and range: below, nothing is free.
    searched: BTreeMap<(usize, usize), u128>,
}

impl<'a> Ledger<'a> {
    fn new(pools: &'a [&'a Pool], are_all: bool) -> Self {
        let older = |place: usize| {
            let overlaps = |older: &Pool| {
                let ranges = &pools[place].ranges;
                let has = |range| older.ranges.iter().any(|other| other.overlaps(range));
                ranges.iter().any(has)
            };
            let older = pools[..place].iter().find(|older| overlaps(older));
            older.map(|older| older.name.clone())
        };
        Self {
            pools,
            are_all,
            conflicts: (0..pools.len()).map(older).collect(),
            holders: BTreeMap::new(),
            searched: BTreeMap::new(),
        }
    }

    /// What a service keeps of what it has; none: it is not ours.
    fn keep(&mut self, request: &'a Request) -> Option<Vec<IpAddr>> {
        let pools = self.pools;
        let of_any_pool = |ip: &IpAddr| {
            let mut ranges = pools.iter().flat_map(|pool| &pool.ranges);
            ranges.any(|range| range.contains(*ip))
        };
        if !request.is_answered && !request.held.is_empty() && !request.held.iter().any(of_any_pool)
        {
            return None;
        }
        let mut kept = Vec::new();
        for &ip in &request.held {
            let is_wanted = if request.asked.is_empty() {
                let has_family = |kept: &IpAddr| kept.is_ipv4() == ip.is_ipv4();
                request.families.contains(&ip.is_ipv4()) && !kept.iter().any(has_family)
            } else {
                request.asked.contains(&ip)
            };
            let may_be_of_another = !self.are_all && !of_any_pool(&ip);
            let is_for_it = may_be_of_another
                || self.pools.iter().any(|pool| {
                    pool.selector.matches(&request.labels)
                        && pool.ranges.iter().any(|range| range.contains(ip))
                });
            if is_wanted && is_for_it && self.is_free(ip, request) && !kept.contains(&ip) {
                self.holders.entry(ip).or_default().push(request);
                kept.push(ip);
            }
        }
        Some(kept)
    }

    /// What a service has in the end.
    fn complete(&mut self, request: &'a Request, mut addresses: Vec<IpAddr>) -> Given {
        let mut lack = None;
        if request.asked.is_empty() {
            for &is_v4 in &request.families {
                if addresses.iter().any(|ip| ip.is_ipv4() == is_v4) {
                    continue;
                }
                match self.find(request, is_v4) {
                    Ok(ip) => addresses.push(self.take(ip, request)),
                    Err(why) => lack = lack.or(Some(why)),
                }
            }
            if !request.needs_all && !addresses.is_empty() {
                lack = None;
            }
        } else {
            for &ip in &request.asked {
                if addresses.contains(&ip) {
                    continue;
                }
                match self.may_have(request, ip) {
                    Ok(()) => addresses.push(self.take(ip, request)),
                    Err(why) => lack = lack.or(Some(why)),
                }
            }
        }
        Given { addresses, lack }
    }

    fn take(&mut self, ip: IpAddr, request: &'a Request) -> IpAddr {
        self.holders.entry(ip).or_default().push(request);
        ip
    }

    fn is_free(&self, ip: IpAddr, request: &Request) -> bool {
        let mut holders = self.holders.get(&ip).into_iter().flatten();
        holders.all(|holder| holder.shares_with(request))
    }

    /// The pools that give to a service, with their places.
    fn giving(&self, request: &'a Request) -> impl Iterator<Item = (usize, &'a Pool)> {
        let pools = self.pools.iter().copied().enumerate();
        let conflicts = &self.conflicts;
        pools.filter(move |(place, pool)| {
            !pool.is_disabled
                && conflicts[*place].is_none()
                && pool.selector.matches(&request.labels)
        })
    }

    /// Whether a service may have exactly this address.
    fn may_have(&self, request: &'a Request, ip: IpAddr) -> Result<(), Lack> {
        let has = |pool: &Pool| pool.ranges.iter().any(|range| range.contains(ip));
        if !self.giving(request).any(|(_, pool)| has(pool)) {
            return Err(if self.pools.iter().any(|pool| has(pool)) {
                Lack {
                    reason: "pool_selector_mismatch",
                    message: format!(
                        "{ip}: its pool is not for this service, or gives nothing now; see its serviceSelector, disabled and conditions"
                    ),
                }
            } else {
                Lack {
                    reason: "no_pool",
                    message: format!("{ip} is in no CiliumLoadBalancerIPPool"),
                }
            });
        }
        if self.is_free(ip, request) {
            return Ok(());
        }
        let holders = self.holders.get(&ip).into_iter().flatten();
        let names: Vec<_> = holders.map(|holder| holder.name.to_string()).collect();
        Err(Lack {
            reason: "already_allocated",
            message: format!(
                "{ip} is the address of Service {}; services share one with the annotation lbipam.cilium.io/sharing-key",
                names.join(", ")
            ),
        })
    }

    /// An address of a family: one that it shares, else the first that nobody has.
    fn find(&mut self, request: &'a Request, is_v4: bool) -> Result<IpAddr, Lack> {
        if request.sharing.is_some() {
            let shared = self.holders.iter().find(|(ip, holders)| {
                ip.is_ipv4() == is_v4
                    && holders.iter().all(|holder| holder.shares_with(request))
                    && self.may_have(request, **ip).is_ok()
            });
            if let Some((&ip, _)) = shared {
                return Ok(ip);
            }
        }
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        let giving: Vec<_> = self.giving(request).collect();
        let mut full = Vec::new();
        for (place, pool) in giving {
            let ranges = pool.ranges.iter().enumerate();
            for (at, range) in ranges.filter(|(_, range)| range.first.is_ipv4() == is_v4) {
                let from = self.searched.entry((place, at)).or_default();
                let free = range
                    .addresses(*from)
                    .find(|ip| !self.holders.contains_key(ip));
                if let Some(ip) = free {
                    *from = number(ip);
                    return Ok(ip);
                }
                *from = number(range.last).saturating_add(1);
                full.push(pool.name.as_str());
            }
        }
        full.dedup();
        Err(if full.is_empty() {
            Lack {
                reason: "no_pool",
                message: format!(
                    "no CiliumLoadBalancerIPPool with {family} addresses is for this service"
                ),
            }
        } else {
            Lack {
                reason: "out_of_ips",
                message: format!("no {family} address is left in {}", full.join(", ")),
            }
        })
    }

    fn usage(&self) -> BTreeMap<String, Usage> {
        let of = |pool: &Pool| {
            let used = self.holders.keys().filter(|ip| {
                let mut ranges = pool.ranges.iter();
                ranges.any(|range| range.contains(**ip))
            });
            let sizes = pool.ranges.iter().map(super::pool::Range::size);
            (sizes.fold(0, u128::saturating_add), used.count() as u128)
        };
        let pools = self.pools.iter().zip(&self.conflicts);
        let usages = pools.map(|(pool, conflict)| {
            let (total, used) = of(pool);
            let conflict = conflict.clone();
            let usage = Usage {
                total,
                used,
                conflict,
            };
            (pool.name.clone(), usage)
        });
        usages.collect()
    }
}

impl Request {
    /// Whether two services may have one address.
    fn shares_with(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (&self.sharing, &other.sharing) else {
            return false;
        };
        let lets = |sharing: &Sharing, namespace: &String| {
            sharing.namespaces.contains(namespace) || sharing.namespaces.contains("*")
        };
        let [here, there] = [&self.name.namespace, &other.name.namespace];
        own.key == others.key
            && (here == there || (lets(own, there) && lets(others, here)))
            && own.ports.is_disjoint(&others.ports)
            && own.local_to == others.local_to
    }
}

#[cfg(test)]
mod tests;
