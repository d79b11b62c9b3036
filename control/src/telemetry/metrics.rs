//! Metrics in the OpenMetrics text format, from plain values.
//!
//! [`Figures`] are read for one scrape, most of them out of the kernel; [`Meter`] is what only the agent
//! can count. Names of reasons, tables and states are those that `dpctl` prints. Every label is bounded
//! by the configuration, by the cluster's objects or by the code: none names a flow or a client.
//!
//! # Why a registry per scrape
//! All values of a scrape are of one moment, and the speakers, which are asked over a channel, need not
//! be asked from within an encoder that cannot wait.
//!
//! Not here: where the figures come from (`view::figures`), nor who asks ([`super::exporter`]).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fairlead_common::service::Traffic;
use fairlead_common::tables::{NatFlows, NatRecent, SnatRev, Table as _};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::api::types::{Attachment, Bfd, BfdSession, Peer, ReasonCount, Route};

/// What [`text`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of `fairlead_plan_duration_seconds`: from a round without a change to a million routes.
const PLAN_SECONDS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0, 10.0];

/// What becomes of a plan's steps.
const STEP_RESULTS: [&str; 3] = ["done", "failed", "left-out"];

/// What is read for one scrape.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Every reason and its count.
    pub reasons: Vec<ReasonCount>,
    /// Services by address, port and protocol.
    pub services: Vec<Service>,
    /// Backends that have a row.
    pub backends: Vec<Backend>,
    /// BGP peers.
    pub peers: Vec<Peer>,
    /// BFD sessions.
    pub bfd: Bfd,
    /// Learnt routes.
    pub routes: Vec<Route>,
    /// Tables that can be counted without walking them.
    pub tables: Vec<Table>,
    /// Programs on devices.
    pub attachments: Vec<Attachment>,
    /// Conditions by their reason.
    pub conditions: BTreeMap<String, usize>,
}

/// The figures of a service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// The service address.
    pub address: String,
    /// The service port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where its clients are: `outside` or `inside`.
    pub scope: &'static str,
    /// What was balanced.
    pub traffic: Traffic,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Whether its address is announced.
    pub announced: bool,
    /// How many backends are in each state, zeros included.
    pub backends: BTreeMap<&'static str, usize>,
}

/// The figures of a backend, for all services that it serves.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// What was sent to it.
    pub traffic: Traffic,
}

/// How full a table is.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Rows in use; slots in the table of rings.
    pub entries: u64,
    /// How many it can hold.
    pub capacity: u64,
}

/// The tables whose rows are counted while what has outlived its time is cleared away, and how many each can hold.
const WALKED: [(&str, u32); 3] = [
    (SnatRev::NAME, SnatRev::CAPACITY),
    (NatFlows::NAME, NatFlows::CAPACITY),
    (NatRecent::NAME, NatRecent::CAPACITY),
];

/// What the agent counts itself; clones count together.
#[derive(Clone, Debug)]
pub struct Meter {
    kernel: String,
    plan_seconds: Histogram,
    /// By [`STEP_RESULTS`].
    plan_steps: [Counter; STEP_RESULTS.len()],
    /// Rows that are alive, by [`WALKED`]; negative while nobody has counted them.
    alive: [Gauge; WALKED.len()],
}

impl Meter {
    /// Nothing is counted yet. `kernel` is the kernel's release.
    pub fn new(kernel: String) -> Self {
        let alive = WALKED.map(|_| Gauge::default());
        for gauge in &alive {
            gauge.set(-1);
        }
        Self {
            kernel,
            plan_seconds: Histogram::new(PLAN_SECONDS),
            plan_steps: Default::default(),
            alive,
        }
    }

    /// A plan was made and carried out.
    pub fn planned(&self, took: Duration, done: usize, failed: usize, left_out: usize) {
        self.plan_seconds.observe(took.as_secs_f64());
        for (counter, count) in self.plan_steps.iter().zip([done, failed, left_out]) {
            counter.inc_by(count as u64);
        }
    }

    /// So many rows of a table of translations are alive.
    pub fn alive(&self, table: &str, rows: usize) {
        for (gauge, (name, _)) in self.alive.iter().zip(WALKED) {
            if name == table {
                gauge.set(i64::try_from(rows).unwrap_or(i64::MAX));
            }
        }
    }
}

/// Writes all metrics.
///
/// # Errors
/// None that the values can cause.
pub fn text(mut figures: Figures, meter: &Meter) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("fairlead");
    registry.register_with_unit(
        "plan_duration",
        "Time to make a plan and carry it out",
        Unit::Seconds,
        meter.plan_seconds.clone(),
    );
    for (gauge, (name, capacity)) in meter.alive.iter().zip(WALKED) {
        let Ok(entries) = u64::try_from(gauge.get()) else {
            continue;
        };
        if name == SnatRev::NAME {
            registry.register(
                "snat_bindings",
                "Translations that are alive, as last counted",
                gauge.clone(),
            );
        }
        figures.tables.push(Table {
            name,
            entries,
            capacity: capacity.into(),
        });
    }
    let meter = meter.clone();
    registry.register_collector(Box::new(Scrape { figures, meter }));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

#[derive(Debug)]
struct Scrape {
    figures: Figures,
    meter: Meter,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        let version = env!("CARGO_PKG_VERSION");
        let build = [("version", version), ("kernel", self.meter.kernel.as_str())];
        write(
            e,
            "build_info",
            "The agent's version and the kernel's release; always 1.",
            [(build, gauge(1))],
        )?;
        let steps = STEP_RESULTS.iter().zip(&self.meter.plan_steps);
        write(
            e,
            "plan_steps",
            "Steps of plans by what became of them.",
            steps.map(|(result, count)| ([("result", *result)], counter(count.get()))),
        )?;
        self.figures.datapath(e)?;
        self.figures.services(e)?;
        self.figures.bgp(e)?;
        self.figures.tables(e)?;
        let conditions = self.figures.conditions.iter();
        write(
            e,
            "conditions",
            "What is wrong or in conflict, as `dpctl status` lists it.",
            conditions.map(|(reason, count)| ([("reason", reason.as_str())], gauge(*count))),
        )
    }
}

impl Figures {
    fn datapath(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let of = |reason: &'_ ReasonCount| {
            [
                ("reason", reason.reason.clone()),
                ("verdict", reason.verdict.clone()),
            ]
        };
        let reasons = || self.reasons.iter();
        write(
            e,
            "datapath_packets",
            "Packets by the reason they ended for.",
            reasons().map(|reason| (of(reason), counter(reason.packets))),
        )?;
        write(
            e,
            "datapath_bytes",
            "Bytes of packets by the reason they ended for.",
            reasons().map(|reason| (of(reason), counter(reason.bytes))),
        )?;
        write(
            e,
            "datapath_drops",
            "Packets dropped, by reason.",
            reasons()
                .filter(|reason| reason.verdict == "drop")
                .map(|reason| {
                    (
                        [("reason", reason.reason.as_str())],
                        counter(reason.packets),
                    )
                }),
        )?;
        let uplinks = self.attachments.iter();
        write(
            e,
            "datapath_xdp_mode",
            "How XDP runs on an uplink (driver, generic, none); always 1.",
            uplinks
                .filter(|attachment| attachment.program == "xdp_ingress")
                .map(|uplink| {
                    let mode = if uplink.attached {
                        uplink.state.as_str()
                    } else {
                        "none"
                    };
                    let labels = [("device", uplink.device.as_str()), ("mode", mode)];
                    (labels, gauge(1))
                }),
        )
    }

    fn services(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let services = || self.services.iter();
        for (name, help, of) in TRAFFIC {
            let rows = services().map(|one| (one.labels(), counter(of(&one.traffic))));
            write(e, &format!("service_{name}"), help, rows)?;
        }
        for (name, help, of) in TRAFFIC {
            let rows = self.backends.iter();
            let rows = rows.map(|one| (one.labels(), counter(of(&one.traffic))));
            write(e, &format!("backend_{name}"), help, rows)?;
        }
        write(
            e,
            "service_drops",
            "Packets to a service that were dropped, by reason.",
            services().flat_map(|service| {
                service.drops.iter().map(|(reason, packets)| {
                    let reason = [("reason", reason.clone())];
                    ((service.labels(), reason), counter(*packets))
                })
            }),
        )?;
        write(
            e,
            "service_announced",
            "Whether the service's address is announced to BGP peers.",
            services().map(|service| (service.labels(), gauge(u8::from(service.announced)))),
        )?;
        write(
            e,
            "service_backends",
            "Backends by state.",
            services().flat_map(|service| {
                let states = service.backends.iter();
                states.map(|(state, count)| {
                    let state = [("state", (*state).to_owned())];
                    ((service.labels(), state), gauge(*count))
                })
            }),
        )
    }

    fn bgp(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        write(
            e,
            "bgp_session_up",
            "Whether the session is established.",
            self.peers
                .iter()
                .map(|peer| (of_peer(peer), gauge(u8::from(peer.state == "Established")))),
        )?;
        write(
            e,
            "bgp_prefixes",
            "Prefixes received from a peer, accepted of these, and advertised to it.",
            self.peers.iter().flat_map(|peer| {
                peer.families.iter().flat_map(move |family| {
                    [
                        ("received", family.received),
                        ("accepted", family.accepted),
                        ("advertised", family.advertised),
                    ]
                    .map(|(direction, count)| {
                        let more = [
                            ("family", family.family.clone()),
                            ("direction", direction.to_owned()),
                        ];
                        ((of_peer(peer), more), gauge(count))
                    })
                })
            }),
        )?;
        let sessions = || self.bfd.sessions.iter();
        write(
            e,
            "bfd_session_up",
            "Whether the BFD session is up.",
            sessions().map(|session| (of_session(session), gauge(u8::from(session.state == "up")))),
        )?;
        write(
            e,
            "bfd_failures",
            "How many times a BFD session that was up failed.",
            sessions().map(|session| (of_session(session), counter(session.failures))),
        )?;
        write(
            e,
            "bfd_packets",
            "BFD packets by direction.",
            sessions().flat_map(|session| {
                [
                    ("sent", session.packets_sent),
                    ("received", session.packets_received),
                ]
                .map(|(direction, count)| {
                    (
                        (of_session(session), [("direction", direction)]),
                        counter(count),
                    )
                })
            }),
        )?;
        write(
            e,
            "bfd_discarded_packets",
            "BFD packets that were not taken, by reason.",
            self.bfd
                .discarded
                .iter()
                .map(|(why, count)| ([("reason", why.as_str())], counter(*count))),
        )?;
        let installed = self.routes.iter().filter(|route| route.installed).count();
        write(
            e,
            "bgp_routes",
            "Learnt prefixes, by whether the kernel's table has them.",
            [
                ([("state", "installed")], gauge(installed)),
                ([("state", "refused")], gauge(self.routes.len() - installed)),
            ],
        )
    }

    fn tables(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let tables = || self.tables.iter();
        write(
            e,
            "map_entries",
            "Rows of a table that are in use.",
            tables().map(|table| ([("map", table.name)], gauge(table.entries))),
        )?;
        write(
            e,
            "map_capacity",
            "Rows that a table can hold.",
            tables().map(|table| ([("map", table.name)], gauge(table.capacity))),
        )
    }
}

/// Name, meaning, place in the row.
type TrafficMetric = (&'static str, &'static str, fn(&Traffic) -> u64);

/// The counters of services and backends.
const TRAFFIC: [TrafficMetric; 4] = [
    ("packets", "Packets balanced.", |row| row.packets),
    ("bytes", "Bytes balanced.", |row| row.bytes),
    (
        "new_flows",
        "TCP flows that began; of UDP none is known to.",
        |row| row.new_flows,
    ),
    (
        "in_transition_packets",
        "Packets whose ring slot was in transition, so that the flow's memory was asked.",
        |row| row.in_transition,
    ),
];

impl Backend {
    fn labels(&self) -> [(&'static str, String); 2] {
        [
            ("address", self.address.clone()),
            ("port", self.port.to_string()),
        ]
    }
}

impl Service {
    fn labels(&self) -> [(&'static str, String); 5] {
        [
            ("service", self.name.clone()),
            ("address", self.address.clone()),
            ("port", self.port.to_string()),
            ("protocol", self.protocol.clone()),
            ("scope", self.scope.to_owned()),
        ]
    }
}

/// Two virtual routers may have the same peer.
fn of_peer(peer: &Peer) -> [(&'static str, String); 2] {
    [
        ("peer", peer.address.clone()),
        ("local_asn", peer.local_asn.to_string()),
    ]
}

fn of_session(session: &BfdSession) -> [(&'static str, String); 2] {
    let hops = if session.multihop { "multi" } else { "single" };
    [("peer", session.peer.clone()), ("hops", hops.to_owned())]
}

fn counter(value: u64) -> ConstCounter {
    ConstCounter::new(value)
}

fn gauge(value: impl TryInto<u64>) -> ConstGauge<u64> {
    ConstGauge::new(value.try_into().unwrap_or(u64::MAX))
}

/// Writes a metric with a row per label set; without rows, nothing.
fn write<L: EncodeLabelSet, M: EncodeMetric>(
    e: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, M)>,
) -> fmt::Result {
    let mut rows = rows.into_iter().peekable();
    let Some((_, first)) = rows.peek() else {
        return Ok(());
    };
    let mut metric = e.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, value) in rows {
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
