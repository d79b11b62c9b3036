//! A node's real tables and its real program, beside the model: both are asked about each packet and must agree.

use std::net::IpAddr;

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use fairlead_common::addr::Proto;
use fairlead_common::flow::FlowKey;
use fairlead_common::tables::Flows;
use fairlead_control::config::document::XdpMode;
use fairlead_control::dataplane::apply::{self, KernelStore};
use fairlead_control::dataplane::attach::Hook;
use fairlead_control::dataplane::load::Loaded;
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::desired::BackendAddr;
use fairlead_control::plan::{Actual, Plan, Store as _};
use fairlead_tests::kernel::{ROUTER, UP0, XdpMd};
use fairlead_tests::packet::{eth, tcp};
use fairlead_tests::place::Place;

use crate::datapath::{Datapath, Design, Model};

/// A loaded datapath with pins of its own.
pub struct Instance {
    place: Place,
    loaded: Loaded,
}

impl Instance {
    fn new() -> Self {
        let place = Place::make().expect("a place");
        Self {
            loaded: place.load().expect("a datapath"),
            place,
        }
    }

    /// One whose program is attached to `up0`: a veth has receive queues for XDP only while there is one.
    pub fn attached() -> Self {
        let instance = Self::new();
        instance
            .loaded
            .attach(Hook::XdpIngress, UP0.name, XdpMode::Auto)
            .expect("attaching to a veth");
        instance
    }
}

/// A node's datapath in the kernel and in memory.
pub struct Twin {
    model: Model,
    store: KernelStore,
    flows: Pinned<Flows>,
    program: Xdp,
    _instance: Instance,
}

impl Twin {
    /// Loads it in the namespace of this thread, which [`fairlead_tests::kernel::bare_place`] has furnished.
    pub fn new() -> Self {
        let instance = Instance::new();
        let pins = &instance.place.pins;
        let program = Xdp::from_pin(
            pins.program("xdp_ingress"),
            aya_obj::programs::XdpAttachType::Interface,
        );
        Self {
            model: Model::new(Design::RingFirst, usize::MAX),
            store: KernelStore::open(pins).expect("tables"),
            flows: Pinned::open(pins).expect("FLOWS"),
            program: program.expect("a pinned program"),
            _instance: instance,
        }
    }

    /// Checks that the kernel's tables are what the model's are.
    pub fn check(&self) {
        let observed = self.store.observe().expect("tables that can be read");
        assert_eq!(&observed, self.model.actual());
        let remembered: Vec<_> = self
            .flows
            .rows()
            .map(|row| row.expect("a row"))
            .map(|(flow, known)| (flow, known.backend))
            .collect();
        let mut sorted = remembered;
        sorted.sort_unstable();
        let model = self.model.flows.iter();
        let model: Vec<_> = model.map(|(flow, known)| (*flow, known.backend)).collect();
        assert_eq!(sorted, model);
    }

    fn run(&self, flow: &FlowKey, opens: bool) -> Option<BackendAddr> {
        let packet = eth()
            .macs(ROUTER, UP0.mac)
            .ip(&flow.src.ip().to_string(), &flow.dst.ip().to_string());
        let (from, to) = (flow.src_port.number(), flow.dst_port.number());
        let packet = match flow.proto {
            Proto::UDP => packet.udp(from, to),
            _ if opens => packet.tcp(from, to).flags(tcp::SYN),
            _ => packet.tcp(from, to),
        };
        let frame = packet.bytes();
        let context = XdpMd::of(&frame, UP0);
        let mut out = vec![0; frame.len() + 256];
        let result = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out),
                ctx_in: Some(bytemuck::bytes_of(&context)),
                ..TestRunOptions::default()
            })
            .expect("a test run");
        out.truncate(result.data_size_out as usize);
        wrapped_for(&out)
    }
}

/// The outer destination of a frame that is wrapped in IP.
fn wrapped_for(frame: &[u8]) -> Option<BackendAddr> {
    const IN_IP: [u8; 2] = [4, 41];
    let (ethernet, packet) = frame.split_at(14);
    let addr = match ethernet[12..] {
        [0x08, 0x00] if IN_IP.contains(&packet[9]) => {
            IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).ok()?)
        }
        [0x86, 0xdd] if IN_IP.contains(&packet[6]) => {
            IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).ok()?)
        }
        _ => return None,
    };
    Some(BackendAddr { addr, port: 80 })
}

impl Datapath for Twin {
    fn carry_out(&mut self, plan: &Plan) {
        let outcome = apply::run(&plan.steps, &mut self.store);
        assert!(outcome.is_complete(), "{outcome:?}");
        self.model.carry_out(plan);
    }

    fn actual(&self) -> &Actual {
        self.model.actual()
    }

    fn send(&mut self, flow: &FlowKey, opens: bool, now_s: u32) -> Option<BackendAddr> {
        let modelled = self.model.send(flow, opens, now_s);
        let sent = self.run(flow, opens);
        assert_eq!(
            sent, modelled,
            "{flow}, opens: {opens}: the program and the model"
        );
        sent
    }

    fn has_forgotten(&self, _: &FlowKey) -> bool {
        false
    }
}
