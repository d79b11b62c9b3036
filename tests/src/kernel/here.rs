//! Backends of the node itself: what else their rows need.

use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Arrival, ArrivalKey, ServiceKey, ServingKey, flags};
use fairlead_common::tables::{Arrivals, Backends, Serving};

use super::{FIRST_SERVICE, Node, addr_of};

impl Node {
    /// Lets a backend listen on another port, and what it sends from there be an answer.
    pub fn listens(&mut self, backend: u32, port: u16) {
        let mut row = self.get::<Backends>(&backend).expect("a row");
        row.port = Port::new(port);
        self.set::<Backends>(&backend, &row);
        self.set::<Serving>(&ServingKey::new(row.addr, row.port), &0);
    }

    /// Lets packets out of other nodes' tunnels reach a backend of this node for a service.
    pub fn arrives_for(&mut self, service: (&str, u16, Proto), backend: u32) {
        let (addr, port, proto) = service;
        let service = ServiceKey::new(addr_of(addr), Port::new(port), proto);
        let row = self.get::<Backends>(&backend).expect("a row");
        let arrival = Arrival {
            backend,
            service: FIRST_SERVICE,
        };
        self.set::<Arrivals>(&ArrivalKey::new(&service, row.addr), &arrival);
    }

    /// Sets a backend's flags.
    pub fn set_flags(&mut self, id: u32, flags: u8) {
        let mut backend = self.get::<Backends>(&id).expect("a row");
        backend.flags = flags;
        self.set::<Backends>(&id, &backend);
    }

    /// Says whether a backend answers.
    pub fn set_alive(&mut self, id: u32, alive: bool) {
        self.set_flags(id, if alive { flags::ALIVE } else { 0 });
    }
}
