//! Several nodes that balance the same services, the routers in front of them, and connections; time is virtual.
//!
//! ```text
//!   truth ──lag──> a node's view ──plan──> its tables ──choice──> backend
//!   connection ──ECMP──> node
//! ```
//! Plans are the planner's, and who a packet goes to is the datapath's own choice: what stands here is only when
//! things happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_control::desired::{
    self, BackendAddr, Desired, Frontend, Home, NodeState, Scope, Service,
};
use fairlead_control::plan::maglev::{Member, Sizes};
use fairlead_control::plan::{Host, Memory, Reach, Wanted, Way, plan};
use imbl::OrdMap;

use fairlead_tests::kernel::{ROUTER, UP0};

use crate::datapath::Datapath;
use crate::law::{Past, Tally};

/// The services: TCP, UDP, and TCP with session affinity.
pub const SERVICES: usize = 3;
/// How long a flow stays with its backend after a change.
pub const WINDOW: Duration = Duration::from_mins(1);
/// Two things never happen at once.
pub const MOMENT: Duration = Duration::from_millis(1);

/// The backends of each service, by number.
pub type World = [BTreeMap<u8, desired::Backend>; SERVICES];

pub fn frontend(service: usize) -> Frontend {
    let (addr, proto) = match service {
        0 => (IpAddr::from([192, 0, 2, 1]), Proto::TCP),
        1 => (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), Proto::UDP),
        _ => (IpAddr::from([192, 0, 2, 3]), Proto::TCP),
    };
    Frontend {
        addr,
        port: 80,
        proto,
        scope: Scope::Outside,
    }
}

pub fn backend_at(number: u8) -> BackendAddr {
    let addr = if number.is_multiple_of(2) {
        IpAddr::from([10, 50, 0, number])
    } else {
        IpAddr::from([0xfd00, 0x50, 0, 0, 0, 0, 0, u16::from(number)])
    };
    BackendAddr { addr, port: 80 }
}

/// A connection's packets: a client's address and port that no other one has.
fn flow_key(service: usize, number: u32) -> FlowKey {
    let frontend = frontend(service);
    let src = match frontend.addr {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::from(0xcb00_7100 | (number % 251))),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::from(
            0x2001_0db8_0009 << 80 | u128::from(number % 251),
        )),
    };
    let src_port = Port::new(1024 + (number / 251) as u16);
    FlowKey::new(
        Addr::new(src),
        src_port,
        Addr::new(frontend.addr),
        Port::new(frontend.port),
        frontend.proto,
    )
}

/// A node that balances.
struct Node<D> {
    id: u32,
    datapath: D,
    memory: Memory,
    wake: Option<Duration>,
    /// How much later than the truth it sees a change.
    lag: Duration,
    /// Changes on their way to it, and when they come.
    inbox: VecDeque<(Duration, World)>,
    view: World,
}

/// A connection that is established.
pub struct Connection {
    pub service: usize,
    pub key: FlowKey,
    /// Who has it.
    pub home: BackendAddr,
    pub began: Duration,
    /// The node that saw it begin.
    pub began_at: u32,
}

/// What every node's host says.
struct Place {
    reach: OrdMap<IpAddr, Reach>,
    ways: OrdMap<IpAddr, Way>,
    host: Host,
}

impl Place {
    /// All backends are behind the router on `up0`.
    fn new() -> Self {
        let addresses = || (0..=u8::MAX).map(|number| backend_at(number).addr);
        let way = Way {
            device: UP0.ifindex,
            neighbour: IpAddr::from([10, 1, 0, 254]),
            mtu: 1500,
            mac: Some(ROUTER),
        };
        Self {
            reach: addresses().map(|addr| (addr, Reach::Routed)).collect(),
            ways: addresses().map(|addr| (addr, way)).collect(),
            host: Host {
                devices: BTreeMap::from([(UP0.ifindex, UP0.mac)]),
                port_secret: 1,
                ..Host::default()
            },
        }
    }
}

/// The whole of it.
pub struct Fleet<D> {
    place: Place,
    make: Box<dyn FnMut(u32) -> D>,
    sizes: Sizes,
    pub now: Duration,
    truth: World,
    nodes: Vec<Node<D>>,
    /// What each node had on its rings, by its id.
    pasts: BTreeMap<u32, [Past; SERVICES]>,
    pub connections: Vec<Connection>,
    /// How ECMP spreads flows over the nodes.
    salt: u64,
    next_node: u32,
    next_flow: u32,
    pub tally: Tally,
}

impl<D: Datapath> Fleet<D> {
    /// Nodes that have been there for long; `make` makes the tables of each.
    pub fn new(
        sizes: Sizes,
        nodes: u32,
        truth: World,
        make: impl FnMut(u32) -> D + 'static,
    ) -> Self {
        let mut fleet = Self {
            place: Place::new(),
            make: Box::new(make),
            sizes,
            now: WINDOW,
            truth,
            nodes: Vec::new(),
            pasts: BTreeMap::new(),
            connections: Vec::new(),
            salt: 1,
            next_node: 1,
            next_flow: 0,
            tally: Tally::default(),
        };
        for _ in 0..nodes {
            fleet.join(Duration::ZERO);
        }
        fleet
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A node without a past joins and is sent its share of the flows.
    pub fn join(&mut self, lag: Duration) {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.push(Node {
            id,
            datapath: (self.make)(id),
            memory: Memory::default(),
            wake: None,
            lag,
            inbox: VecDeque::new(),
            view: self.truth.clone(),
        });
        self.pasts.insert(id, Default::default());
        self.round(self.nodes.len() - 1);
    }

    /// A node leaves; its flows go to the others.
    pub fn leave(&mut self, nth: usize) {
        if self.nodes.len() > 1 {
            let nth = nth % self.nodes.len();
            self.nodes.remove(nth);
        }
    }

    /// The agent of a node starts anew: its tables stay, its memory does not.
    pub fn restart(&mut self, nth: usize) {
        let nth = nth % self.nodes.len();
        self.nodes[nth].memory = Memory::default();
        for past in self
            .pasts
            .get_mut(&self.nodes[nth].id)
            .into_iter()
            .flatten()
        {
            past.restarts(self.now);
        }
        self.round(nth);
    }

    /// From now on a node sees changes so much later.
    pub fn lag(&mut self, nth: usize, lag: Duration) {
        let nth = nth % self.nodes.len();
        self.nodes[nth].lag = lag;
    }

    /// The routers spread flows over the nodes in another way.
    pub fn reshard(&mut self, salt: u64) {
        self.salt = salt;
    }

    /// Something about the backends changes.
    pub fn change(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.truth);
        for node in &mut self.nodes {
            node.inbox
                .push_back((self.now + node.lag, self.truth.clone()));
        }
        self.advance(Duration::ZERO);
        let truth = &self.truth;
        self.connections.retain(|connection| {
            let members = &truth[connection.service];
            members.iter().any(|(number, backend)| {
                backend_at(*number) == connection.home && (backend.ready || backend.serving)
            })
        });
    }

    /// Time passes; what is due happens in its order.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = |node: &Node<D>| {
                let news = node.inbox.front().map(|(due, _)| *due);
                news.into_iter().chain(node.wake).min()
            };
            let next = (0..self.nodes.len())
                .filter_map(|nth| Some((due(&self.nodes[nth])?, nth)))
                .min();
            let Some((at, nth)) = next.filter(|(at, _)| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            let node = &mut self.nodes[nth];
            while let Some((_, view)) = node.inbox.pop_front_if(|(due, _)| *due <= self.now) {
                node.view = view;
            }
            self.round(nth);
        }
        self.now = end;
    }

    /// A node plans and carries its plan out.
    fn round(&mut self, nth: usize) {
        let node = &mut self.nodes[nth];
        let desired = desired(&node.view);
        let wanted = Wanted {
            desired: &desired,
            reach: &self.place.reach,
            ways: &self.place.ways,
            host: &self.place.host,
            ring_sizes: self.sizes,
            drain_window: WINDOW,
        };
        for _ in 0..4 {
            let plan = plan(&wanted, node.datapath.actual(), &node.memory, self.now);
            node.datapath.carry_out(&plan);
            node.memory = plan.memory;
            node.wake = plan.wake;
            if plan.wake != Some(self.now) {
                break;
            }
        }
        assert!(
            node.wake.is_none_or(|wake| wake > self.now),
            "plans come to an end"
        );
        let pasts = self.pasts.get_mut(&node.id).expect("a past");
        for (past, backends) in pasts.iter_mut().zip(&node.view) {
            past.programs(self.now, &members(backends), alive(backends), self.sizes);
        }
    }

    /// Which node the routers send a flow to.
    fn node_of(&self, key: &FlowKey) -> usize {
        (key.hash_keyed(self.salt) % self.nodes.len() as u64) as usize
    }

    /// A client opens connections to a service.
    pub fn open(&mut self, service: usize, count: u32) -> Result<(), String> {
        for _ in 0..count {
            self.advance(MOMENT);
            let key = flow_key(service, self.next_flow);
            self.next_flow += 1;
            let nth = self.node_of(&key);
            let node = &mut self.nodes[nth];
            let opens = key.proto == Proto::TCP;
            let now_s = self.now.as_secs() as u32;
            let sent = node.datapath.send(&key, opens, now_s);
            let past = &self.pasts[&node.id][service];
            let began_at = node.id;
            let connection = |home| Connection {
                service,
                key,
                home,
                began: self.now,
                began_at,
            };
            let Some(home) = sent else {
                if past.has_ring(self.now) {
                    return Err(format!("{key} reaches nobody\n{past}"));
                }
                continue;
            };
            past.may_begin(&connection(home), opens)?;
            // The ACK of the handshake; of UDP, the next packet.
            let again = node.datapath.send(&key, false, now_s);
            if again != Some(home) {
                return Err(format!("{key} begins at {home} and goes on at {again:?}"));
            }
            if past.is_alive(&home, self.now) {
                self.connections.push(connection(home));
            }
        }
        Ok(())
    }

    /// Every connection sends a packet; how many of them are elsewhere than at home, and are over.
    pub fn broken(&mut self) -> usize {
        let before = self.connections.len();
        let mut connections = std::mem::take(&mut self.connections);
        connections.retain(|connection| {
            let nth = self.node_of(&connection.key);
            let now_s = self.now.as_secs() as u32;
            let datapath = &mut self.nodes[nth].datapath;
            datapath.send(&connection.key, false, now_s) == Some(connection.home)
        });
        self.connections = connections;
        before - self.connections.len()
    }

    /// The tables of each node.
    pub fn datapaths(&self) -> impl Iterator<Item = &D> {
        self.nodes.iter().map(|node| &node.datapath)
    }

    /// Clients close every connection but each `nth`.
    pub fn close(&mut self, nth: usize) {
        let mut count = 0;
        self.connections.retain(|_| {
            count += 1;
            count % nth.max(1) != 0
        });
    }

    /// Every connection sends a packet. What moves, and must not, is an error; what moves and may is counted and
    /// begins anew.
    pub fn talk(&mut self) -> Result<(), String> {
        let mut moved = Vec::new();
        for (place, connection) in self.connections.iter().enumerate() {
            let nth = self.node_of(&connection.key);
            let node = &mut self.nodes[nth];
            let now_s = self.now.as_secs() as u32;
            let sent = node.datapath.send(&connection.key, false, now_s);
            let past = &self.pasts[&node.id][connection.service];
            let forgotten = node.datapath.has_forgotten(&connection.key);
            let is_own = node.id == connection.began_at;
            let cause = past.may_move(connection, is_own, forgotten, self.now);
            self.tally.packets += 1;
            self.tally.bound += u64::from(cause.is_none());
            if let Some(at) = sent.filter(|at| !past.has_had(at)) {
                return Err(format!("{} goes to a stranger, {at}", connection.key));
            }
            if sent == Some(connection.home) {
                continue;
            }
            match cause {
                Some(cause) => {
                    *self.tally.moved.entry(cause).or_default() += 1;
                    moved.push(place);
                }
                None => {
                    return Err(format!(
                        "{} moved from {} to {sent:?} at {:?}: it began at {:?} at node {}, and this is node {}\n{past}",
                        connection.key,
                        connection.home,
                        self.now,
                        connection.began,
                        connection.began_at,
                        node.id,
                    ));
                }
            }
        }
        for place in moved.into_iter().rev() {
            self.connections.swap_remove(place);
        }
        Ok(())
    }
}

/// Who is on the ring of a service: those that are ready, or else those that still serve.
pub fn members(backends: &BTreeMap<u8, desired::Backend>) -> Vec<Member> {
    let of = |ready: bool| -> Vec<Member> {
        let wanted = backends
            .iter()
            .filter(|(_, backend)| backend.weight > 0 && (backend.ready == ready))
            .filter(|(_, backend)| backend.ready || backend.serving);
        let mut members: Vec<_> = wanted
            .map(|(number, backend)| (backend_at(*number), backend.weight))
            .collect();
        members.sort_unstable();
        members
    };
    let ready = of(true);
    if ready.is_empty() { of(false) } else { ready }
}

fn alive(backends: &BTreeMap<u8, desired::Backend>) -> BTreeSet<BackendAddr> {
    let alive = backends
        .iter()
        .filter(|(_, backend)| backend.ready || backend.serving);
    alive.map(|(number, _)| backend_at(*number)).collect()
}

fn desired(world: &World) -> Desired {
    let services = world.iter().enumerate().map(|(number, backends)| {
        let backends = backends
            .iter()
            .map(|(number, backend)| (backend_at(*number), *backend))
            .collect();
        let service = Service {
            affinity: (number == 2).then_some(Duration::from_hours(3)),
            backends: Arc::new(backends),
            ..Service::default()
        };
        (frontend(number), service)
    });
    Desired {
        node: NodeState {
            name: "node".to_owned(),
            ipv4: Some(Ipv4Addr::new(10, 1, 0, 1)),
            ipv6: Some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)),
            ..NodeState::default()
        },
        services: services.collect(),
        ..Desired::default()
    }
}

/// A backend that takes flows by this weight.
pub const fn ready(weight: u32) -> desired::Backend {
    desired::Backend {
        ready: true,
        serving: true,
        weight,
        home: Home::Bare,
    }
}

/// A backend that keeps the flows it has.
pub const fn draining(weight: u32) -> desired::Backend {
    desired::Backend {
        ready: false,
        ..ready(weight)
    }
}
