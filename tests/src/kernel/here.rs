//! Backends of the node itself: what else their rows need.

use aya::programs::SchedClassifier;
use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Arrival, ArrivalKey, ServiceKey, ServingKey, flags};
use fairlead_common::tables::{Arrivals, Backends, Serving};

use super::{FIRST_SERVICE, Node, POD, POD0, Ran, SkBuff, addr_of, test_run};
use crate::packet::Packet;

impl Node {
    /// Lets a backend listen on another port, and what it sends from there be an answer.
    pub fn listens(&mut self, backend: u32, port: u16) {
        let mut row = self.get::<Backends>(&backend).expect("a row");
        row.port = Port::new(port);
        self.set::<Backends>(&backend, &row);
        let (word, bit) = ServingKey::new(row.addr, row.port).place();
        let bits = self.get::<Serving>(&word).expect("a row");
        self.set::<Serving>(&word, &(bits | bit));
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

    /// Runs `tc_to_pod` on a frame that is about to reach the pod.
    pub fn reaches_pod(&mut self, packet: &Packet) -> Ran {
        let packet = packet.clone().macs(POD0.mac, POD);
        self.tc("tc_to_pod", POD0, &packet.bytes(), 0)
    }

    /// Runs `tc_to_pod` on a frame that it has nothing to do with.
    pub fn reaches_pod_unseen(&mut self, packet: &Packet) {
        let frame = packet.clone().macs(POD0.mac, POD).bytes();
        let before = self.reasons();
        let context = SkBuff::of(POD0, 0);
        let program: &mut SchedClassifier = self.program("tc_to_pod");
        let (action, out) = test_run(program, &frame, bytemuck::bytes_of(&context));
        assert_eq!((action, out), (u32::MAX, frame));
        assert_eq!(self.reasons(), before);
    }
}
