//! Services and their backends, as `dpctl services` and `dpctl backends` show them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::Result;
use fairlead_common::reason::Reason;
use fairlead_common::service::{self, forward};
use fairlead_common::tables;

use super::{State, View, announcement};
use crate::api::types;
use crate::dataplane::table::Pinned;
use crate::desired::drain::Drain;
use crate::desired::readiness::{self, Standing};
use crate::desired::{Backend, BackendAddr, Frontend, Service};
use crate::health::Report;
use crate::health::checks::{self, Verdict};
use crate::plan::{Reach, services as rows};

/// Every word that [`state_of`] says.
pub(super) const BACKEND_STATES: [&str; Standing::ALL.len() + 1] = {
    let mut names = [UNREACHABLE; Standing::ALL.len() + 1];
    let mut place = 0;
    while place < Standing::ALL.len() {
        names[place] = Standing::ALL[place].name();
        place += 1;
    }
    names
};
/// A backend that would take flows, and that no route leads to.
const UNREACHABLE: &str = "unreachable";

impl View {
    /// `GET /v1/services`.
    pub async fn services(&self) -> Result<Vec<types::Service>> {
        let state = self.state.load_full();
        let report = match &state.reporter {
            Some(reporter) => reporter.report().await,
            None => None,
        };
        let asked = Asked {
            state: &state,
            report: report.as_ref(),
            ids: ids(&state),
            service_counts: Pinned::open(&self.pins)?,
            backend_counts: Pinned::open(&self.pins)?,
            drops: drops(&Pinned::open(&self.pins)?)?,
        };
        let services = state.desired.services.iter();
        services
            .map(|(frontend, service)| asked.service(frontend, service))
            .collect()
    }

    /// The backends that a drain means, each with its service.
    pub fn backends_of(&self, drain: &Drain) -> Vec<String> {
        let state = self.state.load();
        let services = state.desired.services.values();
        let meant = services.flat_map(|service| {
            let backends = service.backends.keys();
            backends
                .filter(|at| drain.covers(service, at))
                .map(|at| format!("{at} of service {}", service.object))
        });
        let mut meant: Vec<_> = meant.collect();
        meant.sort();
        meant.dedup();
        meant
    }
}

/// How a backend stands, in the word that people are shown.
pub(super) fn state_of(
    state: &State,
    service: &Service,
    at: &BackendAddr,
    backend: Backend,
) -> &'static str {
    let standing = readiness::standing(service, at, backend, &state.verdicts, &state.drains);
    let reach = state.reach.get(&at.addr);
    if standing == Standing::Ready && reach.is_none_or(|reach| *reach == Reach::Unreachable) {
        return UNREACHABLE;
    }
    standing.name()
}

/// The ids of backends by where they listen.
fn ids(state: &State) -> HashMap<BackendAddr, u32> {
    let rows = state.actual.backends.iter();
    rows.map(|(&id, row)| (rows::address(row), id)).collect()
}

/// Packets dropped, by service id and reason.
pub(super) fn drops(
    table: &Pinned<tables::ServiceDrops>,
) -> Result<HashMap<u32, BTreeMap<String, u64>>> {
    let mut drops = HashMap::<u32, BTreeMap<_, _>>::new();
    for (of, packets) in table.counts()? {
        if let Some(reason) = Reason::ALL.get(of.reason as usize) {
            let of_service = drops.entry(of.service).or_default();
            of_service.insert(reason.name().to_owned(), packets);
        }
    }
    Ok(drops)
}

/// What one question looks at.
struct Asked<'a> {
    state: &'a State,
    report: Option<&'a Report>,
    ids: HashMap<BackendAddr, u32>,
    service_counts: Pinned<tables::ServiceStats>,
    backend_counts: Pinned<tables::BackendStats>,
    drops: HashMap<u32, BTreeMap<String, u64>>,
}

impl Asked<'_> {
    fn service(&self, frontend: &Frontend, service: &Service) -> Result<types::Service> {
        let actual = &self.state.actual;
        let row = actual.services.get(&rows::key(frontend));
        let ring = row.and_then(|row| actual.rings.get(&row.ring));
        let mut slots_of: HashMap<u32, u32> = HashMap::new();
        let mut slots_in_transition = 0;
        for slot in ring.into_iter().flat_map(|slots| slots.iter()) {
            *slots_of.entry(slot.current).or_default() += 1;
            slots_in_transition += u32::from(slot.previous != 0);
        }
        let backends = service.backends.iter();
        let backends: Vec<_> = backends
            .map(|(at, backend)| self.backend(service, at, *backend, &slots_of))
            .collect::<Result<_>>()?;
        let (announced, reason) = if service.is_announceable(frontend) {
            announcement(self.state, frontend)
        } else {
            (false, String::new())
        };
        Ok(types::Service {
            name: service.object.to_string(),
            address: frontend.addr.to_string(),
            port: frontend.port,
            protocol: frontend.proto.to_string(),
            scope: frontend.scope.name().to_owned(),
            slots: ring.map_or(0, |ring| ring.len() as u32),
            slots_in_transition,
            announced,
            reason,
            traffic: match row {
                Some(row) => traffic(self.service_counts.count(&row.id)?),
                None => types::Traffic::default(),
            },
            drops: row
                .and_then(|row| self.drops.get(&row.id))
                .cloned()
                .unwrap_or_default(),
            forwarding: service.forwarding.name().to_owned(),
            affinity_s: service.affinity.map(|time| time.as_secs()),
            source_ranges: service
                .source_ranges
                .as_ref()
                .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
            health_check: service.check.as_ref().map(ToString::to_string),
            hint: hint(&backends, ring.is_some()),
            backends,
        })
    }

    fn backend(
        &self,
        service: &Service,
        at: &BackendAddr,
        backend: Backend,
        slots_of: &HashMap<u32, u32>,
    ) -> Result<types::Backend> {
        let actual = &self.state.actual;
        let id = self.ids.get(at);
        let row = id.and_then(|id| actual.backends.get(id));
        let next_hop = row.and_then(|row| actual.next_hops.get(&row.next_hop));
        Ok(types::Backend {
            address: at.addr.to_string(),
            port: at.port,
            state: state_of(self.state, service, at, backend).to_owned(),
            forward: row.map_or("-", |row| forward_name(row)).to_owned(),
            weight: backend.weight,
            slots: id.and_then(|id| slots_of.get(id)).copied().unwrap_or(0),
            next_hop: next_hop.map(|next_hop| next_hop.addr.to_string()),
            health: service.check.as_ref().and_then(|check| {
                let report = self.report?;
                let standing = report.standings.get(&check.target(at))?;
                Some(health(standing, report.at))
            }),
            traffic: match id {
                Some(id) => traffic(self.backend_counts.count(id)?),
                None => types::Traffic::default(),
            },
        })
    }
}

fn health(standing: &checks::Standing, now: Instant) -> types::BackendHealth {
    types::BackendHealth {
        verdict: match standing.verdict {
            Verdict::Pending => "pending",
            Verdict::Healthy => "healthy",
            Verdict::Unhealthy => "unhealthy",
        }
        .to_owned(),
        since_s: now.saturating_duration_since(standing.since).as_secs(),
        last_error: standing.failure.clone(),
        against: standing.against,
        next_ms: standing.next.saturating_duration_since(now).as_millis() as u64,
    }
}

fn traffic(counted: service::Traffic) -> types::Traffic {
    types::Traffic {
        packets: counted.packets,
        bytes: counted.bytes,
        new_flows: counted.new_flows,
        in_transition: counted.in_transition,
    }
}

/// How packets get to a backend, in one word.
pub(super) fn forward_name(row: &service::Backend) -> &'static str {
    match row.forward {
        forward::L2 => "l2",
        forward::ENCAPSULATE => "encapsulate",
        forward::HERE => "here",
        forward::GUE => "gue",
        forward::NAT => "nat",
        _ => "-",
    }
}

/// The usual traps of a service that serves nobody, said where they are seen.
fn hint(backends: &[types::Backend], has_ring: bool) -> Option<String> {
    if backends.is_empty() {
        return Some(
            "it has no backend: no EndpointSlice with its label kubernetes.io/service-name has an endpoint for this port and address family"
                .to_owned(),
        );
    }
    let count = |state: &str| {
        backends
            .iter()
            .filter(|backend| backend.state == state)
            .count()
    };
    if count(Standing::Ready.name()) > 0 {
        return None;
    }
    let list = |state: &str| {
        let named = backends.iter().filter(|backend| backend.state == state);
        named.map(endpoint).collect::<Vec<_>>().join(", ")
    };
    let mut causes = Vec::new();
    let mut say = |state: &str, what: &str| {
        if count(state) > 0 {
            causes.push(format!("{} {what}", list(state)));
        }
    };
    say(
        UNREACHABLE,
        "cannot be reached: no route leads there (`ip route get ADDRESS`)",
    );
    say(
        Standing::Unhealthy.name(),
        "failed the health check (`dpctl backends list -o wide` says how)",
    );
    say(
        Standing::Drained.name(),
        "is drained (`dpctl backends undrain ADDRESS` puts it back)",
    );
    say(
        Standing::NotReady.name(),
        "is not ready, as its EndpointSlice says",
    );
    say(
        Standing::Terminating.name(),
        "is terminating, as its EndpointSlice says",
    );
    let consequence = if has_ring {
        "no backend takes new flows but those that drain"
    } else {
        "packets to it are dropped as service-no-backend"
    };
    Some(format!(
        "no backend is ready: {}; {consequence}",
        causes.join("; ")
    ))
}

fn endpoint(backend: &types::Backend) -> String {
    match backend.address.parse::<IpAddr>() {
        Ok(addr) => SocketAddr::new(addr, backend.port).to_string(),
        Err(_) => unreachable!("it was written from an address"),
    }
}
