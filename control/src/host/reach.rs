//! How this host would reach addresses, by asking its routing tables.
//!
//! # Why
//! The kernel decides by rules, tables, hashes over several next hops and what routers told it, so it is asked, for
//! each address. Questions go in bundles, one system call each, over a socket of their own: a hundred thousand
//! backends are asked for in less than half a second.
//!
//! Not for keeping the answer's next hop resolved: [`super::neighbours`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::{Error, routes};
use crate::cores;

/// How many questions go at once: the answers to all must find room in the socket's buffer, where each takes a page
/// and what describes it, and the kernel's default is 208 KiB.
const BUNDLE: usize = 32;
/// So many questions are worth a second socket for half of them.
const MANY: usize = 4096;

/// Room for an answer: the kernel's own (`NLMSG_GOODSIZE`) is no more than a page.
const LONGEST: usize = 8192;

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On a link of this host.
    OnLink {
        /// The device's index.
        device: u32,
        /// The largest packet in bytes, where the route says it.
        mtu: Option<u32>,
    },
    /// Behind a router.
    Routed {
        /// The router.
        via: IpAddr,
        /// The device that leads to it, by index.
        device: u32,
        /// The largest packet in bytes, where the route (or what its routers told) says it.
        mtu: Option<u32>,
    },
    /// It is an address of this host.
    Local,
    /// No route leads there.
    Unreachable,
}

impl Reach {
    /// The largest packet in bytes, where the route says it.
    pub const fn mtu(&self) -> Option<u32> {
        match *self {
            Self::OnLink { mtu, .. } | Self::Routed { mtu, .. } => mtu,
            Self::Local | Self::Unreachable => None,
        }
    }

    /// Whose MAC address must be known to reach the address, and on which device.
    pub fn neighbour(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        match *self {
            Self::OnLink { device, .. } => Some((device, addr)),
            Self::Routed { via, device, .. } => Some((device, via)),
            Self::Local | Self::Unreachable => None,
        }
    }
}

/// Asks the kernel for ways. It speaks of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Enquirer {
    socket: Socket,
    /// Of the question that was asked last; answers repeat it.
    number: u32,
    heard: Vec<u8>,
}

impl Enquirer {
    /// Opens a socket to ask by.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel answers within the call that asks.
            socket.set_non_blocking(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = open().map_err(Error::new("opening a socket to ask for routes by"))?;
        Ok(Self {
            socket,
            number: 0,
            heard: Vec::with_capacity(LONGEST),
        })
    }

    /// Asks how each address would be reached; answers in the order of the addresses.
    ///
    /// # Errors
    /// The first question that had no answer; the answers before it are lost.
    pub fn ask(&mut self, addresses: &[IpAddr]) -> Result<Vec<Reach>, Error> {
        if addresses.len() < MANY {
            return self.ask_alone(addresses);
        }
        // The kernel answers within the call that asks: the work is the asking thread's, and two share it. They take
        // turns, because addresses of one family, which stand together, take longer than those of the other.
        let turn = |first: usize| -> Vec<IpAddr> {
            let turn = addresses.iter().skip(first).step_by(2);
            turn.copied().collect()
        };
        let (mine, others) = (turn(0), turn(1));
        let mut other = Self::open()?;
        let (answers, rest) =
            cores::both(true, || self.ask_alone(&mine), || other.ask_alone(&others));
        let (mut answers, mut rest) = (answers?.into_iter(), rest?.into_iter());
        let turns = addresses.len();
        let in_turn = (0..turns).filter_map(|turn| match turn % 2 {
            0 => answers.next(),
            _ => rest.next(),
        });
        Ok(in_turn.collect())
    }

    fn ask_alone(&mut self, addresses: &[IpAddr]) -> Result<Vec<Reach>, Error> {
        let mut answers = Vec::with_capacity(addresses.len());
        for bundle in addresses.chunks(BUNDLE) {
            let first = self.number.wrapping_add(1);
            let mut questions = Vec::new();
            for address in bundle {
                self.number = self.number.wrapping_add(1);
                write(&mut questions, *address, self.number);
            }
            let failed = |address: IpAddr| Error::new(format!("asking for the route to {address}"));
            self.socket.send(&questions, 0).map_err(failed(bundle[0]))?;
            for (number, &address) in bundle.iter().enumerate() {
                let number = first.wrapping_add(number as u32);
                let answer = self.answer(number).map_err(failed(address))?;
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    /// The answer to the question of this number.
    fn answer(&mut self, number: u32) -> io::Result<Reach> {
        loop {
            self.heard.clear();
            self.socket.recv(&mut self.heard, 0)?;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.heard)
                .map_err(io::Error::other)?;
            // What is left of a bundle that failed is nobody's.
            if message.header.sequence_number == number {
                return understood(message.payload);
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a question is answered by a route or an error"
)]
fn understood(payload: NetlinkPayload<RouteNetlinkMessage>) -> io::Result<Reach> {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(read(&route)),
        NetlinkPayload::Error(error) => match error.raw_code().abs() {
            // What unreachable, prohibit and blackhole routes answer, and no route at all.
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EACCES
            | libc::EINVAL
            | libc::ENETDOWN => Ok(Reach::Unreachable),
            _ => Err(error.to_io()),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Appends a question.
fn write(questions: &mut Vec<u8>, address: IpAddr, number: u32) {
    let mut question = match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .build(),
    };
    // With strict checking the kernel refuses a question that says what the answer should be.
    routes::clear_header(&mut question);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = number;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetRoute(question));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let start = questions.len();
    // Messages begin at multiples of four bytes, and so does the next.
    questions.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut questions[start..]);
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other kind of route refuses the packet"
)]
fn read(route: &RouteMessage) -> Reach {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast => return Reach::Local,
        _ => return Reach::Unreachable,
    }
    let mtu = mtu(&route.attributes);
    match (
        routes::device(&route.attributes),
        routes::gateway(&route.attributes),
    ) {
        (Some(device), Some(via)) => Reach::Routed { via, device, mtu },
        (Some(device), None) => Reach::OnLink { device, mtu },
        (None, _) => Reach::Unreachable,
    }
}

fn mtu(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| {
        let RouteAttribute::Metrics(metrics) = attribute else {
            return None;
        };
        metrics.iter().find_map(|metric| {
            if let RouteMetric::Mtu(mtu) = metric {
                Some(*mtu).filter(|mtu| *mtu != 0)
            } else {
                None
            }
        })
    })
}
