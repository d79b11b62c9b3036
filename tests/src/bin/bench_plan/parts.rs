//! Where the time goes: the parts of a round one by one, without an agent. Ways are known: asking the kernel for them
//! is in the figures of the whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_control::config::Document;
use fairlead_control::dataplane::apply::{self, KernelStore};
use fairlead_control::dataplane::load;
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::desired::announce::{self, Programmed, announcements_since};
use fairlead_control::desired::merge::{self, merge_since};
use fairlead_control::desired::{BackendAddr, Desired};
use fairlead_control::plan::maglev::{self, Sizes};
use fairlead_control::plan::{self, Actual, Host, Memory, Reach, Store as _, Wanted, Way};
use fairlead_control::source::resource::{self, Resources};
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::report::{Figures, Report};
use imbl::OrdMap;

use super::cluster::Size;
use super::ms;

/// How many endpoints are exchanged, one after another, and how often everything is done from nothing.
const CHANGES: u32 = 200;
const ROUNDS: usize = 3;

/// One agent's control plane, without its host.
struct Node {
    size: Size,
    document: Document,
    resources: Resources,
    merged: merge::Memory,
    offered: announce::Memory,
    desired: Desired,
    reach: OrdMap<IpAddr, Reach>,
    ways: OrdMap<IpAddr, Way>,
    host: Host,
    store: KernelStore,
    tables: Actual,
    memory: Memory,
}

/// How long the parts of a round took, in milliseconds.
struct Took {
    merge: f64,
    plan: f64,
    tables: f64,
    announcements: f64,
    steps: usize,
}

impl Node {
    /// The ways to the backends of a service, all behind one router.
    fn know(&mut self, service: u32, change: u32) {
        for backend in 0..self.size.backends {
            let address = self.size.backend(service, backend, change);
            if self.reach.contains_key(&address) {
                continue;
            }
            self.reach.insert(address, Reach::Routed);
            let way = Way {
                device: 2,
                neighbour: IpAddr::from([192, 0, 2, 1]),
                mtu: 1500,
                mac: Some([2, 0, 0, 0, 0, 1]),
            };
            self.ways.insert(address, way);
        }
    }

    fn read(&mut self, object: &str) -> Result<()> {
        let reading = resource::read_value("server", serde_json::from_str(object)?);
        ensure!(reading.conditions.is_empty(), "{:?}", reading.conditions);
        for object in reading.objects {
            self.resources.replace(object);
        }
        Ok(())
    }

    fn round(&mut self, now: Duration) -> Result<Took> {
        let began = Instant::now();
        self.desired = merge_since(
            &mut self.merged,
            &self.resources,
            &self.document,
            "node1",
            None,
        );
        let merge = ms(began);

        let began = Instant::now();
        let wanted = Wanted {
            desired: &self.desired,
            reach: &self.reach,
            ways: &self.ways,
            host: &self.host,
            ring_sizes: Sizes::FLEET,
            drain_window: Duration::from_mins(1),
        };
        let plan = plan::plan(&wanted, &self.tables, &self.memory, now);
        let planned = ms(began);

        let began = Instant::now();
        let outcome = apply::run(&plan.steps, &mut self.store);
        let tables = ms(began);
        ensure!(outcome.is_complete(), "{:?}", outcome.obstacles.first());
        self.tables = plan.tables;
        self.memory = plan.memory;

        let began = Instant::now();
        let programmed = Programmed {
            services: plan.programmed,
            attached: true,
        };
        let announced = announcements_since(&mut self.offered, &self.desired, &programmed);
        ensure!(announced.len() == self.desired.routers.len());
        Ok(Took {
            merge,
            plan: planned,
            tables,
            announcements: ms(began),
            steps: plan.steps.len(),
        })
    }
}

/// Rounds of a node: everything from nothing, then one endpoint after another.
pub fn rounds(size: Size, report: &mut Report) -> Result<()> {
    let mut figures = BTreeMap::<String, Vec<f64>>::new();
    let mut note = |case: &str, read: f64, took: &Took| {
        for (part, value) in [
            ("1 objects", read),
            ("2 merge", took.merge),
            ("3 plan", took.plan),
            ("4 tables", took.tables),
            ("5 announcements", took.announcements),
        ] {
            let name = format!("{case}: {part}");
            figures.entry(name).or_default().push(value);
        }
    };
    for round in 0..ROUNDS {
        let fs = BpfFs::mount()?;
        let pins = Pins::new(fs.path().join("fairlead"));
        pins.prepare()?;
        let lock = pins.lock()?;
        load::load(&pins, &lock)?;
        let store = KernelStore::open(&pins)?;
        let mut node = Node {
            size,
            document: Document::default(),
            resources: Resources::default(),
            merged: merge::Memory::default(),
            offered: announce::Memory::default(),
            desired: Desired::default(),
            reach: OrdMap::new(),
            ways: OrdMap::new(),
            host: Host {
                devices: BTreeMap::from([(2, [2, 0, 0, 0, 0, 2])]),
                port_secret: 1,
                ..Host::default()
            },
            tables: store.observe()?,
            store,
            memory: Memory::default(),
        };
        for object in super::cluster::around().into_values().flatten() {
            node.read(&object)?;
        }
        let mut read = 0.0;
        for service in 0..size.services {
            let objects = [
                Size::service(service),
                size.slice(service, size.backends, 0),
            ];
            let began = Instant::now();
            for object in &objects {
                node.read(object)?;
            }
            read += ms(began);
            node.know(service, 0);
        }
        let took = node.round(Duration::ZERO)?;
        ensure!(node.tables.backends.len() as u32 == size.services * size.backends);
        note("from nothing", read, &took);
        for change in (0..CHANGES).filter(|_| round == 0) {
            let service = change * 7919 % size.services;
            let object = size.slice(service, size.backends, 1);
            let began = Instant::now();
            node.read(&object)?;
            let read = ms(began);
            node.know(service, 1);
            let took = node.round(Duration::from_millis(change.into()))?;
            ensure!((2..20).contains(&took.steps), "{} steps", took.steps);
            note("one endpoint", read, &took);
        }
    }
    for (name, rounds) in &figures {
        report.figures.push(Figures::of(name, "ms", rounds));
    }
    Ok(())
}

/// How long rings take.
pub fn rings(report: &mut Report) {
    for (count, rounds) in [(10, 201), (100, 51), (1000, 21)] {
        let members: Vec<_> = (0..count)
            .map(|n| {
                let addr = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
                (BackendAddr { addr, port: 80 }, 1)
            })
            .collect();
        let rounds: Vec<f64> = (0..rounds)
            .map(|_| {
                let began = Instant::now();
                let ring = maglev::ring(&members, Sizes::FLEET);
                assert!(!ring.is_empty());
                ms(began)
            })
            .collect();
        let slots = Sizes::FLEET.of(&members);
        let name = format!("a ring of {slots} slots for {count} backends");
        report.figures.push(Figures::of(name, "ms", &rounds));
    }
}
