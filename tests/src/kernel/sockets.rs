//! The programs for sockets: there are no test runs for these, so real sockets of the node's thread meet them.

use std::fs::File;
use std::os::fd::AsRawFd;

use aya::maps::SkStorage;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Service, ServiceKey, Slot};
use fairlead_common::socket::Translation;
use fairlead_common::tables::{Services, Sockets, Table};
use fairlead_control::dataplane::table::Wire;

use super::{Node, addr_of};
use crate::cgroup::Cgroup;

impl Node {
    /// Attaches the programs for sockets to a cgroup until the node is dropped.
    pub fn attach_sockets(&mut self, cgroup: &Cgroup) {
        let folder = File::open(cgroup.path()).expect("a cgroup");
        self.load_beside("connect4");
        for (name, program) in self.ebpf.programs_mut() {
            if let Program::CgroupSockAddr(_) = program {
                let program: &mut CgroupSockAddr = program.try_into().expect(name);
                // A link is one of many whatever the mode.
                program
                    .attach(&folder, CgroupAttachMode::Single)
                    .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            }
        }
    }

    /// Adds a service as this node's sockets reach it, with a ring of these slots, and returns its row.
    pub fn inside_service(
        &mut self,
        addr: &str,
        port: u16,
        proto: Proto,
        ring: &[Slot],
        affinity_s: u32,
    ) -> Service {
        self.service(addr, port, proto, ring);
        let outside = ServiceKey::new(addr_of(addr), Port::new(port), proto);
        let row = Service {
            affinity_s,
            ..self.get::<Services>(&outside).expect("a row")
        };
        self.remove::<Services>(&outside);
        self.set::<Services>(&outside.inside(), &row);
        row
    }

    /// Changes the row of a service that [`Node::inside_service`] made.
    pub fn change_inside(
        &mut self,
        addr: &str,
        port: u16,
        proto: Proto,
        change: impl FnOnce(&mut Service),
    ) {
        let key = ServiceKey::new(addr_of(addr), Port::new(port), proto).inside();
        let mut row = self.get::<Services>(&key).expect("a row");
        change(&mut row);
        self.set::<Services>(&key, &row);
    }

    /// What a connected socket keeps.
    pub fn kept_by(&mut self, socket: &impl AsRawFd) -> Translation {
        let map = self.ebpf.map_mut(Sockets::NAME).expect(Sockets::NAME);
        let map: SkStorage<_, Wire<Translation>> = map.try_into().expect(Sockets::NAME);
        map.get(socket, 0).expect("a row in the socket").0
    }
}
