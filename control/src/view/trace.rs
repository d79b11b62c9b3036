//! `dpctl trace`: what becomes of a packet, and why.
//!
//! The verdict comes from the program itself, which is run on the packet ([`crate::dataplane::rehearse`]); the
//! explanation is computed from the tables beside it. Where the two disagree, that is said: then the
//! explanation, or the datapath, is wrong.

mod choice;
mod packet;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, bail};
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::choice::{Because, Choice};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::reason::Reason;
use fairlead_common::route::DEVICE_MASK;
use fairlead_common::service::{
    ArrivalKey, NextHop, ServiceKey, ServingKey, forward, next_hop_flags,
};
use fairlead_common::snat::tcp;
use nix::net::if_::{if_indextoname, if_nametoindex};

use self::choice::{Course, course};
use self::packet::Wish;
use super::services::{forward_name, state_of};
use super::{State, View};
use crate::api::types::{Stage, Trace, TraceQuestion};
use crate::dataplane::attach::{self, Hook};
use crate::dataplane::observe;
use crate::dataplane::rehearse::{Ran, Rehearsal};
use crate::desired::{Frontend, Scope, Service};
use crate::plan::services as rows;

impl View {
    /// `GET /v1/trace`: blocks for some ten milliseconds, more with many flows.
    pub fn trace(&self, question: &TraceQuestion) -> Result<Trace> {
        let hook = self.hook(&question.device)?;
        let mut rehearsal = Rehearsal::open(&self.pins, hook)?;
        Tracer {
            state: &self.state.load_full(),
            hook,
            rehearsal: &mut rehearsal,
        }
        .trace(question)
    }

    /// What of ours meets packets that come in by a device.
    fn hook(&self, device: &str) -> Result<Hook> {
        let attached = attach::attachments(&self.pins)?;
        let ingress = |hook: Hook| matches!(hook, Hook::XdpIngress | Hook::TcIngress);
        let here = attached.iter().filter(|one| ingress(one.hook));
        let found = here.clone().find(|one| one.device == device);
        match found {
            Some(found) => Ok(found.hook),
            None => {
                let others: Vec<_> = here.map(|one| one.device.clone()).collect();
                bail!(
                    "no program of ours meets packets that come in by {device:?}; one does on {}",
                    if others.is_empty() {
                        "no device".to_owned()
                    } else {
                        others.join(", ")
                    }
                )
            }
        }
    }
}

/// Traces packets that come in by devices of one kind.
pub struct Tracer<'a> {
    /// What the tables hold and what was desired.
    pub state: &'a State,
    /// The program that meets the packets.
    pub hook: Hook,
    /// The program, ready to be tried.
    pub rehearsal: &'a mut Rehearsal,
}

impl Tracer<'_> {
    /// Runs the program on a packet and explains what came of it.
    pub fn trace(&mut self, question: &TraceQuestion) -> Result<Trace> {
        let wish = self.wish(question)?;
        let ifindex = if_nametoindex(question.device.as_str())
            .with_context(|| format!("there is no device {:?}", question.device))?;
        let flow = FlowKey::new(
            Addr::from(wish.src.ip()),
            Port::new(wish.src.port()),
            Addr::from(wish.dst.ip()),
            Port::new(wish.dst.port()),
            wish.proto,
        );
        let outside = ServiceKey::new(flow.dst, flow.dst_port, flow.proto);
        let key = match self.hook {
            Hook::TcIngress => outside.inside(),
            Hook::XdpIngress | Hook::XdpDecap | Hook::TcEgress | Hook::TcToPod => outside,
        };
        let begins = wish.proto == Proto::TCP && wish.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        let flow = flow.of_scope(key.scope);
        let remembered = self.rehearsal.flow(&flow)?;
        let now_s = observe::now_s()?;
        let course = course(&self.state.actual, key, &flow, begins, remembered, now_s);
        let tunnel = self.tunnel(question)?;
        let frame = packet::frame(&wish);
        let frame = match tunnel {
            Some((by, at)) => packet::wrapped(&frame, by, at),
            None => frame,
        };
        let ran = self.rehearsal.run(ifindex, &frame)?;

        let mut stages = vec![stage(
            "device",
            format!(
                "{} (index {ifindex}), met by {}",
                question.device,
                self.hook.program()
            ),
        )];
        let expected = match tunnel {
            Some(tunnel) => self.arrival(&course, tunnel, &mut stages),
            None => self.balanced(&course, &flow, now_s, &mut stages),
        };
        stages.push(stage(
            "verdict",
            format!(
                "{}: {} ({} says {})",
                ran.reason.verdict(),
                ran.reason.about(),
                self.hook.program(),
                ran.action
            ),
        ));
        let disagreement = disagreement(&expected, &ran);
        Ok(Trace {
            device: question.device.clone(),
            program: self.hook.program().to_owned(),
            verdict: ran.reason.verdict().name().to_owned(),
            reason: ran.reason.name().to_owned(),
            action: ran.action.to_owned(),
            stages,
            packet: packet::describe(&frame),
            result: packet::describe(&ran.frame),
            disagreement,
        })
    }

    /// The stages of a packet that this node chooses a backend for, if it is a service's.
    fn balanced(
        &self,
        course: &Course,
        flow: &FlowKey,
        now_s: u32,
        stages: &mut Vec<Stage>,
    ) -> Expected {
        stages.push(self.service_stage(course));
        let from = ServingKey::new(flow.src, flow.src_port);
        if self.hook == Hook::TcIngress && self.state.actual.serving.contains(&from) {
            stages.push(stage(
                "answer",
                format!(
                    "{}:{} is a backend of this node: what answers a flow that was translated to it leaves from the service's address",
                    flow.src,
                    flow.src_port.number()
                ),
            ));
        }
        match course.choice {
            Some(Ok(choice)) => {
                stages.push(slot_stage(course, &choice));
                stages.extend(memory_stage(course, &choice, now_s));
                stages.push(self.backend_stage(course, choice.backend));
                stages.extend(self.way_stage(choice.backend));
            }
            Some(Err(Reason::ServiceSourceDenied)) => stages.push(stage(
                "source",
                format!(
                    "{} is in none of the ranges that the service lets in",
                    flow.src
                ),
            )),
            Some(Err(_)) | None => {}
        }
        Expected {
            service: course.service.map(|row| row.id),
            backend: course.chosen().map(|choice| choice.backend),
        }
    }

    /// The stages of a packet that another node's balancer has wrapped for a backend.
    fn arrival(
        &self,
        course: &Course,
        (by, at): (IpAddr, IpAddr),
        stages: &mut Vec<Stage>,
    ) -> Expected {
        let arrivals = &self.state.actual.arrivals;
        let key = ArrivalKey::new(&course.key, at.into());
        let found = arrivals
            .get(&key)
            .or_else(|| arrivals.get(&key.at_any_node()));
        let inner = SocketAddr::new(course.key.addr.ip(), course.key.port.number());
        let Some(row) = found else {
            let text = format!(
                "wrapped by {by} for {at}, where no backend of this node serves {inner}/{}: routed or passed as it is",
                course.key.proto
            );
            stages.push(stage("tunnel", text));
            return Expected::default();
        };
        let text = format!("wrapped by {by}, which has chosen {at}: this node's ring is not asked");
        stages.push(stage("tunnel", text));
        let services = self.state.actual.services.iter();
        let mut of_id = services.filter(|(_, service)| service.id == row.service);
        let name = of_id.find_map(|(key, _)| self.desired(key)).map_or_else(
            || "a service".to_owned(),
            |(_, service)| format!("service {}", service.object),
        );
        let text = format!("{inner}/{} is {name}, id {}", course.key.proto, row.service);
        stages.push(stage("service", text));
        stages.push(self.backend_stage(course, row.backend));
        stages.extend(self.way_stage(row.backend));
        Expected {
            service: Some(row.service),
            backend: Some(row.backend),
        }
    }

    /// Who has wrapped the packet, and for whom.
    fn tunnel(&self, question: &TraceQuestion) -> Result<Option<(IpAddr, IpAddr)>> {
        match (question.wrapped_by, question.wrapped_for) {
            (None, None) => Ok(None),
            (Some(by), Some(at)) if by.is_ipv4() != at.is_ipv4() => {
                bail!("--wrapped-by and --wrapped-for must be of one address family")
            }
            (Some(_), Some(_)) if self.hook != Hook::XdpIngress => {
                bail!(
                    "--wrapped-for is for devices that other nodes are behind; this one is met by {}",
                    self.hook.program()
                )
            }
            (Some(by), Some(at)) => Ok(Some((by, at))),
            (Some(_), None) | (None, Some(_)) => {
                bail!("--wrapped-by and --wrapped-for are given together")
            }
        }
    }

    fn wish(&self, question: &TraceQuestion) -> Result<Wish> {
        if question.src.is_ipv4() != question.dst.is_ipv4() {
            bail!("--src and --dst must be of one address family");
        }
        let proto = match question.proto.as_str() {
            "tcp" => Proto::TCP,
            "udp" => Proto::UDP,
            other => bail!("--proto {other} is not traced; use tcp or udp"),
        };
        let ifindex = if_nametoindex(question.device.as_str()).unwrap_or(0);
        let devices = &self.state.actual.devices;
        let device = devices
            .get(&(ifindex & DEVICE_MASK))
            .filter(|row| row.ifindex == ifindex);
        Ok(Wish {
            to_mac: device.map(|row| row.mac).unwrap_or_default(),
            src: question.src,
            dst: question.dst,
            proto,
            tcp_flags: packet::tcp_flags(&question.flags)
                .map_err(|why| anyhow!("--flags: {why}"))?,
            ttl: question.ttl,
            size: question.size,
        })
    }

    fn desired(&self, key: &ServiceKey) -> Option<(&Frontend, &Service)> {
        let mut services = self.state.desired.services.iter();
        let found = services.find(|(frontend, _)| rows::key(frontend) == *key);
        found.map(|(frontend, service)| (frontend, &**service))
    }

    fn service_stage(&self, course: &Course) -> Stage {
        let key = &course.key;
        let address = SocketAddr::new(key.addr.ip(), key.port.number());
        let name = match self.desired(key) {
            Some((_, service)) => format!("service {}", service.object),
            None => "a service".to_owned(),
        };
        let text = match course.service {
            Some(row) if row.slots == 0 => {
                format!(
                    "{address}/{} is {name}, id {}, and has no backend",
                    key.proto, row.id
                )
            }
            Some(row) => format!(
                "{address}/{} is {name}, id {}, with a ring of {} slots",
                key.proto, row.id, row.slots
            ),
            None => {
                let rows = self.state.actual.services.keys();
                let others =
                    rows.filter(|other| other.addr == key.addr && other.scope == key.scope);
                let others: Vec<_> = others
                    .map(|other| format!("{}/{}", other.port.number(), other.proto))
                    .collect();
                if others.is_empty() {
                    format!(
                        "{address}/{} is no service: the packet is routed or passed",
                        key.proto
                    )
                } else {
                    format!(
                        "{address}/{} is no service; at this address there are {}: does the port differ?",
                        key.proto,
                        others.join(", ")
                    )
                }
            }
        };
        stage("service", text)
    }

    fn backend_stage(&self, course: &Course, id: u32) -> Stage {
        let Some(row) = self.state.actual.backends.get(&id) else {
            return stage("backend", "none: the slot is empty".to_owned());
        };
        let at = rows::address(row);
        let mut text = format!("{at} (id {id})");
        if let Some((frontend, service)) = self.desired(&course.key)
            && let Some(backend) = service.backends.get(&at)
        {
            let rings = &self.state.actual.rings;
            let ring = course.service.and_then(|row| rings.get(&row.ring));
            let own = ring.into_iter().flat_map(|slots| slots.iter());
            let own = own.filter(|slot| slot.current == id).count();
            let slots = ring.map_or(0, |slots| slots.len());
            text += &format!(
                ", {}, weight {}, {own} of {slots} slots",
                state_of(self.state, service, &at, *backend),
                backend.weight
            );
            if frontend.scope == Scope::Inside {
                text += ", for clients of this node";
            }
        }
        stage("backend", text)
    }

    fn way_stage(&self, id: u32) -> Option<Stage> {
        let row = self.state.actual.backends.get(&id)?;
        let how = match row.forward {
            forward::L2 => "by its MAC address: it is on a link of this node",
            forward::ENCAPSULATE => "wrapped in IP: it is behind a router",
            forward::GUE => "wrapped in UDP and GUE",
            forward::HERE => "translated here: it is of this node",
            forward::NAT => "both ends translated: it answers this node",
            _ => "not at all: the row is free",
        };
        let next_hop = self.state.actual.next_hops.get(&row.next_hop);
        let via = match next_hop {
            Some(next_hop) if next_hop.flags & next_hop_flags::RESOLVED != 0 => said(next_hop),
            Some(next_hop) => format!(
                "{}, whose MAC address is not known: the kernel is asked for each packet",
                next_hop.addr
            ),
            None => "whatever the kernel says for each packet".to_owned(),
        };
        Some(stage(
            "way",
            format!("{} ({how}); next hop {via}", forward_name(row)),
        ))
    }
}

fn said(next_hop: &NextHop) -> String {
    let device = if_indextoname(next_hop.ifindex)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("device {}", next_hop.ifindex));
    let mac = next_hop
        .destination
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    format!(
        "{} on {device}, MAC {mac}, MTU {}",
        next_hop.addr, next_hop.mtu
    )
}

fn slot_stage(course: &Course, choice: &Choice) -> Stage {
    let slots = course.service.map_or(0, |row| row.slots);
    let Choice {
        asked,
        number,
        slot,
        ..
    } = choice;
    let at = format!("hash {asked:#010x} -> slot {number} of {slots}");
    stage(
        "slot",
        if slot.previous == 0 {
            format!("{at}: steady, backend {}", slot.current)
        } else {
            format!(
                "{at}: in transition from backend {} to {}",
                slot.previous, slot.current
            )
        },
    )
}

fn memory_stage(course: &Course, choice: &Choice, now_s: u32) -> Option<Stage> {
    let Flow {
        backend,
        last_seen_s,
    } = course.remembered.unwrap_or_default();
    let text = match choice.because {
        Because::Steady => return None,
        Because::Begins => {
            "the flow begins here: it goes to the new backend and is remembered".to_owned()
        }
        Because::Remembered => format!(
            "remembered, last seen {}s ago: it began during the transition and stays with backend {backend}",
            now_s.saturating_sub(last_seen_s),
        ),
        Because::RememberedDead => {
            format!("remembered for backend {backend}, which is dead: it goes to the new one")
        }
        Because::Older => {
            "not remembered: it is older than the change and stays with the backend it had"
                .to_owned()
        }
        Because::OlderDead => {
            "not remembered, and the backend it had is dead: it goes to the new one".to_owned()
        }
    };
    Some(stage("flow memory", text))
}

/// What the program must have counted, by the tables.
#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    service: Option<u32>,
    backend: Option<u32>,
}

/// In which point the program did something else than the tables say.
fn disagreement(&Expected { service, backend }: &Expected, ran: &Ran) -> Option<String> {
    let id = |id: Option<u32>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    if ran.service != service {
        return Some(format!(
            "by the tables it belongs to service {}, and the program counted it for {}",
            id(service),
            id(ran.service)
        ));
    }
    if ran.backend.is_some() && ran.backend != backend {
        return Some(format!(
            "by the tables it goes to backend {}, and the program sent it to {}",
            id(backend),
            id(ran.backend)
        ));
    }
    None
}

fn stage(name: &str, text: String) -> Stage {
    Stage {
        name: name.to_owned(),
        text,
    }
}
